"""After training: the implicit head's W and b from one exact pass, instead of from running means."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..collapse import NeuralCollapseMeter
from ..heads import Classifier, ImplicitETFHead


@torch.no_grad()
def recalibrate_head(model: Classifier, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set the means of an implicit head to those of all samples, and W and b to what follows from them.

    Parameters
    ----------
    model : Classifier
        With an `ImplicitETFHead`; left in eval mode.
    batches : iterable of (images (B, C, H, W), labels (B,))
    """
    model.eval()
    head = model.head
    assert isinstance(head, ImplicitETFHead)
    meter = NeuralCollapseMeter(head.num_classes, head.num_features, device=head.weight.device)
    for images, labels in batches:
        meter.update(head.normalise(model.backbone(images)), labels)
    meter.all_reduce()
    class_means = meter.class_means()  # (K, d)
    share = meter.counts.double() / meter.counts.sum()
    head.recalibrate(class_means.to(head.weight.dtype), (share @ class_means).to(head.weight.dtype))
