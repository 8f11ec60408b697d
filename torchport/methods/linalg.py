"""Linear algebra that the methods share: norms, Gram matrices, rank, and the completion of a partial frame."""

from __future__ import annotations

import torch
from torch import Tensor


def frobenius(A: Tensor) -> Tensor:
    """‖A‖_F (…) of A (…, d, m).

    `torch.linalg.vector_norm` adds up one after the other on the CPU: in float32 it is 1e-5 off for a matrix of
    1000 × 1000, and 1e-3 for 5000 × 5000. `sum` adds up in pairs.
    """
    return (A * A).sum((-2, -1)).clamp_min(torch.finfo(A.dtype).tiny).sqrt()  # clamped: the gradient at 0 is 0


def gram(A: Tensor, block: int = 256) -> Tensor:
    """AᵀA (m, m) of A (d, m); for a large m only the blocks on and below the diagonal are computed."""
    m = A.shape[1]
    if m <= block:
        return A.mT @ A
    G = A.new_empty(m, m)
    for i in range(0, m, block):
        rows = A[:, i : i + block].mT @ A[:, : i + block]
        G[i : i + block, : i + block] = rows
        G[:i, i : i + block] = rows[:, :i].mT
    return G


def without_rounding(sigma: Tensor, A: Tensor) -> Tensor:
    """The singular values of A, those at the rounding level of its entries or of the decomposition set to zero."""
    share = max(max(A.shape[-2:]) * torch.finfo(torch.float64).eps, 4 * torch.finfo(A.dtype).eps)
    return torch.where(sigma > share * sigma.amax(-1, keepdim=True), sigma, 0.0)


def pseudo_inverse(values: Tensor) -> Tensor:
    """1/values, and 0 for 0, where the derivative does not exist and counts as zero."""
    return values.reciprocal().masked_fill_(values == 0, 0.0)


def complete_frame(left: Tensor, right: Tensor, start: Tensor) -> Tensor:
    """The frame nearest to `start` (d, m) among those that map `right` (m', r) to `left` (d, r).

    Both have orthonormal columns, and right is padded with zeros where m > m'. With orthonormal complements the
    frame is `left rightᵀ + left_⊥ Z right_⊥ᵀ`, and Z is the polar factor of `left_⊥ᵀ start right_⊥`.
    """
    (d, r), m = left.shape, start.shape[1]
    right = torch.cat([right, right.new_zeros(m - len(right), r)])
    right_rest = torch.linalg.qr(right, mode="complete")[0][:, r:]  # (m, m−r)
    target = start @ right_rest
    # The complement of span(left) in R^d may be huge; this part of it suffices for the target and its completion.
    eye = torch.eye(d, m, dtype=left.dtype, device=left.device)
    left_rest = torch.linalg.qr(torch.cat([left, target, eye], 1))[0][:, r:]
    Z, _, Yt = torch.linalg.svd(left_rest.mT @ target, full_matrices=False)
    return left @ right.mT + left_rest @ (Z @ Yt) @ right_rest.mT


def complete_by_one(U: Tensor, start: Tensor) -> Tensor:
    """The unit vector (d, 1) orthogonal to U (d, m) nearest to the last column of `start`."""
    w, clear = unit_remainder(U, start[:, -1:].to(U.dtype))
    if U.device.type == "cpu" and not clear:
        eye = torch.eye(U.shape[1], dtype=torch.float64)
        return complete_frame(U.double(), eye, start.double())[:, -1:].to(U.dtype)
    return w


def unit_remainder(U: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """The part of w (…, d, 1) orthogonal to U (…, d, m), at unit length, and whether (…) it is more than rounding."""
    clear = torch.ones((), dtype=torch.bool, device=w.device)
    for _ in range(2):  # twice is enough for full orthogonality
        w = w - U @ (U.mT @ w)
        length = torch.linalg.vector_norm(w, dim=-2, keepdim=True)
        clear = clear & (length[..., 0, 0] >= 1e-8)  # false for NaN, the result of a zero length
        w = w / length
    return w, clear
