"""The loader that fits a split: on the device for images in memory, with worker processes for image files."""

from __future__ import annotations

from typing import Any

import torch

from ..run.settings import SCALE, Settings
from .batches import Loader
from .device_loader import Augmentation, DeviceLoader
from .folder_loader import FolderLoader
from .folder_split import FolderSplit
from .images import AnySplit, ImageData
from .split import DataError
from .ufm import IndexLoader


def make_loader(
    split: AnySplit,
    data: ImageData,
    settings: Settings,
    *,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """The loader for a split of a data set.

    Parameters
    ----------
    split : Split or FolderSplit
        `data.train`, or another split, which is only read in order.
    data : ImageData
    settings : Settings
    device : torch.device
    rank, world_size : int
        This process's share of every batch.

    Raises
    ------
    DataError
        If the batch size does not fit the split or the processes, or an augmentation is for the other kind of data.
    """
    if data.name == "ufm":
        if settings.mixup or settings.cutmix or settings.color_jitter:
            raise DataError("data = 'ufm' has no images: leave mixup, cutmix and color_jitter out")
        return IndexLoader(torch.from_numpy(split.labels).to(device))
    shared: dict[str, Any] = {
        "mean": data.mean,
        "std": data.std,
        "device": device,
        "seed": settings.seed,
        "stratified": settings.stratified,
        "rank": rank,
        "world_size": world_size,
    }
    batch_size = settings.batch_size if split is data.train else world_size
    if isinstance(split, FolderSplit):
        if settings.crop_padding or settings.rotation:
            raise DataError(
                "image folders are augmented by random crops and flip: crop_padding and rotation are not for them"
            )
        shared |= {"flip": settings.flip, "scale": settings.scale, "workers": settings.workers}
        return FolderLoader(split, batch_size, strict=settings.strict_images, **shared)
    if settings.scale != SCALE:
        raise DataError(
            f"scale = {settings.scale:g} is for the random crops of image folders, and {data.name} is in memory: leave "
            f"scale out, or set its default (--scale {SCALE:g}); crop_padding shifts images"
        )
    augmentation = Augmentation(settings.flip, settings.crop_padding, settings.rotation)
    return DeviceLoader(split, batch_size, augmentation=augmentation, **shared)
