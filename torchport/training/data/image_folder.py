"""Image folders, in ImageNet's layout or flat: train/CLASS/*.jpg with val/ and test/ beside it, or CLASS/*.jpg."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ....common.photo import PhotoTransform
from ....common.photo_files import IMAGE_SUFFIXES, FoundImages, is_hidden, search
from .folder_split import FolderSplit
from .images import ImageData
from .split import DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, red green blue
HELD_OUT = {"val": "val", "test": "test"}  # split: folder


def load_folder(root: Path, size: int, held_out: Mapping[str, str] = HELD_OUT) -> ImageData:
    """An image folder as a data set; its classes are the folders in `train`, sorted.

    Without a folder `train`, the classes are the folders in `root`, and all images are for training.

    Parameters
    ----------
    root : path
    size : int
        Side of the images after cropping, in pixels.
    held_out : mapping
        Folders of the validation and the test split; each may be missing.

    Warns
    -----
    UserWarning
        Skipped files and folders: see `FoundImages.notes`.

    Raises
    ------
    DataError
        If there are fewer than two classes; if a class has no training images; if the folder of another split is empty,
        has a class that training lacks, or exists without `train`.
    """
    found = {split: root / name for split, name in held_out.items() if (root / name).is_dir()}
    nested = (root / "train").is_dir()
    if found and not nested:
        folder = next(iter(found.values()))
        raise DataError(f"{root} has {folder.name}/ but no train/: expected train/CLASS/NAME.jpg beside it")
    train_folder = root / "train" if nested else root
    classes = _folders(train_folder)
    if len(classes) < 2:
        flat = "" if nested else ", or a folder train/ of such folders"
        raise DataError(f"{train_folder}: expected a folder of images for each of at least two classes in it{flat}")
    found_images, transform = FoundImages(), PhotoTransform(size, size)
    train = _folder_split(root, train_folder, classes, transform, found_images)
    empty = sorted(set(range(len(classes))) - set(train.labels.tolist()))
    if empty:
        here = search(train_folder / classes[empty[0]], FoundImages())
        reasons = "; ".join([f"looked for {', '.join(IMAGE_SUFFIXES)}", *here.notes()])
        raise DataError(f"{train_folder / classes[empty[0]]} holds no images ({reasons}): add some, or remove it")
    splits: dict[str, FolderSplit] = {}
    for split, folder in found.items():
        foreign = sorted(set(_folders(folder)) - set(classes))
        if foreign:
            raise DataError(f"{folder / foreign[0]} is a class that {train_folder} lacks")
        splits[split] = _folder_split(root, folder, classes, transform, found_images)
        if not len(splits[split]):
            raise DataError(f"{folder}: expected images in it, as {folder}/CLASS/NAME.jpg")
    if notes := found_images.notes():
        warnings.warn(f"{root}: {'; '.join(notes)}", stacklevel=2)
    return ImageData(str(root), train, splits.get("val"), splits.get("test"), tuple(classes), MEAN, STD)


def _folders(path: Path) -> list[str]:
    """Names of the folders in a folder; hidden ones (`is_hidden`) and links back to it are left out."""
    real = Path(os.path.realpath(path))
    around = {real, *real.parents}
    folders = (p for p in path.iterdir() if not is_hidden(p.name) and p.is_dir())
    return sorted(p.name for p in folders if Path(os.path.realpath(p)) not in around)


def _folder_split(
    root: Path, folder: Path, classes: Sequence[str], transform: PhotoTransform, found: FoundImages
) -> FolderSplit:
    """All images of the classes in a folder, in the order of the classes; what is left out is added to `found`."""
    start, labels = len(found.paths), list[int]()
    for label, name in enumerate(classes):
        if (folder / name).is_dir():
            search(folder / name, found)
        labels += [label] * (len(found.paths) - start - len(labels))
    return FolderSplit(root, tuple(found.paths[start:]), np.array(labels, np.int64), transform)
