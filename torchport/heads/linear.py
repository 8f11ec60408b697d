"""The linear head: `nn.Linear` with bias on raw features, what people have."""

from __future__ import annotations

from torch import nn

from .base import Head


class LinearHead(Head):
    """A linear classifier with bias on features as they come: neither normalised nor scaled.

    Parameters
    ----------
    num_features, num_classes : int
        d and K, of any size.

    Examples
    --------
    >>> import torch
    >>> LinearHead(num_features=8, num_classes=3)(torch.randn(4, 8)).shape
    torch.Size([4, 3])
    """

    kind = "linear"

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__(num_features, num_classes)
        linear = nn.Linear(num_features, num_classes)
        self.weight, self.bias = linear.weight, linear.bias
