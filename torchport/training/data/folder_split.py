"""A split whose images lie in files of their own, each read when it is needed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ....common.photo import evaluation_view, training_view


@dataclass(frozen=True)
class FolderSplit:
    """Labelled image files, read as (size, size, 3) uint8.

    Attributes
    ----------
    root : Path
        The image folder; fingerprints name files relative to it.
    paths : (N,) tuple of Path
    labels : (N,) int64, in 0…K−1
    size : int
        Side of the images after cropping, in pixels.
    """

    root: Path
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    size: int

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.size, self.size, 3

    @property
    def images(self) -> LazyImages:
        """Centre crops (N, size, size, 3) uint8, read when they are indexed."""
        return LazyImages(self.paths, self.size)

    def take(self, index: NDArray[np.int64]) -> Self:
        """The chosen files and labels."""
        return replace(self, paths=tuple(self.paths[i] for i in index), labels=self.labels[index])

    def fingerprint(self) -> str:
        """SHA-256 of the files' names, sizes and labels."""
        digest = hashlib.sha256()
        for path, label in zip(self.paths, self.labels, strict=True):
            digest.update(f"{path.relative_to(self.root)} {path.stat().st_size} {label}\n".encode())
        return digest.hexdigest()

    def read(self, index: int, rng: np.random.Generator | None = None, flip: bool = False) -> NDArray[np.uint8]:
        """An image: its centre crop, or with `rng` a random crop, perhaps mirrored.

        Raises
        ------
        PhotoError
            If the file is no 8-bit image.
        """
        path = self.paths[index]
        return evaluation_view(path, self.size) if rng is None else training_view(path, self.size, rng, flip)


class LazyImages:
    """Centre crops of image files, indexed like an array; reads only the files that are indexed."""

    def __init__(self, paths: tuple[Path, ...], size: int) -> None:
        self.shape = (len(paths), size, size, 3)
        self._paths, self._size = paths, size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, key: int | slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        chosen = np.arange(len(self))[key]
        if chosen.ndim == 0:
            return evaluation_view(self._paths[int(chosen)], self._size)
        return np.stack([evaluation_view(self._paths[i], self._size) for i in chosen])
