"""Sums over the batches of an epoch, kept on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..heads import Classifier


def batch_totals(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Sums of loss, correct answers and samples over a batch, without synchronising.

    For soft labels (N, K), the class with the largest share is the correct answer.

    >>> batch_totals(torch.tensor(0.5), torch.eye(2), torch.tensor([[0.7, 0.3], [0.6, 0.4]])).tolist()
    [1.0, 1.0, 2.0]
    """
    right = (logits.argmax(dim=1) == (labels.argmax(dim=1) if labels.ndim == 2 else labels)).sum()
    count = loss.new_tensor(float(len(labels)))
    return torch.stack([loss.detach() * count, right, count]).double()


class Losses:
    """The losses of recent steps, kept on the device until they are checked.

    >>> losses = Losses()
    >>> losses.add(0, torch.tensor(0.5)), losses.add(1, torch.tensor(torch.inf)), losses.not_finite()
    (None, None, 2)
    """

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._losses: list[Tensor] = []

    def add(self, step: int, loss: Tensor) -> None:
        """Keep the loss of a step, from 0 on, or of one of its microbatches."""
        self._steps.append(step)
        self._losses.append(loss.detach())

    def not_finite(self) -> int:
        """The first step, from 1 on, whose loss is not finite; 0 if all are finite, which also clears the list."""
        if self._losses:
            finite = torch.stack(self._losses).isfinite().tolist()
            if not all(finite):
                return self._steps[finite.index(False)] + 1
        self._steps, self._losses = [], []
        return 0


def is_finite(totals: Tensor, model: Classifier[Any]) -> bool:
    """Whether the loss, the weights and the head's state are finite, so that they may be saved."""
    state = [totals, *model.parameters(), *model.head.buffers()]
    return bool(torch.stack([value.isfinite().all() for value in state]).all())
