"""The polar factor from the eigenbasis V of an earlier, similar problem: `P = V (diag(D) + Y) Vᵀ`, Y small.

The columns of B = AV are nearly orthogonal. `D + Y` is the square root of `BᵀB`, with D² the diagonal of the latter and
C the rest: fixed-point iteration solves `DY + YD = C − Y²`, and the inverse of `D + Y` is approximated by the first
terms of `(I − E + E² − …) D⁻¹` with `E = D⁻¹Y`. As in one-sided Jacobi methods, columns of any length keep their own
relative accuracy. All steps are matrix products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .factor import Polar
from .linalg import gram, pseudo_inverse

# From benchmarks/layer.py on a CPU: with fewer columns a stale eigenbasis saves less than 0.1 ms per step. A new
# eigendecomposition is faster than LAPACK's SVD at every size from (4, 3) on.
SMALLEST_FOR_WARM_START = 64

# Columns of B shorter than this share of the longest lose too many digits to its rounding in float32; the cold method
# computes its products in float64.
WEAKEST = 1e-2

# The largest distance ‖Y/D‖_F/√m of a stale basis from diagonalising P, and the passes of the iterations that correct
# it, each of which gains about this factor. Beyond it, a new decomposition costs no more than further passes.
STALENESS = {torch.float32: (1e-3, 1), torch.float64: (1e-5, 2)}


class Warm(NamedTuple):
    """`A = L (diag(D) + Y) Vᵀ`."""

    left: Tensor  # L = U V (d, m)
    sigma: Tensor  # D (m,), near the singular values
    basis: Tensor  # V (m, m), orthonormal
    coupling: Tensor  # Y (m, m)
    inverse: Tensor  # (diag(D) + Y)⁻¹ (m, m)

    def adjoint(self, A: Tensor, U: Tensor, G: Tensor) -> Tensor:
        """`Ā = (L Φ + (G V − L T) (D+Y)⁻¹) Vᵀ` with `T = LᵀG V` and `(D+Y)Φ + Φ(D+Y) = T − Tᵀ`, by iteration."""
        L, D, V, Y, inverse = self
        weights = pseudo_inverse(D[:, None] + D)
        GV = G @ V
        T = L.mT @ GV
        S = T - T.mT
        Phi = S * weights
        for _ in range(STALENESS[G.dtype][1]):
            YPhi = Y @ Phi
            Phi = (S - YPhi + YPhi.mT) * weights
        return (GV @ inverse).addmm_(L, Phi - T @ inverse) @ V.mT


def by_basis(A: Tensor, V: Tensor) -> Polar | None:
    """The polar decomposition of A (d, m) from an eigenbasis V (m, m) of a similar problem; None if it is too stale."""
    bound, passes, tolerance = *STALENESS[A.dtype], 10 * torch.finfo(A.dtype).eps
    B = A @ V
    C = gram(B)
    D = C.diagonal().sqrt()
    C.fill_diagonal_(0.0)
    weights = (D[:, None] + D).reciprocal_()
    Y, root = C * weights, len(D) ** 0.5
    previous, change = 1.0, float(torch.linalg.vector_norm(Y / D)) / root
    if not change <= min(bound, 0.5 / root):  # false for NaN, from a zero column; ‖E‖ ≤ ½ makes D + Y positive definite
        return None
    if A.dtype == torch.float32 and not float(D.min()) > WEAKEST * float(D.max()):
        return None
    while change * min(change / previous, 1.0) > tolerance:  # the change expected in the next step
        Y_next = torch.addmm(C, Y, Y, alpha=-1).mul_(weights)
        previous, change = change, float(torch.linalg.vector_norm((Y_next - Y).div_(D))) / root
        Y = Y_next
        if not change <= 0.25 * previous:
            return None
    E, eye = Y / D[:, None], torch.eye(len(D), dtype=A.dtype, device=A.device)
    series = eye - E
    for _ in range(passes):
        series = torch.addmm(eye, E, series, alpha=-1)
    inverse = series / D
    left = B @ inverse
    return Polar(left @ V.mT, Warm(left, D, V.clone(), Y, inverse))
