"""The part of the frame that class means do not determine, as a differentiable function: null directions, the gauge.

The frame that `decompose` completes from a start C (d, m+g) is `F + E N'ᵀ` with `F = L Rᵀ`, L the polar factor of `A R`
on the row space R (m+g, r) of A, N' a basis of its complement, and E the polar factor of `(I − LLᵀ) C N'`. R and N' are
treated as constant, since data cannot change them: columns of absent classes stay zero, and the counts of a batch
determine the linear dependence of its means.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import is_mapped
from .autograd import Found, polar
from .spectral import Deficient


def completed(found: Found, A: Tensor, start: Tensor) -> Tensor:
    """The whole factor (…, d, m+g) of A (…, d, m), with the derivative of the part that `start` (…, d, m+g) determines.

    Directions that the start does not determine either are treated as constant. Under compilers and vmap, where values
    cannot be read, the derivative is that for an A of full rank.
    """
    whole = found.frame if found.gauge is None else torch.cat([found.frame, _last_column(found, A, start)], -1)
    if not isinstance(found.known, Deficient) or torch.compiler.is_compiling() or A.is_meta or is_mapped(A):
        return whole
    sigma = found.known.sigma
    if A.ndim == 2:
        return whole if bool(sigma.all()) else _completed(whole, A, start, found.known)
    members = (~sigma.all(-1)).nonzero(as_tuple=True)
    if not len(members[0]):
        return whole
    start = start.expand(*A.shape[:-2], *start.shape[-2:])
    known = map(Deficient, *(x[members] for x in found.known))
    singles = map(_completed, whole[members], A[members], start[members], known)
    return whole.index_put(members, torch.stack(list(singles)))


def _last_column(found: Found, A: Tensor, start: Tensor) -> Tensor:
    """The gauge (…, d, 1) with its derivative for an A of full rank: `(I − UUᵀ) c` at unit length."""
    U, gauge, c = found.frame, found.gauge, start[..., A.shape[-1] :]
    assert gauge is not None
    formula = _unit(c - U @ (U.mT @ c))
    return gauge.detach() + (formula - formula.detach())


def _unit(w: Tensor) -> Tensor:
    """w (…, d, 1) at unit length; zero if it is at rounding level."""
    length = torch.linalg.vector_norm(w, dim=-2, keepdim=True)
    return w / torch.where(length > 1e-8, length, torch.inf)


def _completed(whole: Tensor, A: Tensor, start: Tensor, known: Deficient) -> Tensor:
    """`completed` for one rank-deficient A (d, m)."""
    kept, V, columns = known.sigma > 0, known.basis, start.shape[1]
    if not bool(kept.any()):  # A is zero: the start determines everything, and the derivative is zero
        return whole
    value = whole.detach()
    g = columns - A.shape[1]
    R = torch.cat([V[:, kept], V.new_zeros(g, int(kept.sum()))])  # (m+g, r)
    N = torch.block_diag(V[:, ~kept], V.new_ones(g, g))[:, : columns - R.shape[1]]
    L = polar(A @ V[:, kept], value @ R, "svd").frame
    target = start @ N
    B = target - L @ (L.mT @ target)  # (d, m+g−r)
    E = _unit(B) if B.shape[1] == 1 else polar(B, value @ N, "svd").frame
    formula = L @ R.mT + E @ N.mT
    return value + (formula - formula.detach())
