"""Image folders, ImageNet's layout: train/CLASS/*.jpg and val/CLASS/*.jpg, read by worker processes.

Every random choice comes from (seed, epoch, image), so batches do not depend on the number of workers, and a
run can go on at any step.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .images import DataError, ImageData
from .loader import Batch, check_batch_size, epoch_order

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, red green blue


@dataclass(frozen=True)
class FolderSplit:
    """Labelled image files, each read when it is needed as (size, size, 3) uint8."""

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
        """The images' middles as (N, size, size, 3) uint8, read when they are indexed."""
        return LazyImages(self)

    def fingerprint(self) -> str:
        """SHA-256 of the files' names, sizes and labels."""
        digest = hashlib.sha256()
        for path, label in zip(self.paths, self.labels, strict=True):
            digest.update(f"{path.relative_to(self.root)} {path.stat().st_size} {label}\n".encode())
        return digest.hexdigest()

    def read(self, index: int, rng: np.random.Generator | None = None, flip: bool = False) -> NDArray[np.uint8]:
        """An image, the way up that the camera noted: its middle, or with `rng` a random part, perhaps mirrored."""
        from PIL import Image, ImageOps

        path = self.paths[index]
        try:
            with Image.open(path) as file:
                if file.mode.startswith(("I", "F")):  # they would be clipped to 8 bits, not scaled
                    raise DataError(f"{path} has more than 8 bits per pixel (mode {file.mode}): convert it to 8 bits")
                image = ImageOps.exif_transpose(file).convert("RGB")
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} cannot be read as an image: {error}") from error
        if rng is None:
            return np.asarray(ImageOps.fit(image, (self.size, self.size), Image.Resampling.BILINEAR, bleed=1 / 16))
        box = random_box(image.size, rng)
        part = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        return np.asarray(ImageOps.mirror(part) if flip and rng.random() < 0.5 else part)


class LazyImages:
    """Indexed like an array of images; reads just the files that are asked for."""

    def __init__(self, split: FolderSplit) -> None:
        self.shape = (len(split), *split.image_shape)
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, key: int | slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        chosen = np.arange(len(self))[key]
        if chosen.ndim == 0:
            return self._split.read(int(chosen))
        return np.stack([self._split.read(int(i)) for i in chosen])


def random_box(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A random part of an image as (left, upper, right, lower).

    Between 8 and 100 % of its area, and between 3:4 and 4:3 (Szegedy et al. 2014, arXiv 1409.4842, section 6).
    """
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, upper, left + w, upper + h
    return 0, 0, width, height


def load_folder(root: Path, size: int) -> ImageData:
    """An image folder as a data set; its classes are the folders in `train`, sorted.

    Raises
    ------
    DataError
        If there is no train folder, no val (or test) folder, a class without training images, or one that only
        the other folder has.
    """
    test_name = next((name for name in ("val", "test") if (root / name).is_dir()), "val")
    classes = _folders(root / "train")
    if len(classes) < 2:
        raise DataError(f"{root / 'train'}: expected a folder of images for each of at least two classes in it")
    train, test = (_folder_split(root, part, classes, size) for part in ("train", test_name))
    return ImageData(str(root), train, test, tuple(classes), MEAN, STD)


def _folders(path: Path) -> list[str]:
    """Names of the folders in a folder, hidden ones (.ipynb_checkpoints) left out."""
    return sorted(p.name for p in path.glob("[!.]*") if p.is_dir())


def _folder_split(root: Path, part: str, classes: Sequence[str], size: int) -> FolderSplit:
    foreign = sorted(set(_folders(root / part)) - set(classes))
    if foreign:
        raise DataError(f"{root / part / foreign[0]} is a class that {root / 'train'} does not have")
    paths, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(p for p in (root / part / name).rglob("[!.]*") if p.suffix.lower() in SUFFIXES)
        if not files and part == "train":
            raise DataError(f"{root / part / name} holds no images (looked for {', '.join(sorted(SUFFIXES))})")
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise DataError(f"{root / part}: expected images in it, as {root / part}/CLASS/NAME.jpg")
    return FolderSplit(root, tuple(paths), np.array(labels, np.int64), size)


class _Images(Dataset[tuple[Tensor, int]]):
    """What worker processes hold; an item is asked for as (epoch, index), with epoch −1 for the image unchanged."""

    def __init__(self, split: FolderSplit, seed: int, flip: bool) -> None:
        self.split, self.seed, self.flip = split, seed, flip

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        rng = None if epoch < 0 else np.random.default_rng([self.seed, epoch, index])
        return torch.from_numpy(self.split.read(index, rng, self.flip).copy()), int(self.split.labels[index])


class FolderLoader:
    """Batches of an image folder, with the interface of `DeviceLoader`, but one pass at a time.

    Worker processes, no more than there are processors, stay from one pass to the next.
    """

    def __init__(
        self,
        split: FolderSplit,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        seed: int = 0,
        flip: bool = False,
        stratified: bool = False,
        workers: int = 4,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        check_batch_size(batch_size, len(split), world)
        self.split, self.batch_size, self.seed, self.stratified = split, batch_size, seed, stratified
        self.device, self.rank, self.world = device, rank, world
        self._batches: list[list[tuple[int, int]]] = []  # of the pass that is under way
        self._pass = object()
        workers = min(
            workers, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
        self._loader = DataLoader(
            _Images(split, seed, flip),
            batch_sampler=self._batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
        )
        self._mean = torch.tensor(mean).to(device).view(1, -1, 1, 1)
        self._std = torch.tensor(std).to(device).view(1, -1, 1, 1)

    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return len(self.split) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Training batches of one epoch from step `start`, this process's share of each."""
        order = epoch_order(self.split.labels, self.seed, epoch, self.stratified)
        steps = range(start, self.steps_per_epoch())
        batches = [order[step * self.batch_size : (step + 1) * self.batch_size] for step in steps]
        return self._read([[(epoch, int(i)) for i in batch[self.rank :: self.world]] for batch in batches])

    def ordered(self, batch_size: int = 250) -> Iterator[Batch]:
        """Every image once, unchanged and in order: this process's share of the split."""
        mine = range(self.rank, len(self.split), self.world)
        keys = [(-1, i) for i in mine]
        return self._read([keys[i : i + batch_size] for i in range(0, len(keys), batch_size)])

    def _read(self, batches: list[list[tuple[int, int]]]) -> Iterator[Batch]:
        self._batches[:] = batches
        self._pass = this_pass = object()
        for images, labels in self._loader:
            if self._pass is not this_pass:
                break
            pixels = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            yield (pixels / 255 - self._mean) / self._std, labels.to(self.device, non_blocking=True)
        if self._pass is not this_pass:
            raise RuntimeError("a FolderLoader reads one pass at a time, and another one has begun")
