"""Data sets by name, from their official files: small ones whole in memory, image folders file by file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ....common.errors import nearest_name
from ..backbones.build import network_view
from ..backbones.view import View
from ..run.data_path import data_folder
from ..run.settings import DATA_SETS, Settings
from .cifar import FINE_LABEL_NAMES, Labelled, read_cifar_binary, read_cifar_python
from .digits import load_digits
from .download import SOURCES, data_root, fetch, official_file
from .folder_split import FolderSplit
from .held_out import hold_out
from .idx import read_mnist
from .image_folder import load_folder
from .images import ImageData, channel_statistics
from .modify import modified
from .split import DataError, Split
from .stl10 import read_stl10
from .ufm import ufm_data

CLASS_NAMES = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "cifar100": FINE_LABEL_NAMES,
    "stl10": ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
}
FOLDER_VAL_FRACTION = 0.2  # of an image folder with neither val/ nor test/
IMAGE_SIZE = 224  # of photos, unless the settings or the network name another one


def training_data(
    settings: Settings, root: str | Path | None = None, recorded: Mapping[str, Any] | None = None
) -> ImageData:
    """The data set that the settings name: validation images held out, then the training split thinned and mislabelled.

    Images are normalised, and photos cropped and scaled, as in the pretraining of the settings' network.

    Parameters
    ----------
    settings : Settings
    root : path, optional
        As for `load_data`.
    recorded : mapping, optional
        The data entry of a checkpoint of the run; it takes precedence over the network.

    Raises
    ------
    DataError, SettingsError
        If the data set cannot be read, or split according to the settings.

    Examples
    --------
    >>> data = training_data(Settings(data="digits", val_fraction=0.1, samples_per_class=20))
    >>> {name: len(split) for name, split in data.splits().items()}
    {'train': 200, 'val': 143, 'test': 360}
    """
    if settings.data == "ufm":
        return ufm_data(settings)
    view = View.recorded(recorded) if recorded else network_view(settings)
    data = load_data(settings.data, root=root, image_size=settings.image_size or view.size or IMAGE_SIZE)
    data = seen_by(data, view.channels(data.image_shape[2]))
    fraction = settings.val_fraction
    if fraction is None:
        alone = isinstance(data.train, FolderSplit) and data.val is None and data.test is None
        fraction = FOLDER_VAL_FRACTION if alone else 0.0
    if fraction:
        data = hold_out(data, fraction, settings.seed)
    train = modified(
        data.train,
        data.num_classes,
        seed=settings.seed,
        samples_per_class=settings.samples_per_class,
        imbalance=settings.imbalance,
        ratio=settings.imbalance_ratio,
        label_noise=settings.label_noise,
    )
    return replace(data, train=train)


def seen_by(data: ImageData, view: View) -> ImageData:
    """A data set with the normalisation, and for photos the crop, of a network."""
    names = ("crop", "crop_mode", "interpolation")
    crop: dict[str, Any] = {name: value for name in names if (value := getattr(view, name)) is not None}
    photos: dict[str, Any] = {
        name: replace(split, transform=replace(split.transform, **crop))
        for name, split in data.splits().items()
        if isinstance(split, FolderSplit)
    }
    return replace(data, mean=view.mean or data.mean, std=view.std or data.std, **photos)


def load_data(name: str, *, root: str | Path | None = None, image_size: int = 224) -> ImageData:
    """A data set by name, or an image folder by path, with the splits that it comes with.

    Parameters
    ----------
    name : str
        "digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "stl10", "imagenet", or a folder of train/CLASS/…,
        with val/CLASS/… and test/CLASS/… or without, or of CLASS/… alone.
    root : path, optional
        The data directory. Default: `NEAREST_ETF_DATA`, or the user's cache folder.
    image_size : int
        Side in pixels of the images cropped from a folder's files.

    Raises
    ------
    DataError
        If there is no such data set, or its files are missing, damaged or of another kind.

    Examples
    --------
    >>> load_data("digits").image_shape
    (8, 8, 1)
    """
    if name == "digits":
        return load_digits()
    if name == "imagenet":
        folder = data_root(root) / "imagenet"
        if not (folder / "train").is_dir() or not (folder / "val").is_dir():
            raise DataError(f"imagenet: expected train/CLASS/NAME.JPEG and val/CLASS/NAME.JPEG in {folder}")
        return load_folder(folder, image_size, {"test": "val"})  # labels of its test images are not public
    if name not in SOURCES:
        path = data_folder(name)
        if path is None:
            raise DataError(nearest_name("data set", name, [n for n in DATA_SETS if n != "ufm"]))
        if not path.is_dir():
            raise DataError(
                f"no such folder: {path}: name the folder of images, or its new location, with --data FOLDER"
            )
        return load_folder(path, image_size)
    directory = data_root(root)
    train, test = read_python_cifar(name, directory) or read_official(name, directory)
    mean, std = channel_statistics(train.images)
    return ImageData(name, train, None, test, CLASS_NAMES[name], mean, std)


def read_official(name: str, root: Path) -> tuple[Split, Split]:
    """Training and test split of a data set from its official binary files."""
    source = SOURCES[name]
    folder = fetch(name, source, root)
    files = [official_file(folder, file) for file in source.files]
    if name in ("mnist", "fashion-mnist"):
        return Split(*read_mnist(files[0], files[1])), Split(*read_mnist(files[2], files[3]))
    if name == "stl10":
        return Split(*read_stl10(files[0], files[1])), Split(*read_stl10(files[2], files[3]))
    *train, test = [read_cifar_binary(file, label_bytes=1 if name == "cifar10" else 2) for file in files]
    return joined(train), Split(*test)


def read_python_cifar(name: str, root: Path) -> tuple[Split, Split] | None:
    """Training and test split of CIFAR from its Python files, where these exist and the binary ones do not."""
    if name not in ("cifar10", "cifar100") or (root / SOURCES[name].folder).exists():
        return None
    folder = root / {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    if not folder.is_dir():
        return None
    if name == "cifar10":
        names, test_name, key = [f"data_batch_{i}" for i in range(1, 6)], "test_batch", b"labels"
    else:
        names, test_name, key = ["train"], "test", b"fine_labels"
    for file in (*names, test_name):
        if not (folder / file).is_file():
            raise DataError(f"{name}: {folder / file} is missing: expected {', '.join([*names, test_name])} there")
    train = [read_cifar_python(folder / file, key) for file in names]
    return joined(train), Split(*read_cifar_python(folder / test_name, key))


def joined(files: list[Labelled]) -> Split:
    """One split from several files' images and labels."""
    images, labels = zip(*files, strict=True)
    return Split(np.concatenate(images), np.concatenate(labels))
