"""The learned head: a linear classifier with unit rows and no bias on normalised features, the usual baseline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .normalised import NormalisedHead, Temperature


class LearnedHead(NormalisedHead):
    """A learned linear classifier whose rows are normalised where they are used, without bias.

    Parameters
    ----------
    num_features, num_classes : int
        d and K, of any size.
    temperature
        As for `NormalisedHead`.

    Attributes
    ----------
    rows : (K, d) parameter
        The rows before normalisation; `weight` has them at unit length.

    Examples
    --------
    >>> head = LearnedHead(num_features=8, num_classes=3)
    >>> head(torch.randn(4, 8)).shape, head.weight.norm(dim=1).allclose(torch.ones(3))
    (torch.Size([4, 3]), True)
    """

    kind = "learned"

    def __init__(self, num_features: int, num_classes: int, temperature: Temperature = None) -> None:
        super().__init__(num_features, num_classes, temperature)
        self.rows = nn.Parameter(F.normalize(torch.randn(num_classes, num_features), dim=1))
        self.register_buffer("bias", torch.zeros(num_classes))
        self.register_load_state_dict_pre_hook(_rows_were_the_weight)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W (K, d) with unit rows, differentiable in `rows`."""
        return F.normalize(self.rows, dim=1)


def _rows_were_the_weight(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Version 0.1.0 kept the rows, normalised after every step, under the name weight."""
    if f"{prefix}weight" in state_dict:
        state_dict[f"{prefix}rows"] = state_dict.pop(f"{prefix}weight")
