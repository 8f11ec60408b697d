"""Free features: the "network" of the unconstrained features model, which `data.ufm` describes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FreeFeatures(nn.Module):
    """Features (N, d) that are the parameters themselves; the "images" are the indices of samples.

    Examples
    --------
    >>> FreeFeatures(num_samples=6, num_features=4)(torch.tensor([5, 0])).shape
    torch.Size([2, 4])
    """

    def __init__(self, num_samples: int, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        self.features = nn.Parameter(torch.randn(num_samples, num_features) / num_features**0.5)

    def forward(self, index: Tensor) -> Tensor:
        """Indices (B,) to features (B, d)."""
        return self.features[index]
