"""Data sets by name, from their official files; small ones whole in memory, image folders file by file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..run.settings import DATA_SETS, Settings, nearest_name
from .cifar import FINE_LABEL_NAMES, read_cifar_binary, read_cifar_python
from .digits import load_digits
from .download import SOURCES, data_root, fetch, official_file
from .folder import FolderLoader, FolderSplit, load_folder
from .idx import read_mnist
from .images import DataError, ImageData, Split, channel_statistics
from .loader import Augmentation, Batch, DeviceLoader
from .modify import modified
from .stl10 import read_stl10
from .ufm import IndexLoader, ufm_data

__all__ = [
    "Augmentation",
    "DataError",
    "DeviceLoader",
    "FolderLoader",
    "FolderSplit",
    "ImageData",
    "Loader",
    "Split",
    "load_data",
    "make_loader",
    "training_data",
]

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


class Loader(Protocol):
    """Batches of a split: shuffled and augmented by the epoch, or every image once in order."""

    def steps_per_epoch(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...

    def ordered(self) -> Iterator[Batch]: ...


def load_data(name: str, *, root: str | Path | None = None, image_size: int = 224) -> ImageData:
    """A data set by name, or an image folder by path.

    Parameters
    ----------
    name : str
        "digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "stl10", or a folder with train/CLASS/…
        and val/CLASS/….
    root : path, optional
        The data directory; `NEAREST_ETF_DATA`, or the user's cache folder, by default.
    image_size : int
        Side of the images that are cut from a folder's files.

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
        if not folder.is_dir():
            raise DataError(f"imagenet: {folder} is missing: expected train/CLASS/NAME.JPEG and val/CLASS/… in it")
        return load_folder(folder, image_size)
    if name not in SOURCES:
        if Path(name).is_dir():
            return load_folder(Path(name), image_size)
        where = "there is no such folder; " if "/" in name else ""
        raise DataError(where + nearest_name("data set", name, [n for n in DATA_SETS if n != "ufm"]))
    directory = data_root(root)
    train, test = read_python_cifar(name, directory) or read_official(name, directory)
    mean, std = channel_statistics(train.images)
    return ImageData(name, train, test, CLASS_NAMES[name], mean, std)


def read_official(name: str, root: Path) -> tuple[Split, Split]:
    """Both halves of a data set from its official binary files."""
    source = SOURCES[name]
    folder = fetch(name, source, root)
    files = [official_file(folder, file) for file in source.files]
    if name in ("mnist", "fashion-mnist"):
        return Split(*read_mnist(files[0], files[1])), Split(*read_mnist(files[2], files[3]))
    if name == "stl10":
        return Split(*read_stl10(files[0], files[1])), Split(*read_stl10(files[2], files[3]))
    label_bytes = 1 if name == "cifar10" else 2
    return joined([read_cifar_binary(f, label_bytes) for f in files[:-1]]), joined(
        [read_cifar_binary(files[-1], label_bytes)]
    )


def read_python_cifar(name: str, root: Path) -> tuple[Split, Split] | None:
    """Both halves of CIFAR from its Python files, where these lie there and the binary ones do not."""
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
    return joined(train), joined([read_cifar_python(folder / test_name, key)])


def joined(parts: list[tuple[Any, Any]]) -> Split:
    """One split from several files' images and labels."""
    return Split(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))


def training_data(settings: Settings, root: str | Path | None = None) -> ImageData:
    """The data set that the settings name, its training half thinned and mislabelled as they say."""
    if settings.data == "ufm":
        return ufm_data(settings)
    data = load_data(settings.data, root=root, image_size=settings.image_size)
    train: Split | FolderSplit = modified(
        data.train,
        data.num_classes,
        seed=settings.seed,
        samples_per_class=settings.samples_per_class,
        imbalance=settings.imbalance,
        ratio=settings.imbalance_ratio,
        label_noise=settings.label_noise,
    )
    return ImageData(data.name, train, data.test, data.class_names, data.mean, data.std)


def make_loader(
    split: Split | FolderSplit,
    data: ImageData,
    settings: Settings,
    *,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> Loader:
    """The loader for a split: on the device for images in memory, with workers for image files."""
    if data.name == "ufm":
        return IndexLoader(torch.from_numpy(split.labels).to(device))
    shared: dict[str, Any] = {
        "mean": data.mean,
        "std": data.std,
        "device": device,
        "seed": settings.seed,
        "stratified": settings.stratified,
        "rank": rank,
        "world": world,
    }
    batch_size = settings.batch_size if split is data.train else world  # a test split is only read in order
    if isinstance(split, FolderSplit):
        if settings.crop_padding or settings.rotation:
            raise DataError(
                "image folders are augmented by random parts and flip: crop_padding and rotation are not for them"
            )
        return FolderLoader(split, batch_size, flip=settings.flip, workers=settings.workers, **shared)
    augmentation = Augmentation(settings.flip, settings.crop_padding, settings.rotation)
    return DeviceLoader(split, batch_size, augmentation=augmentation, **shared)
