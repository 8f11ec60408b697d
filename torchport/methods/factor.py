"""A polar decomposition, as every method returns it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Decomposition(Protocol):
    """What a method knows of `A = U P` besides U: a named tuple of tensors, and the adjoint that they make cheap."""

    def adjoint(self, A: Tensor, U: Tensor, G: Tensor) -> Tensor:
        """`Ā = U Φ + (I − UUᵀ) G P⁻¹` with `P Φ + Φ P = UᵀG − GᵀU`, (d, m); a curvature of zero counts as infinite."""
        ...


def tensors(known: Decomposition) -> tuple[Tensor, ...]:
    """What it is made of."""
    return tuple(known)  # type: ignore[arg-type]


class Polar(NamedTuple):
    """The polar decomposition of A (…, d, m)."""

    factor: Tensor  # U (…, d, m)
    known: Decomposition
    gauge: Tensor | None = None  # (…, d, 1): what completes U beyond A's own columns, where that was asked for
    fallbacks: Tensor | int = (
        0  # 1 if another method had to step in; a tensor in a batch (…), and where only the device knows
    )
