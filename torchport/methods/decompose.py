"""Choose a method, and replace the result of one that has lost its digits by singular values, which never do.

On an accelerator, where the host must not wait for that look at the result, what products cannot solve is NaN instead.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .factor import Decomposition, Polar
from .linalg import complete_by_one, pseudo_inverse, without_rounding
from .matmul import Products, by_matmul
from .spectral import Deficient, Spectral, by_eigh, by_svd
from .trust_region import by_trust_region
from .warm import Warm, by_basis

Kind = type[Deficient | Warm | Products]
METHODS = ("auto", "svd", "eigh", "matmul", "trust-region")

_warned: set[str] = set()


def choose(A: Tensor, start: Tensor) -> str:
    """The method of "auto": products only on an accelerator, where decompositions are slow and stop the host."""
    if start.shape[1] > A.shape[1]:
        return "svd"  # the first step, where rank deficiency is the rule
    return "eigh" if A.device.type in ("cpu", "meta") else "matmul"


def decompose(A: Tensor, start: Tensor, basis: Tensor | None, method: str) -> Polar:
    """The polar decomposition of A (d, m), d ≥ m, by `method`.

    Where A is rank-deficient the factor nearest to `start` (d, m) is taken; a further column of `start` is a
    direction that A leaves open, and is completed together with the rest. `basis` is a V of an earlier, similar A.

    Raises
    ------
    ValueError
        On the CPU, if A is not finite.
    """
    if method == "auto":
        method = choose(A, start)
    try:
        found = _attempt(A, start, basis, method)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        found = None
    if found is None:
        if A.device.type == "cpu" and not A.isfinite().all():
            raise ValueError("class_means or proximal hold NaN or infinite entries.")
        found = by_svd(A, start)._replace(fallbacks=1)
        _warn_once(method, A)
    if found.gauge is None and start.shape[1] > A.shape[1]:
        found = found._replace(gauge=complete_by_one(found.factor, start))
    return found


def _attempt(A: Tensor, start: Tensor, basis: Tensor | None, method: str) -> Polar | None:
    """By this method alone; None where it admits defeat."""
    if method == "eigh":
        return (by_basis(A, basis) if basis is not None else None) or by_eigh(A)
    if method == "matmul":
        return by_matmul(A)
    if method == "trust-region":
        return by_trust_region(A, start)
    return by_svd(A, start)


def expected_kind(dtype: torch.dtype, basis: Tensor | None, method: str) -> Kind:
    """The kind of decomposition that `as_kind` makes of every result: compilers need shapes before values."""
    if method == "matmul":
        return Products
    return Warm if method == "eigh" and (basis is not None or dtype == torch.float64) else Deficient


def as_kind(known: Decomposition, kind: Kind, device: torch.device) -> Decomposition:
    """The same decomposition as one of that kind."""
    if isinstance(known, kind):
        return known
    if kind is Products:  # singular values stepped in: a frame without gradient
        return Products(torch.zeros((), dtype=torch.bool, device=device))
    assert isinstance(known, Spectral | Deficient)
    if kind is Deficient:
        return Deficient(*known)
    inverse = pseudo_inverse(known.sigma).diag_embed()
    return Warm(known.left, known.sigma, known.basis, torch.zeros_like(inverse), inverse)


def _warn_once(method: str, A: Tensor) -> None:
    if method in _warned:
        return
    _warned.add(method)
    sigma = without_rounding(torch.linalg.svdvals(A.double()), A)
    warnings.warn(
        f"the polar factor of a matrix of condition number {float(sigma[0] / sigma[-1]):.1e} is beyond {method!r} in "
        f"{A.dtype}: 'svd' stepped in, now and wherever this happens again (said once). Class means coincide or are "
        "missing; if that lasts, a larger delta or float64 helps.",
        RuntimeWarning,
        stacklevel=3,
    )
