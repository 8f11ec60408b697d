"""The unconstrained features model: no network and no images, every sample's features are free parameters.

It isolates the geometry of head and loss (Mixon et al. 2020, arXiv 2011.11619; Zhu et al. 2021, arXiv 2105.02375). A
step takes all samples at once, so an epoch is one iteration.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..run.settings import Settings, SettingsError
from .images import ImageData
from .split import Split


class IndexLoader:
    """All samples at once, as (indices (N,), labels (N,)), with the interface of `DeviceLoader`."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def steps_per_epoch(self) -> int:
        """One: the whole set."""
        return 1

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The one batch, or none if `start` is past it."""
        return self.ordered() if start == 0 else iter(())

    def ordered(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The same batch."""
        yield torch.arange(len(self.labels), device=self.labels.device), self.labels


def ufm_data(settings: Settings) -> ImageData:
    """Labels for K classes of n samples, without validation and test splits.

    Raises
    ------
    SettingsError
        If `samples_per_class` is not given, the batch is not the whole set, or validation data are to be held out.
    """
    K, n = settings.num_classes, settings.samples_per_class
    if n < 1:
        raise SettingsError("data = 'ufm' needs samples_per_class: the number of free features per class")
    if settings.batch_size != K * n:
        raise SettingsError(f"data = 'ufm' takes all samples at once: batch_size has to be {K * n} (K n)")
    if settings.val_fraction:
        raise SettingsError("data = 'ufm' has no images to hold out: leave val_fraction out")
    labels = np.repeat(np.arange(K), n)
    split = Split(np.zeros((K * n, 1, 1, 1), np.uint8), labels)
    return ImageData("ufm", split, None, None, tuple(map(str, range(K))), mean=(0.0,), std=(1.0,))
