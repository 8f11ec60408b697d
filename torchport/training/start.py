"""The head's start: class means, W and b from one pass over the training images, before the first step.

With a pretrained backbone this gives every head the same information. Implicit, class-mean and tight-frame heads
continue averaging from these means; a fixed ETF is aligned once and then kept; the rows of a learned head start as the
class means.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..heads import Classifier, FixedETFHead
from .recalibrate import exact_means
from .run.settings import Settings


def start_head(model: Classifier[Any], settings: Settings, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Align the head of a run with its training images if the settings require it."""
    if settings.aligned:
        align_head(model, batches)


@torch.no_grad()
def align_head(model: Classifier[Any], batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set a head from the class means of its features on labelled images.

    Parameters
    ----------
    model : Classifier
        With any head but `LinearHead`, which has no class means. Computes features in eval mode and is left in it.
    batches : iterable of (images (B, C, H, W), labels (B,))
        Of the whole training split, without augmentation; under several processes, the batches of all of them count.

    Examples
    --------
    >>> from ..heads import LearnedHead
    >>> model = Classifier(torch.nn.Flatten(), LearnedHead(num_features=4, num_classes=2))
    >>> align_head(model, [(torch.eye(4).reshape(4, 1, 2, 2), torch.tensor([0, 0, 1, 1]))])
    >>> model.head.weight.tolist()
    [[0.5, 0.5, -0.5, -0.5], [-0.5, -0.5, 0.5, 0.5]]
    """
    rows, counts = exact_means(model, batches)
    model.head.set_means(rows, counts)
    if isinstance(model.head, FixedETFHead):
        model.head.align()
