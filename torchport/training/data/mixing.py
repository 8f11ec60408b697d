"""Augmentation of whole batches on the device: colour jitter, mixup and cutmix, defined as in timm.

mixup (Zhang et al. 2018, arXiv 1710.09412): x = λ x + (1−λ) x′ and y = λ y + (1−λ) y′ with λ ~ Beta(α, α), and x′
another image of the batch. cutmix (Yun et al. 2019, arXiv 1905.04899): a box of 1−λ of the area comes from x′ instead.
One λ is drawn per batch, and x′ runs through the batch backwards. With both, each batch has one of them, equally often.

All randomness comes from (seed, epoch, step), so that a run resumes at any step. Under several processes λ, the box and
the colours are those of one process, but partners come from each process's own share of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..run.settings import Settings
from .batches import Batch
from .images import ImageData

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue, as Pillow weighs them (ITU-R BT.601)
MIXING, COLOUR = 1, 2  # streams of random numbers beside the loaders' own


class Mixing:
    """Colour jitter, mixup and cutmix of the batches of an epoch.

    Parameters
    ----------
    settings : Settings
        `mixup`, `cutmix`, `color_jitter`, and the seed.
    data : ImageData
        Its number of classes, and the mean and std that images were normalised with.
    rank, world_size : int
        This process's share of every batch.

    Examples
    --------
    >>> from .split import Split
    >>> train = Split(np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 2]))
    >>> data = ImageData("zeros", train, None, None, ("a", "b", "c"), mean=(0.5,), std=(0.5,))
    >>> mixing = Mixing(Settings(mixup=0.8), data)
    >>> batch = torch.zeros(2, 1, 4, 4), torch.tensor([0, 2])
    >>> [labels.sum(1) for images, labels in mixing([batch], epoch=1)]
    [tensor([1., 1.])]
    """

    def __init__(self, settings: Settings, data: ImageData, *, rank: int = 0, world_size: int = 1) -> None:
        self.settings, self.num_classes, self.rank, self.world_size = settings, data.num_classes, rank, world_size
        self._mean, self._std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))

    def __call__(self, batches: Iterable[Batch], epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on, with labels (B,), or (B, K) where images are mixed."""
        settings = self.settings
        for step, (images, labels) in enumerate(batches, start):
            if settings.color_jitter:
                rng = np.random.default_rng([settings.seed, epoch, step, COLOUR])
                images = self._jittered(images, rng)
            if settings.mixup or settings.cutmix:
                rng = np.random.default_rng([settings.seed, epoch, step, MIXING])
                images, labels = self._mixed(images, labels, rng)
            yield images, labels

    def _mixed(self, images: Tensor, labels: Tensor, rng: np.random.Generator) -> Batch:
        cut = rng.random() < 0.5 if self.settings.mixup and self.settings.cutmix else bool(self.settings.cutmix)
        alpha = self.settings.cutmix if cut else self.settings.mixup
        share = float(rng.beta(alpha, alpha))  # λ
        if cut:
            images = images.clone()
            top, bottom, left, right = box(images.shape[-2], images.shape[-1], 1 - share, rng)
            images[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
        else:
            images = torch.lerp(images.flip(0), images, share)
        targets = F.one_hot(labels, self.num_classes).to(images.dtype)  # (B, K)
        return images, torch.lerp(targets.flip(0), targets, share)

    def _jittered(self, images: Tensor, rng: np.random.Generator) -> Tensor:
        """Brightness, contrast and saturation, each by its own factor per image, in an order drawn per batch."""
        amount = self.settings.color_jitter
        factors = rng.uniform(max(0.0, 1 - amount), 1 + amount, (3, len(images) * self.world_size))
        mine = torch.from_numpy(factors[:, self.rank :: self.world_size]).to(images)[..., None, None, None]
        mean, std = self._mean.to(images), self._std.to(images)
        pixels = images * std + mean
        for kind in rng.permutation(3):
            if kind == 0:
                other = torch.zeros_like(pixels)
            else:
                other = luma(pixels)
                other = other.mean((2, 3), keepdim=True) if kind == 1 else other
            pixels = torch.lerp(other.expand_as(pixels), pixels, mine[kind]).clamp(0, 1)
        return (pixels - mean) / std


def luma(pixels: Tensor) -> Tensor:
    """Grey values (B, 1, H, W) of images (B, C, H, W); those of one channel are grey."""
    if pixels.shape[1] != 3:
        return pixels.mean(1, keepdim=True)
    return (pixels * pixels.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def box(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of a box of that share of an image, about a random centre, cut off at the edges.

    >>> box(8, 8, 0.0, np.random.default_rng(0))
    (6, 6, 5, 5)
    """
    h, w = int(height * math.sqrt(share)), int(width * math.sqrt(share))
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(0, y - h // 2), min(height, y + h // 2)
    left, right = max(0, x - w // 2), min(width, x + w // 2)
    return top, bottom, left, right
