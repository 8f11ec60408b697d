"""A run: its settings, and what its folder holds and how that is read and written.

settings.py     everything that defines a run      reading.py      a run folder, read (without torch)
checkpoint.py   everything to go on from           folder.py       a run folder, written
data_path.py    where the data lie
"""
