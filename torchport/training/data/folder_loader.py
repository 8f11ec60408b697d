"""Batches of image files, read by worker processes.

Every random choice comes from (seed, epoch, image), so batches do not depend on the number of workers, and a run can
go on at any step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ....common.errors import UserError
from ....common.machine import available_cores
from .batches import Batch, check_batch_size, epoch_order
from .folder_split import FolderSplit


class _Images(Dataset[tuple[Tensor, int]]):
    """What worker processes hold; the key of an item is (epoch, index), with epoch −1 for the image unchanged."""

    def __init__(self, split: FolderSplit, seed: int, flip: bool) -> None:
        self.split, self.seed, self.flip = split, seed, flip

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        rng = None if epoch < 0 else np.random.default_rng([self.seed, epoch, index])
        return torch.from_numpy(self.split.read(index, rng, self.flip).copy()), int(self.split.labels[index])


class FolderLoader:
    """Batches of an image folder, with the interface of `DeviceLoader`, but one pass at a time.

    Worker processes, at most one per processor core, stay from one pass to the next.

    Parameters
    ----------
    split : FolderSplit
    batch_size, mean, std, device, seed, stratified, rank, world_size
        As for `DeviceLoader`.
    flip : bool
        Mirror half of the training images.
    workers : int
        Worker processes; 0 reads in this one.

    Raises
    ------
    DataError
        If the split does not fill one batch, or `world_size` does not divide it.
    PhotoError
        From a pass, if a file cannot be read as an image.
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
        world_size: int = 1,
    ) -> None:
        check_batch_size(batch_size, len(split), world_size)
        self.split, self.batch_size, self.seed, self.stratified = split, batch_size, seed, stratified
        self.device, self.rank, self.world_size = device, rank, world_size
        self._batches: list[list[tuple[int, int]]] = []  # of the current pass
        self._pass = object()
        workers = min(workers, available_cores())
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
        return self._read([[(epoch, int(i)) for i in batch[self.rank :: self.world_size]] for batch in batches])

    def ordered(self, batch_size: int = 250) -> Iterator[Batch]:
        """Every image once, unchanged and in order: this process's share of the split."""
        mine = range(self.rank, len(self.split), self.world_size)
        keys = [(-1, i) for i in mine]
        return self._read([keys[i : i + batch_size] for i in range(0, len(keys), batch_size)])

    def _read(self, batches: list[list[tuple[int, int]]]) -> Iterator[Batch]:
        self._batches[:] = batches
        self._pass = this_pass = object()
        try:
            for images, labels in self._loader:
                if self._pass is not this_pass:
                    break
                pixels = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
                yield (pixels / 255 - self._mean) / self._std, labels.to(self.device, non_blocking=True)
        except UserError as error:  # the message from a worker process comes after its traceback
            kind = type(error)
            raise kind(str(error).rstrip().splitlines()[-1].rpartition(f"{kind.__name__}: ")[2]) from None
        if self._pass is not this_pass:
            raise RuntimeError("a FolderLoader reads one pass at a time, and another one has begun")
