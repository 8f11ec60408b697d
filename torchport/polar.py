"""The polar factor of a matrix, and its derivative in closed form.

`A = U P` with `UᵀU = I` and `P = (AᵀA)^{1/2} = V diag(σ) Vᵀ`. Source: Higham, *Functions of Matrices* (2008),
chapter 8; the derivative by differentiating `A = U P` under `UᵀU = I`: for a cotangent G of U

    P Φ + Φ P = UᵀG − GᵀU,    Ā = U Φ + (I − UUᵀ) G P⁻¹,

which is a symmetric map of G, so that tangents of A are pushed forward by the same formula.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

METHODS = ("auto", "svd", "eigh")


class Polar(NamedTuple):
    """What a decomposition gives: only `frame` is differentiable."""

    frame: Tensor  # U (d, m), A's polar factor
    gauge: Tensor  # (d, g): the columns that complete U beyond A's own, g = 0 or 1
    sigma: Tensor  # (m,) the eigenvalues of P
    basis: Tensor  # V (m, m), their eigenvectors


def polar(A: Tensor, start: Tensor, method: str = "auto") -> Polar:
    """The polar decomposition of A (d, m), d ≥ m.

    Where A is rank-deficient (σ_i ≤ σ_1 · max(d, m) · eps) the factor nearest to `start` (d, m) is taken; a further
    column of `start` is a direction that A leaves open, and is completed together with the rest.
    """
    return Polar(*_Polar.apply(A, start, method))


class _Polar(torch.autograd.Function):
    @staticmethod
    def forward(A: Tensor, start: Tensor, method: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        solve = by_svd if method == "svd" else by_eigh
        return solve(A, start)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        U, gauge, sigma, V = output
        ctx.mark_non_differentiable(gauge, sigma, V)
        ctx.save_for_backward(U, sigma, V)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        return inverse_hessian(*ctx.saved_tensors, cotangents[0]), None, None


def inverse_hessian(U: Tensor, sigma: Tensor, V: Tensor, G: Tensor) -> Tensor:
    """`U Φ + (I − UUᵀ) G P⁻¹` with `P Φ + Φ P = UᵀG − GᵀU`. Curvature zero counts as infinite."""
    zero = sigma.amax() * max(U.shape) * torch.finfo(U.dtype).eps
    pairs = sigma[:, None] + sigma
    L, GV = U @ V, G @ V  # in the eigenbasis of P
    T = L.mT @ GV
    Phi = torch.where(pairs > 2 * zero, (T - T.mT) / pairs, 0.0)
    inverse = torch.where(sigma > zero, 1 / sigma, 0.0)
    return (L @ Phi + (GV - L @ T) * inverse) @ V.mT


def by_svd(A: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    left, sigma, Vt = torch.linalg.svd(A, full_matrices=False)
    rank = int((sigma > sigma[0] * max(A.shape) * torch.finfo(A.dtype).eps).sum())
    m = A.shape[1]
    if rank == m == start.shape[1]:
        U = left @ Vt
        return U, U.new_empty(len(U), 0), sigma, Vt.mT.contiguous()
    U = complete_frame(left[:, :rank], Vt[:rank].mT, start)
    return U[:, :m].contiguous(), U[:, m:].contiguous(), sigma, Vt.mT.contiguous()


def by_eigh(A: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From the Gram matrix, which squares the condition number: where float64 does not bear that, by_svd."""
    squares, V = torch.linalg.eigh(A.mT @ A)
    if squares[0] < 1e-9 * squares[-1] or start.shape[1] > A.shape[1]:
        return by_svd(A, start)
    sigma = squares.sqrt()
    return ((A @ V) / sigma) @ V.mT, A.new_empty(len(A), 0), sigma, V


def complete_frame(left: Tensor, right: Tensor, start: Tensor) -> Tensor:
    """The frame nearest to `start` (d, m) among those that map `right` (m', r) to `left` (d, r).

    Both have orthonormal columns, and right is padded with zeros where m > m'. With orthonormal complements the
    frame is `left rightᵀ + left_⊥ Z right_⊥ᵀ`, and Z is the polar factor of `left_⊥ᵀ start right_⊥`.
    """
    (d, r), m = left.shape, start.shape[1]
    right = torch.cat([right, right.new_zeros(m - len(right), r)])
    right_rest = torch.linalg.qr(right, mode="complete")[0][:, r:]  # (m, m−r)
    target = start @ right_rest
    # The complement of span(left) in R^d may be huge; this much of it holds the target, and room to complete it.
    eye = torch.eye(d, m, dtype=left.dtype, device=left.device)
    left_rest = torch.linalg.qr(torch.cat([left, target, eye], 1))[0][:, r:]
    Z, _, Yt = torch.linalg.svd(left_rest.mT @ target, full_matrices=False)
    return left @ right.mT + left_rest @ (Z @ Yt) @ right_rest.mT
