"""A split of a data set: labelled 8-bit images in memory, and the error about data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ....common.errors import UserError


class DataError(UserError):
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

    def take(self, index: NDArray[np.int64]) -> Self:
        """The images and labels at these positions."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def fingerprint(self) -> str:
        """SHA-256 of pixels and labels, recorded in the run folder."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()
