"""A data set: training, validation and test split, class names, and the normalisation of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....common.photo import PhotoError, PhotoTransform
from .folder_split import FolderSplit
from .split import DataError, Split

AnySplit = Split | FolderSplit


@dataclass(frozen=True)
class ImageData:
    """A data set; a backbone sees x = (uint8 / 255 − mean) / std, channel by channel.

    Attributes
    ----------
    name : str
        Of the data set, or the path of an image folder.
    train, val, test : Split or FolderSplit
        `val` and `test` are None where the data set has no such split. Epochs are chosen on `val`, nothing on `test`.
    class_names : tuple of str
        K names, in the order of the labels.
    mean, std : per channel, on the 0…1 scale
    """

    name: str
    train: AnySplit
    val: AnySplit | None
    test: AnySplit | None
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, split in self.splits().items():
            wrong = split.labels[(split.labels < 0) | (split.labels >= self.num_classes)]
            if len(wrong):
                raise DataError(f"{self.name}: {name} label {wrong[0]} is outside 0…{self.num_classes - 1}")
            if split.image_shape != self.image_shape:
                raise DataError(
                    f"{self.name}: {name} images are {split.image_shape}, training images {self.image_shape}"
                )

    def splits(self) -> dict[str, AnySplit]:
        """The splits that there are, in the order train, val, test."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.train.image_shape

    @property
    def transform(self) -> PhotoTransform:
        """The preprocessing of a photo for this data set; for data in memory, the centre of the photo is scaled."""
        if isinstance(self.train, FolderSplit):
            return self.train.transform
        return PhotoTransform(*self.image_shape, crop=1.0)

    def preprocessing(self) -> dict[str, Any]:
        """The entry of a checkpoint that its model needs: class names, image shape, transform, mean, std."""
        return {
            "class_names": self.class_names,
            "image_shape": self.image_shape,
            "transform": self.transform.to_dict(),
            "mean": self.mean,
            "std": self.std,
        }

    def to_dict(self) -> dict[str, Any]:
        """The entry of config.json: preprocessing, name, and size and SHA-256 of every split."""
        described: dict[str, Any] = {"name": self.name, **self.preprocessing()}
        described |= {f"{name}_size": len(split) for name, split in self.splits().items()}
        return described | {f"{name}_sha256": split.fingerprint() for name, split in self.splits().items()}


def readable(
    split: AnySplit, chosen: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Indices, images (N, H, W, C) and labels of the chosen images; files that cannot be read are left out.

    Raises
    ------
    PhotoError
        If none can be read.
    """
    if isinstance(split, Split):
        return chosen, split.images[chosen], split.labels[chosen]
    images: dict[int, NDArray[np.uint8]] = {}
    reason: PhotoError | None = None
    for i in chosen.tolist():
        try:
            images[i] = split.read(i)
        except PhotoError as error:
            reason = error
    if reason and not images:
        raise reason
    index = np.array(list(images), np.int64)
    pixels = np.stack(list(images.values())) if images else np.empty((0, *split.image_shape), np.uint8)
    return index, pixels, split.labels[index]


def channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel on the 0…1 scale, exact, from histograms of the 256 values.

    >>> channel_statistics(np.array([0, 255], dtype=np.uint8).reshape(2, 1, 1, 1))
    ((0.5,), (0.5,))
    """
    values = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[-1]):
        histogram = np.zeros(256)
        for start in range(0, len(images), 1000):
            histogram += np.bincount(images[start : start + 1000, ..., channel].ravel(), minlength=256)
        share = histogram / histogram.sum()
        mean = float(share @ values)
        means.append(mean)
        stds.append(float(np.sqrt(share @ (values - mean) ** 2)))
    return tuple(means), tuple(stds)
