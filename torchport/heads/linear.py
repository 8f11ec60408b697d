"""The linear head: `nn.Linear` with bias on raw features, the usual classifier."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .base import Head
from .growing import lengthened, warn_of_new_parameters


class LinearHead(Head):
    """A linear classifier with bias on raw features (N, d), neither normalised nor scaled.

    Parameters
    ----------
    num_features, num_classes : int
        d and K, of any size.

    Raises
    ------
    ValueError
        If d < 1 or K < 2.

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
        self.register_parameter("weight", linear._parameters["weight"])
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W (K, d): the parameter, with pinned rows in place of its first ones."""
        return self._with_pinned(self._rows())

    def grow(self, n: int) -> None:
        """Add rows and biases, initialised as by `nn.Linear`."""
        new = nn.Linear(self.num_features, n)
        self.register_parameter("weight", lengthened(self._rows(), new.weight))
        self.bias = lengthened(self.bias, new.bias)
        warn_of_new_parameters(type(self).__name__, "weight and bias")

    def _rows(self) -> Tensor:
        parameter: Any = self.__getattr__("weight")  # the parameter, not the property
        return parameter  # type: ignore[no-any-return]
