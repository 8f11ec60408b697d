"""A polar decomposition, as every method returns it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Decomposition(Protocol):
    """What a method knows of `A = U P` besides U: a named tuple of tensors, and the adjoint that they make cheap."""

    def adjoint(self, A: Tensor, U: Tensor, G: Tensor) -> Tensor:
        """`Ā = U Φ + (I − UUᵀ) G P⁻¹` with `P Φ + Φ P = UᵀG − GᵀU`, (d, m); a curvature of zero counts as infinite."""
        ...


class Polar(NamedTuple):
    """The polar decomposition of A (d, m)."""

    factor: Tensor  # U (d, m)
    gauge: Tensor  # (d, g): what completes U beyond A's own columns, g = 0 or 1
    fallbacks: Tensor  # () int64: 1 if another method had to step in
    known: Decomposition


def counted(A: Tensor, fallbacks: int = 0) -> Tensor:
    """The `fallbacks` of a decomposition of A."""
    return torch.full((), fallbacks, dtype=torch.int64, device=A.device)
