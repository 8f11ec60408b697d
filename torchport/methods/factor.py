"""The polar decomposition that every method returns."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Decomposition(Protocol):
    """The intermediate results of a method for `A = U P`: a named tuple of tensors, from which the adjoint is cheap."""

    def adjoint(self, A: Tensor, U: Tensor, G: Tensor) -> Tensor:
        """`Ā = U Φ + (I − UUᵀ) G P⁻¹` with `P Φ + Φ P = UᵀG − GᵀU`, (d, m); a curvature of zero counts as infinite."""
        ...


def tensors(known: Decomposition) -> tuple[Tensor, ...]:
    """The tensors of a decomposition."""
    return tuple(known)  # type: ignore[arg-type]


class Polar(NamedTuple):
    """The polar decomposition of A (…, d, m)."""

    factor: Tensor  # U (…, d, m)
    known: Decomposition
    gauge: Tensor | None = None  # (…, d, 1): the completion of U by a further column of the start, if there is one
    fallbacks: Tensor | int = 0  # 1 if another method replaced the chosen one; a tensor for a batch or an accelerator
