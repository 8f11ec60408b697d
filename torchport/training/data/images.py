"""What a data set is to the training loop: two splits of labelled 8-bit images, and their normalisation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .folder import FolderSplit


class DataError(ValueError):
    """A file or data set that cannot be used; the message is one line that names it and what was expected."""


@dataclass(frozen=True)
class Split:
    """Labelled images in memory.

    Attributes
    ----------
    images : (N, H, W, C) uint8
    labels : (N,) int64, in 0…K−1
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise DataError(f"images have to be (N, H, W, C) uint8, not {self.images.shape} {self.images.dtype}")
        if self.labels.shape != self.images.shape[:1]:
            raise DataError(f"{len(self.images)} images, but labels of shape {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    def fingerprint(self) -> str:
        """SHA-256 of pixels and labels, so that a run folder says exactly what it was trained on."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageData:
    """A data set: x = (uint8 / 255 − mean) / std is what a backbone sees, channel by channel."""

    name: str
    train: Split | FolderSplit
    test: Split | FolderSplit
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for part, split in (("train", self.train), ("test", self.test)):
            wrong = split.labels[(split.labels < 0) | (split.labels >= self.num_classes)]
            if len(wrong):
                raise DataError(f"{self.name}: {part} label {wrong[0]} is outside 0…{self.num_classes - 1}")
        if self.train.image_shape != self.test.image_shape:
            raise DataError(
                f"{self.name}: training images are {self.train.image_shape}, test images {self.test.image_shape}"
            )

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.train.image_shape


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
