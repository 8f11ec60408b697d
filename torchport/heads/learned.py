"""The learned head: a linear classifier without bias on normalised features, the usual baseline."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .base import Head


class LearnedHead(Head):
    """A learned linear classifier with unit rows and no bias.

    Parameters
    ----------
    num_features, num_classes, temperature
        As for `Head`.

    Examples
    --------
    >>> head = LearnedHead(num_features=8, num_classes=3)
    >>> head(torch.randn(4, 8)).shape
    torch.Size([4, 3])
    """

    kind = "learned"

    def __init__(self, num_features: int, num_classes: int, temperature: float = 5.0) -> None:
        super().__init__(num_features, num_classes, temperature)
        self.weight = nn.Parameter(F.normalize(torch.randn(num_classes, num_features), dim=1))
        self.register_buffer("bias", torch.zeros(num_classes))

    @torch.no_grad()
    def after_step(self) -> None:
        """Re-normalise the rows."""
        self.weight.copy_(F.normalize(self.weight, dim=1))
