"""Batches from a split that stays on the device as uint8: one gather draws, shifts and mirrors a whole batch.

The split is stored padded and, where images are mirrored, once more as its mirror image: 480 MB for CIFAR.

No worker processes and no copies per image; a few integers per image cross from the host. All randomness comes from
(seed, epoch, step), so a run resumes exactly, at any step and with any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .batches import Batch, check_batch_size, epoch_order
from .split import DataError, Split


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training images; the defaults change nothing."""

    flip: bool = False
    crop_padding: int = 0
    rotation: float = 0.0  # degrees


class DeviceLoader:
    """A split on the device, and batches of it.

    Parameters
    ----------
    split : Split
    batch_size : int
        Images per step over all processes together.
    mean, std : per channel, on the 0…1 scale
    device : torch.device
    seed : int
    augmentation : Augmentation
    stratified : bool
        Spread each class evenly over an epoch's batches.
    rank, world_size : int
        This process takes the images `rank, rank + world_size, …` of every batch.

    Raises
    ------
    DataError
        If the split does not fill one batch, `world_size` does not divide it, or images are padded beyond their size.

    Examples
    --------
    >>> split = Split(np.zeros((6, 8, 8, 1), np.uint8), np.arange(6) % 3)
    >>> loader = DeviceLoader(split, 4, mean=(0.5,), std=(0.5,), device=torch.device("cpu"))
    >>> [images.shape for images, labels in loader.epoch(1)]
    [torch.Size([4, 1, 8, 8])]
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        seed: int = 0,
        augmentation: Augmentation = Augmentation(),
        stratified: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_batch_size(batch_size, len(split), world_size)
        self.batch_size, self.seed, self.stratified = batch_size, seed, stratified
        self.augmentation, self.device, self.rank, self.world_size = augmentation, device, rank, world_size
        self._order_labels = split.labels
        padding = augmentation.crop_padding
        if padding > min(split.image_shape[:2]):
            raise DataError(
                f"crop_padding is {padding}, more than the side of images of {split.image_shape[:2]} pixels"
            )
        images = torch.from_numpy(np.ascontiguousarray(split.images)).to(device)  # (N, H, W, C)
        padded = F.pad(images, (0, 0, padding, padding, padding, padding))
        if augmentation.flip:  # mirror images follow the images: mirroring is a choice of index
            padded = torch.cat([padded, padded.flip(2)])
        self.labels = torch.from_numpy(split.labels).to(device)
        _, height, width, channels = padded.shape
        self.images = padded[: len(split), padding : height - padding, padding : width - padding]
        # A row of W pixels from any pixel on, as a view: one gather of rows then shifts a whole batch.
        length = (width - 2 * padding) * channels
        self._rows = padded.view(-1).as_strided(((padded.numel() - length) // channels + 1, length), (channels, 1))
        self._padded_size = height, width
        # For a whole row of pixels, so that the inner loop of a multiplication is long.
        self._scale = (1 / (255 * torch.tensor(std))).to(device).repeat(length // channels)
        self._shift = (-torch.tensor(mean) / torch.tensor(std)).to(device).repeat(length // channels)

    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch; the rest of the permutation is left out."""
        return len(self.labels) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Training batches of one epoch from step `start`, this process's share of each."""
        order = torch.from_numpy(epoch_order(self._order_labels, self.seed, epoch, self.stratified))
        for step in range(start, self.steps_per_epoch()):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            rng = np.random.default_rng([self.seed, epoch, step])  # drawn for all processes, then shared out
            random = torch.from_numpy(rng.random((len(chosen), 4), dtype=np.float32))
            mine = slice(self.rank, None, self.world_size)
            index = chosen[mine].to(self.device, non_blocking=True)
            images = self._augmented(index, random[mine].to(self.device, non_blocking=True))
            yield images, self.labels[index]

    def ordered(self, batch_size: int = 1000) -> Iterator[Batch]:
        """Every image once, unchanged and in order: this process's share of the split."""
        mine = torch.arange(self.rank, len(self.labels), self.world_size, device=self.device)
        for index in mine.split(batch_size):
            yield self._normalised(self.images[index]), self.labels[index]

    def _normalised(self, images: Tensor) -> Tensor:
        pixels = images.flatten(2).float().mul_(self._scale).add_(self._shift)  # (B, H, W C)
        return pixels.view(images.shape).permute(0, 3, 1, 2)  # (B, C, H, W), channels last in memory

    def _augmented(self, index: Tensor, random: Tensor) -> Tensor:
        _, height, width, channels = self.images.shape
        padded_height, padded_width = self._padded_size
        top, left = (random[:, 1:3] * (2 * self.augmentation.crop_padding + 1)).long().T[:, :, None]  # (B, 1) each
        if self.augmentation.flip:
            index = index + len(self.labels) * (random[:, 0] < 0.5)
        rows = index[:, None] * padded_height + top + torch.arange(height, device=self.device)  # (B, H)
        pixels = self._rows.index_select(0, (rows * padded_width + left).flatten())
        return self._rotated(self._normalised(pixels.view(-1, height, width, channels)), random)

    def _rotated(self, images: Tensor, random: Tensor) -> Tensor:
        if not self.augmentation.rotation:
            return images
        angle = (2 * random[:, 3] - 1) * math.radians(self.augmentation.rotation)
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        turn = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)  # (B, 2, 3)
        grid = F.affine_grid(turn, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
