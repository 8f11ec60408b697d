"""The polar factor from singular values: `A = L diag(σ) Vᵀ`, so that `U = L Vᵀ` and `P = V diag(σ) Vᵀ`.

`by_svd` uses LAPACK's SVD in float64, `by_eigh` the eigendecomposition of AᵀA, which is faster but squares the
condition number.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .factor import Polar
from .linalg import complete_frame, gram, pseudo_inverse, without_rounding
from .warm import by_basis


class Spectral(NamedTuple):
    """`A = L diag(σ) Vᵀ` of full rank."""

    left: Tensor  # L = U V (d, m)
    sigma: Tensor  # (m,)
    basis: Tensor  # V (m, m)

    def adjoint(self, A: Tensor, U: Tensor, G: Tensor) -> Tensor:
        """`Ā = (L Φ + (G V − L T) diag(σ)⁻¹) Vᵀ` with `T = LᵀG V` and `Φ = (T − Tᵀ)/(σᵢ + σⱼ)`."""
        L, sigma, V = self
        GV = G @ V
        T = L.mT @ GV
        Phi = (T - T.mT).div_(sigma[:, None] + sigma)
        if len(L) == len(V):  # the normal part is zero: its rounding must not be divided by σ
            return L @ Phi @ V.mT
        return GV.div_(sigma).addmm_(L, Phi.sub_(T.div_(sigma))) @ V.mT


class Deficient(NamedTuple):
    """`A = L diag(σ) Vᵀ` with exact zeros among σ: a curvature of zero counts as infinite, with a zero derivative.

    Batches of any rank are of this kind.
    """

    left: Tensor  # (…, d, m)
    sigma: Tensor  # (…, m)
    basis: Tensor  # (…, m, m)

    def adjoint(self, A: Tensor, U: Tensor, G: Tensor) -> Tensor:
        """As for `Spectral`, with pseudo-inverses; products of (m, m) matrices come first, the cheapest in a batch."""
        L, sigma, V = self
        inverse = pseudo_inverse(sigma)[..., None, :]
        GV = G @ V  # not V diag(σ)⁻¹ Vᵀ first: small columns of GV keep their digits beside a large 1/σ
        T = L.mT @ GV
        Phi = (T - T.mT) * pseudo_inverse(sigma[..., :, None] + sigma[..., None, :])
        if L.shape[-2] == L.shape[-1]:
            return L @ (Phi @ V.mT)
        return GV @ (V * inverse).mT + L @ ((Phi - T * inverse) @ V.mT)


def by_svd(A: Tensor, start: Tensor) -> Polar:
    """From LAPACK's SVD in float64: the standard of accuracy, and the fallback for a rank-deficient A.

    For a rank-deficient A, the polar factor nearest to `start` (d, m) or (d, m+1) is returned.
    """
    m = A.shape[1]
    left, sigma, Vt = torch.linalg.svd(A.double(), full_matrices=False)
    sigma = without_rounding(sigma, A)
    rank = int(sigma.count_nonzero())
    if rank == m:
        return in_dtype_of(A, left @ Vt, left, sigma, Vt.mT)
    whole = complete_frame(left[:, :rank], Vt[:rank].mT, start.double())
    U, gauge = whole[:, :m], whole[:, m:]
    return in_dtype_of(A, U, U @ Vt.mT, sigma, Vt.mT, gauge)


def by_eigh(A: Tensor) -> Polar | None:
    """From the eigendecomposition of AᵀA, computed in float64; None if this is not accurate enough.

    The Gram matrix squares the condition number. For float32 problems, float64 has enough digits up to a condition
    number of 1e5; for float64 problems, the eigenbasis is treated as a stale one, which restores the digits.
    """
    A64 = A.double()
    squares, V = torch.linalg.eigh(gram(A64))
    least, most = squares[0].item(), squares[-1].item()
    if not (least > 1e-10 * most and 1e-250 < most < 1e250):  # where squares neither underflow nor overflow
        return None
    if A.dtype == torch.float64:
        return by_basis(A, V)
    if least > 1e-3 * most:  # condition number 30: a product in float32 loses no more than 2e-6
        sigma, V = squares.sqrt_().to(A.dtype), V.to(A.dtype)  # V keeps LAPACK's strides
        left = (A @ V).div_(sigma)
        return Polar(left @ V.mT, Spectral(left, sigma, V))
    left = A64 @ V
    # The lengths of its columns have more correct digits than the roots of `squares`, which are cheaper.
    sigma = squares.sqrt_() if least > 1e-8 * most else torch.linalg.vector_norm(left, dim=0)
    left, V = left.div_(sigma).to(A.dtype), V.to(A.dtype)
    return Polar(left @ V.mT, Spectral(left, sigma.to(A.dtype), V))


def all_by_eigh(A: Tensor) -> tuple[Polar, Tensor]:
    """The polar decompositions of A (n, d, m) in float32 as by `by_eigh`, and which (n,) are accurate enough."""
    A64 = A.double()
    squares, V = torch.linalg.eigh(A64.mT @ A64)
    least, most = squares[:, 0], squares[:, -1]
    exact = (least > 1e-10 * most) & (most > 1e-250) & (most < 1e250)
    sigma = squares.sqrt()
    if bool((exact & (least <= 1e-8 * most)).any()):
        sigma = torch.linalg.vector_norm(A64 @ V, dim=-2)
    left = (A64 @ (V / sigma[:, None])).to(A.dtype)
    sigma, V = sigma.to(A.dtype), V.to(A.dtype)
    return Polar(left @ V.mT, Deficient(left, sigma, V)), exact


def all_by_svd(A: Tensor) -> tuple[Polar, Tensor]:
    """The same from LAPACK's SVD in float64, accurate for members of full rank."""
    left, sigma, Vt = torch.linalg.svd(A.double(), full_matrices=False)
    exact = without_rounding(sigma, A)[:, -1] > 0
    left, sigma, V = left.to(A.dtype), sigma.to(A.dtype), Vt.mT.to(A.dtype)
    return Polar(left @ V.mT, Deficient(left, sigma, V)), exact


def in_dtype_of(A: Tensor, U: Tensor, left: Tensor, sigma: Tensor, V: Tensor, gauge: Tensor | None = None) -> Polar:
    """A decomposition in A's dtype, contiguous; no two parts share memory, as an operator's results must not."""
    U, left, V = (x.to(A.dtype, memory_format=torch.contiguous_format) for x in (U, left, V))
    if gauge is not None:
        gauge = gauge.to(A.dtype, memory_format=torch.contiguous_format, copy=True) if gauge.shape[1] else None
    kind = Spectral if int(sigma.count_nonzero()) == len(sigma) else Deficient
    return Polar(U.contiguous(), kind(left.contiguous(), sigma.to(A.dtype), V.contiguous()), gauge)
