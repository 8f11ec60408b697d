"""Data sets, from official files to batches on the device.

load.py        a data set by name, its splits     images.py          a data set
held_out.py    validation images                  split.py           images in memory
modify.py      harder training sets               folder_split.py    images in files
loaders.py     the loader for a split             device_loader.py, folder_loader.py, batches.py
download.py    official files                     idx, cifar, stl10, digits, image_folder, ufm
"""
