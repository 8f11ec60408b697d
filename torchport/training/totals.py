"""Sums over the batches of an epoch, kept on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..heads import Classifier


def batch_totals(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Loss, right answers and samples of a batch, summed, without waiting for the device.

    Of a soft label (N, K) the class with the largest share counts as the right answer.

    >>> batch_totals(torch.tensor(0.5), torch.eye(2), torch.tensor([[0.7, 0.3], [0.6, 0.4]])).tolist()
    [1.0, 1.0, 2.0]
    """
    right = (logits.argmax(dim=1) == (labels.argmax(dim=1) if labels.ndim == 2 else labels)).sum()
    count = loss.new_tensor(float(len(labels)))
    return torch.stack([loss.detach() * count, right, count]).double()


def is_finite(totals: Tensor, model: Classifier[Any]) -> bool:
    """Whether the loss, the weights and the head's state are finite, and may so be saved."""
    state = [totals, *model.parameters(), *model.head.buffers()]
    return bool(torch.stack([value.isfinite().all() for value in state]).all())
