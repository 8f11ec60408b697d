"""A split of image files, each read on demand."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ....common.files import reading
from ....common.photo import PhotoError, PhotoTransform, evaluation_view, training_view


@dataclass(frozen=True)
class FolderSplit:
    """Labelled image files, read as (H, W, C) uint8.

    Attributes
    ----------
    root : Path
        The image folder; fingerprints name files relative to it.
    paths : (N,) tuple of Path
    labels : (N,) int64, in 0…K−1
    transform : PhotoTransform
        The preprocessing of a photo for evaluation.
    """

    root: Path
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    transform: PhotoTransform

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return self.transform.shape

    @property
    def images(self) -> LazyImages:
        """Images preprocessed for evaluation, (N, H, W, C) uint8, read when indexed."""
        return LazyImages(self.paths, self.transform)

    def take(self, index: NDArray[np.int64]) -> Self:
        """The chosen files and labels."""
        return replace(self, paths=tuple(self.paths[i] for i in index), labels=self.labels[index])

    def fingerprint(self) -> str:
        """SHA-256 of the files' names, sizes and labels; a broken link has size 0."""
        digest = hashlib.sha256()
        for path, label in zip(self.paths, self.labels, strict=True):
            name = os.fsencode(path.relative_to(self.root))
            with reading(path, "an image", PhotoError):
                size = path.stat().st_size if path.exists() else 0
            digest.update(name + f" {size} {label}\n".encode())
        return digest.hexdigest()

    def read(
        self, index: int, rng: np.random.Generator | None = None, *, flip: bool = False, scale: float = 0.08
    ) -> NDArray[np.uint8]:
        """An image preprocessed for evaluation, or with `rng` a random crop; see `common.photo.training_view`.

        Raises
        ------
        PhotoError
            If the file cannot be read as an image.
        """
        path = self.paths[index]
        if rng is None:
            return evaluation_view(path, self.transform)
        return training_view(path, self.transform, rng, flip=flip, scale=scale)


class LazyImages:
    """Images preprocessed for evaluation, indexed like an array; reads only the indexed files."""

    def __init__(self, paths: tuple[Path, ...], transform: PhotoTransform) -> None:
        self.shape = (len(paths), *transform.shape)
        self._paths, self._transform = paths, transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, key: int | slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        chosen = np.arange(len(self))[key]
        if chosen.ndim == 0:
            return evaluation_view(self._paths[int(chosen)], self._transform)
        return np.stack([evaluation_view(self._paths[i], self._transform) for i in chosen])
