"""The polar factor of any matrix, or of a batch of them, as a differentiable function.

Source: the orthogonal Procrustes problem (Schönemann 1966), differentiated as in `methods`. A singular value
decomposition has derivatives with factors 1/(σᵢ² − σⱼ²), which are infinite where singular values coincide; those of
the polar factor have 1/(σᵢ + σⱼ) and 1/σᵢ, and exist at full rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import check_finite, check_floats
from .methods.autograd import polar as decomposed
from .methods.completion import completed
from .methods.decompose import METHODS
from .procrustes import check_broadcasts, without_autocast


def polar(A: Tensor, start: Tensor | None = None, *, method: str = "auto") -> Tensor:
    """The matrix U nearest to A with orthonormal columns, or for d < m orthonormal rows: `A = U P` or `A = P U`, P ≥ 0.

    Parameters
    ----------
    A : (…, d, m)
        A batch is decomposed all at once, except for its rank-deficient members.
    start : (…, d, m), optional
        If A is rank-deficient, the one of its polar factors that is nearest to `start` is returned. Derivatives treat
        it as constant. Default: the identity `eye(d, m)`.
    method : {"auto", "svd", "eigh", "matmul", "trust-region"}
        The algorithm, see `methods/`; all are exact. For a batch in float64, "eigh" is the same as "svd".

    Returns
    -------
    U : (…, d, m)
        In A's dtype, differentiable in A to any order, in reverse and forward mode. Derivatives are finite also at
        repeated singular values, where they exist, and at zero ones, where those that do not exist count as zero. Half
        precision is converted to float32 for the decomposition.

    Raises
    ------
    ValueError
        If A is not a floating-point matrix, a shape or the method is wrong, or (on the CPU) an entry is not finite.

    Examples
    --------
    >>> A = torch.eye(4, 3, requires_grad=True)  # all singular values are equal
    >>> U = polar(A)
    >>> (U.T @ U).allclose(torch.eye(3))
    True
    >>> U[1, 0].backward()
    >>> A.grad[:2].tolist()
    [[0.0, -0.5, 0.0], [0.5, 0.0, 0.0]]
    >>> polar(torch.randn(1000, 3, 8)).shape
    torch.Size([1000, 3, 8])
    """
    if method not in METHODS:
        raise ValueError(f"method = {method!r}; expected one of {', '.join(map(repr, METHODS))}.")
    expected = "a floating-point matrix (d, m) or a batch (…, d, m)"
    check_floats("A", A, expected)
    if A.ndim < 2 or 0 in A.shape[-2:]:
        raise ValueError(f"A is {A.dtype} of shape {tuple(A.shape)}; expected {expected}.")
    check_finite("A", A)
    if start is not None:
        check_floats("start", start, expected, beside=A)
        check_broadcasts("start", start, "A", A)
        check_finite("start", start)
    if A.shape[-2] < A.shape[-1]:
        return polar(A.mT, None if start is None else start.mT, method=method).mT
    dtype = torch.promote_types(A.dtype, torch.float32)
    start = torch.eye(*A.shape[-2:], device=A.device) if start is None else start.detach()
    with without_autocast(A.device):
        B, C = A.to(dtype), start.to(dtype)
        if A.ndim + C.ndim > 4:
            B, C = torch.broadcast_tensors(B, C)
        return completed(decomposed(B, C, method), B, C).to(A.dtype)
