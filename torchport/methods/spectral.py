"""From singular values: `A = L diag(σ) Vᵀ`, so that `U = L Vᵀ` and `P = V diag(σ) Vᵀ`.

`by_svd` asks LAPACK for them in float64; `by_eigh` takes them from the eigendecomposition of AᵀA, which is quicker and
squares the condition number.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .factor import Polar, counted
from .linalg import complete_frame, gram, pseudo_inverse, without_rounding
from .warm import by_basis


class Spectral(NamedTuple):
    """`A = L diag(σ) Vᵀ`, with exact zeros among σ where A is rank-deficient."""

    left: Tensor  # L = U V (d, m)
    sigma: Tensor  # (m,)
    basis: Tensor  # V (m, m)

    def adjoint(self, A: Tensor, U: Tensor, G: Tensor) -> Tensor:
        """`Ā = (L Φ + (G V − L T) diag(σ)⁻¹) Vᵀ` with `T = LᵀG V` and `Φ = (T − Tᵀ)/(σᵢ + σⱼ)`."""
        L, sigma, V = self
        inverse = pseudo_inverse(sigma)
        GV = G @ V
        T = L.mT @ GV
        Phi = (T - T.mT) * pseudo_inverse(sigma[:, None] + sigma)
        return GV.mul_(inverse).addmm_(L, Phi.sub_(T * inverse)) @ V.mT


def by_svd(A: Tensor, start: Tensor) -> Polar:
    """LAPACK's singular values in float64: the yardstick, and the only method for a rank-deficient A.

    Of its polar factors the one nearest to `start` (d, m) or (d, m+1) is taken.
    """
    m = A.shape[1]
    left, sigma, Vt = torch.linalg.svd(A.double(), full_matrices=False)
    sigma = without_rounding(sigma, A)
    rank = int(sigma.count_nonzero())
    gauge = left[:, :0]
    if rank == m:
        U = left @ Vt
    else:
        U = complete_frame(left[:, :rank], Vt[:rank].mT, start.double())
        U, gauge = U[:, :m], U[:, m:]
        left = U @ Vt.mT
    return _polar(A, U, left, sigma, Vt.mT, gauge)


def by_eigh(A: Tensor) -> Polar | None:
    """From the eigendecomposition of AᵀA, formed and decomposed in float64; None where that is not exact enough.

    The Gram matrix squares the condition number: float64 leaves float32 problems enough digits up to 3e5, and for
    float64 ones the eigenbasis is taken as a stale one, which restores them.
    """
    squares, V = torch.linalg.eigh(gram(A.double()))
    if not bool(squares[0] > 1e-11 * squares[-1]):
        return None
    if A.dtype == torch.float64:
        return by_basis(A, V)
    sigma, V = squares.sqrt().to(A.dtype), V.to(A.dtype, memory_format=torch.contiguous_format)
    left = (A @ V).div_(sigma)
    return _polar(A, left @ V.mT, left, sigma, V, A[:, :0])


def spectral_polar(A: Tensor, U: Tensor, gauge: Tensor) -> Polar:
    """The decomposition of A whose polar factor U (d, m), in float64, another method has found."""
    P = U.mT @ A.double()
    sigma, V = torch.linalg.eigh(0.5 * (P + P.mT))
    return _polar(A, U, U @ V, without_rounding(sigma, A), V, gauge)


def _polar(A: Tensor, U: Tensor, left: Tensor, sigma: Tensor, V: Tensor, gauge: Tensor) -> Polar:
    """In A's dtype, contiguous, and no two of them in one piece of memory, as an operator's results have to be."""
    U, left, V = (x.to(A.dtype, memory_format=torch.contiguous_format) for x in (U, left, V))
    gauge = gauge.to(A.dtype, memory_format=torch.contiguous_format, copy=True)
    return Polar(U.contiguous(), gauge, counted(A), Spectral(left.contiguous(), sigma.to(A.dtype), V.contiguous()))
