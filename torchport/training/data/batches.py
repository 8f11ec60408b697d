"""Common to all loaders: the order of an epoch, the check of the batch size, and the interface for the loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .split import DataError

Batch = tuple[Tensor, Tensor]  # images (B, C, H, W) float, labels (B,) int64


class Loader(Protocol):
    """Batches of a split: shuffled and augmented by the epoch, or every image once in order."""

    def steps_per_epoch(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]: ...

    def ordered(self) -> Iterator[Batch]: ...


def epoch_order(labels: NDArray[np.int64], seed: int, epoch: int, stratified: bool = False) -> NDArray[np.int64]:
    """The order of an epoch: a permutation, with each class spread evenly over it if `stratified`.

    >>> order = epoch_order(np.repeat([0, 1], 50), seed=0, epoch=0, stratified=True)
    >>> [int(np.repeat([0, 1], 50)[order][i : i + 20].sum()) for i in range(0, 100, 20)]
    [10, 10, 10, 10, 10]
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(labels))
    if not stratified:
        return order
    position = np.empty(len(labels))  # of each sample in 0…1: evenly spaced within its class
    for label in np.unique(labels):
        members = order[labels[order] == label]
        position[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(position, kind="stable")


def check_batch_size(batch_size: int, available: int, world_size: int) -> None:
    """Refuse a batch larger than the split, or one that the processes cannot share equally."""
    if batch_size > available:
        raise DataError(f"batch_size is {batch_size}, but there are {available} images: lower batch_size")
    if batch_size % world_size:
        raise DataError(f"{world_size} processes do not divide the batch size {batch_size}")
