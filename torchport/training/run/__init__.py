"""A run: its settings, and its folder.

settings.py     everything that defines a run      reading.py      reads a run folder (without torch)
checkpoint.py   everything to resume from          folder.py       writes a run folder
data_path.py    the location of the data           lock.py         one writing process at a time
"""
