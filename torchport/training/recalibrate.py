"""Recalibration after training: class means, W and b from one exact pass instead of running means."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..collapse import NeuralCollapseMeter
from ..heads import AveragingHead, Classifier


@torch.no_grad()
def recalibrate_head(model: Classifier[Any], batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set a head's class means to those of all samples, and W and b accordingly.

    Parameters
    ----------
    model : Classifier
        With an `AveragingHead`; left in eval mode.
    batches : iterable of (images (B, C, H, W), labels (B,))
        Under several processes, the batches of all of them count.
    """
    assert isinstance(model.head, AveragingHead)
    model.head.set_means(*exact_means(model, batches))


@torch.no_grad()
def exact_means(model: Classifier[Any], batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Exact class means (K, d) of the classifier's input over all samples, and the number of samples per class (K,).

    The model computes in eval mode and is left in it.
    """
    model.eval()
    head = model.head
    meter = NeuralCollapseMeter(head.num_features, head.num_classes, device=head.weight.device)
    for images, labels in batches:
        meter.update(head.normalise(model.backbone(images)), labels)
    meter.all_reduce()
    return meter.class_mean_rows(), meter.counts
