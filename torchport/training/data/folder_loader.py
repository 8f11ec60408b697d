"""Batches of image files, read by worker processes.

Every random choice comes from (seed, epoch, image), so batches do not depend on the number of workers, and a run can
resume at any step.

Files that cannot be read are handled here, for training, evaluation and measuring: an evaluation leaves them out;
training takes the next image of the class instead, so that batches keep their size. Each such file is reported once. A
`strict` loader ends the pass instead.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ....common.machine import available_cores
from ....common.photo import PhotoError
from .batches import Batch, check_batch_size, epoch_order
from .folder_split import FolderSplit
from .worker import ignore_signals, process_ending

SHARED_MEMORY = "/dev/shm"  # of Linux; containers often have 64 MB of it
Item = tuple[NDArray[np.uint8] | None, int, dict[int, str]]  # pixels, if readable; label; errors
Raw = tuple[Tensor | NDArray[np.uint8], Tensor | NDArray[np.int64], dict[int, str]]


class _Images(Dataset[Item]):
    """The data set of the worker processes; the key of an item is (epoch, index), with epoch −1 for the unchanged
    image."""

    def __init__(self, split: FolderSplit, seed: int, flip: bool, scale: float) -> None:
        self.split, self.seed, self.flip, self.scale = split, seed, flip, scale

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        label, broken = int(self.split.labels[index]), dict[int, str]()
        for candidate in [index] if epoch < 0 else self._class_from(index):
            rng = None if epoch < 0 else np.random.default_rng([self.seed, epoch, candidate])
            try:
                return self.split.read(candidate, rng, flip=self.flip, scale=self.scale), label, broken
            except PhotoError as error:
                broken[candidate] = str(error)
        return None, label, broken

    def _class_from(self, index: int) -> Iterator[int]:
        """An image, and then the others of its class."""
        yield index
        members = np.flatnonzero(self.split.labels == self.split.labels[index])
        yield from np.roll(members, -1 - np.searchsorted(members, index))[:-1].tolist()


class FolderLoader:
    """Batches of an image folder, with the interface of `DeviceLoader`, but one pass at a time.

    Worker processes, at most one per processor core, persist between passes.

    Parameters
    ----------
    split : FolderSplit
    batch_size, mean, std, device, seed, stratified, rank, world_size
        As for `DeviceLoader`.
    flip : bool
        Mirror half of the training images.
    scale : float
        Least share of a photo that a training image shows.
    workers : int
        Worker processes; 0 reads in this one.
    strict : bool
        End a pass at the first file that cannot be read instead of skipping it.

    Attributes
    ----------
    broken : dict of int to str
        The files that could not be read so far, by their index in the split, and why.

    Raises
    ------
    DataError
        If the split does not fill one batch, or `world_size` does not divide it.
    PhotoError
        From a pass, if no file can be read, or with `strict` if one cannot; in training, if no file of a class can.

    Warns
    -----
    UserWarning
        At the end of a pass, about files that could not be read and were not reported before.
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
        scale: float = 0.08,
        stratified: bool = False,
        workers: int = 4,
        rank: int = 0,
        world_size: int = 1,
        strict: bool = False,
    ) -> None:
        check_batch_size(batch_size, len(split), world_size)
        self.split, self.batch_size, self.seed, self.stratified = split, batch_size, seed, stratified
        self.device, self.rank, self.world_size, self.strict = device, rank, world_size, strict
        self.broken: dict[int, str] = {}
        self._batches: list[list[tuple[int, int]]] = []  # of the current pass
        self._pass = object()
        workers = min(workers, available_cores())
        largest = max(batch_size, 250 * world_size) * int(np.prod(split.image_shape))  # bytes, over all processes
        self._loader = DataLoader(
            _Images(split, seed, flip, scale),
            batch_sampler=self._batches,
            num_workers=workers,
            worker_init_fn=partial(ignore_signals, ending=process_ending() if workers else None),
            collate_fn=_to_tensors if shared_memory_holds(largest * (2 * workers + 1)) else _together,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator().manual_seed(seed),  # else each pass draws from the global one
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
        shares = [[(epoch, int(i)) for i in batch[self.rank :: self.world_size]] for batch in batches]
        return self._read(shares, training=True)

    def ordered(self, batch_size: int = 250) -> Iterator[Batch]:
        """Every image once, unchanged and in order: this process's share of the split, without broken files."""
        mine = range(self.rank, len(self.split), self.world_size)
        keys = [(-1, i) for i in mine]
        return self._read([keys[i : i + batch_size] for i in range(0, len(keys), batch_size)], training=False)

    def _read(self, batches: list[list[tuple[int, int]]], *, training: bool) -> Iterator[Batch]:
        self._batches[:] = batches
        self._pass = this_pass = object()
        known, seen = len(self.broken), 0
        for (pixels, labels, broken), batch in zip(self._loader, batches, strict=False):
            if self._pass is not this_pass:
                break
            self.broken |= broken
            if broken and (self.strict or (training and len(labels) < len(batch))):
                raise PhotoError(list(broken.values())[-1])
            if len(labels):
                seen += len(labels)
                images = torch.as_tensor(pixels).to(self.device, non_blocking=True).permute(0, 3, 1, 2)
                targets = torch.as_tensor(labels).to(self.device, non_blocking=True)
                yield (images / 255 - self._mean) / self._std, targets
        if self._pass is not this_pass:
            raise RuntimeError("a FolderLoader reads one pass at a time, and another one has begun")
        reasons = list(self.broken.values())
        if batches and not seen:
            raise PhotoError(f"none of the images can be read: {reasons[0]}")
        if new := reasons[known:]:
            one = len(new) == 1
            consequence = "others of their classes take their places" if training else "they are left out"
            if one:
                consequence = "another of its class takes its place" if training else "it is left out"
            listed = "; ".join([*new[:3], "…"] if len(new) > 3 else new)
            warnings.warn(
                f"{len(new)} of {len(self.split)} image files cannot be read, and {consequence}: {listed}", stacklevel=2
            )


def shared_memory_holds(size: int) -> bool:
    """Whether the shared memory of processes has room for `size` bytes, twice to be safe."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free > 2 * size
    except OSError:  # not on Linux: shared memory is bounded by other means
        return True


def _together(items: Sequence[Item]) -> Raw:
    """A batch as arrays, which processes exchange through a pipe."""
    kept = [(pixels, label) for pixels, label, _ in items if pixels is not None]
    broken = {index: reason for _, _, reasons in items for index, reason in reasons.items()}
    pixels = np.stack([image for image, _ in kept]) if kept else np.empty(0, np.uint8)
    return pixels, np.array([label for _, label in kept], np.int64), broken


def _to_tensors(items: Sequence[Item]) -> Raw:
    """A batch as tensors, which processes exchange through shared memory: without a copy, if there is room."""
    pixels, labels, broken = _together(items)
    return torch.as_tensor(pixels), torch.as_tensor(labels), broken
