"""What the class means leave open, as a differentiable function: directions of A without length, and the gauge.

The frame that `decompose` completes from a start C (d, m+g) is `F + E N'ᵀ` with `F = L Rᵀ`, L the polar factor of `A R`
on the row space R (m+g, r) of A, N' a basis of the rest, and E the polar factor of `(I − LLᵀ) C N'`. R and N' are taken
as constant: classes that a batch lacks keep their zero columns, and its counts decide the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .autograd import Found, polar
from .spectral import Deficient


def completed(found: Found, A: Tensor, start: Tensor) -> Tensor:
    """The whole factor (d, m+g) of A (d, m), with the derivative of what `start` (d, m+g) decides.

    A direction about which the start says nothing was chosen by rule, and counts as constant. Compilers, which need
    shapes before values, get the derivative of an A of full rank.
    """
    m, columns = A.shape[1], start.shape[1]
    value = found.frame if found.gauge is None or columns == m else torch.cat([found.frame, found.gauge], 1)
    deficient = isinstance(found.known, Deficient) and not (torch.compiler.is_compiling() or A.is_meta)
    if not deficient and columns == m:
        return value
    if deficient:
        assert isinstance(found.known, Deficient)
        kept = found.known.sigma > 0
        if not bool(kept.any()):  # nothing but the start
            return value  # its derivative is zero
        V = found.known.basis
        R = torch.cat([V[:, kept], V.new_zeros(columns - m, int(kept.sum()))])  # (m+g, r)
        N = torch.block_diag(V[:, ~kept], V.new_ones(columns - m, columns - m))[:, : columns - R.shape[1]]
        L = polar(A @ V[:, kept], value.detach() @ R, "svd").frame
    else:
        R = torch.eye(columns, m, dtype=A.dtype, device=A.device)
        N = torch.eye(columns, dtype=A.dtype, device=A.device)[:, m:]
        L = found.frame
    target = start @ N
    B = target - L @ (L.mT @ target)  # (d, m+g−r)
    if B.shape[1] == 1:
        length = torch.linalg.vector_norm(B)
        E = B / torch.where(length > 1e-8, length, torch.inf)
    else:
        E = polar(B, value.detach() @ N, "svd").frame
    formula = L @ R.mT + E @ N.mT
    return value.detach() + (formula - formula.detach())
