"""After training: an implicit head's class means, W and b from one exact pass instead of running means."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..collapse import NeuralCollapseMeter
from ..heads import Classifier, ImplicitETFHead


@torch.no_grad()
def recalibrate_head(model: Classifier[Any], batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set an implicit head's class means to those of all samples, and solve for its W and b.

    Parameters
    ----------
    model : Classifier
        With an `ImplicitETFHead`; left in eval mode.
    batches : iterable of (images (B, C, H, W), labels (B,))
        Under several processes, the batches of all of them count.
    """
    model.eval()
    head = model.head
    assert isinstance(head, ImplicitETFHead)
    meter = NeuralCollapseMeter(head.num_features, head.num_classes, device=head.weight.device)
    for images, labels in batches:
        meter.update(head.normalise(model.backbone(images)), labels)
    meter.all_reduce()
    head.set_means(meter.class_mean_rows(), meter.counts)
