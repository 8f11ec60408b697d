"""From a stale eigenbasis V of P, of an earlier and similar problem: `P = V (diag(D) + Y) Vᵀ` with a small coupling Y.

The columns of B = AV are nearly orthogonal. The wanted `D + Y` is the square root of `BᵀB`, D² its diagonal and C the
rest: `DY + YD = C − Y²` is solved by fixed-point iteration, and its inverse is the first terms of
`(I − E + E² − …) D⁻¹` with `E = D⁻¹Y`. As in one-sided Jacobi methods columns of any length keep their own relative
accuracy; all is products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .factor import Polar
from .linalg import gram, pseudo_inverse

# Read off benchmarks/layer.py on a CPU: with fewer columns a stale eigenbasis saves less than 0.1 ms a step. Against
# LAPACK's SVD a new eigendecomposition is quicker at every size from (4, 3) on.
SMALLEST_FOR_WARM_START = 64

# Columns of B below this share of the longest carry so much of its rounding that float32 does not do: the cold
# method, whose products are float64, is exact there.
WEAKEST = 1e-2

# How far a stale basis may be from diagonalising P, ‖Y/D‖_F/√m, and the passes of the iterations that make up for it,
# each of which gains about this factor. Beyond it a new decomposition costs no more than further passes.
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
    if not change <= min(bound, 0.5 / root):  # or NaN, from a zero column; ‖E‖ ≤ ½ makes D + Y positive definite
        return None
    if A.dtype == torch.float32 and not float(D.min()) > WEAKEST * float(D.max()):
        return None
    while change * min(change / previous, 1.0) > tolerance:  # what the next step would still change
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
