"""The choice of a method, and the SVD as fallback where its result is not accurate enough.

On an accelerator this check would synchronise: there the result is NaN if products cannot solve the problem.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .factor import Decomposition, Polar, tensors
from .linalg import complete_by_one, pseudo_inverse, unit_remainder, without_rounding
from .matmul import Products, by_matmul
from .spectral import Deficient, Spectral, all_by_eigh, all_by_svd, by_eigh, by_svd
from .trust_region import by_trust_region
from .warm import Warm, by_basis

Kind = type[Deficient | Warm | Products]
METHODS = ("auto", "svd", "eigh", "matmul", "trust-region")

_warned: set[str] = set()


def choose(A: Tensor, start: Tensor) -> str:
    """The method of "auto": products only on accelerators, where decompositions are slow and synchronise."""
    if start.shape[-1] > A.shape[-1]:
        return "svd" if A.ndim == 2 else "eigh"  # the first step, where rank deficiency is the rule
    return "eigh" if A.device.type in ("cpu", "meta") else "matmul"


def decompose(A: Tensor, start: Tensor, basis: Tensor | None, method: str) -> Polar:
    """The polar decomposition of A (d, m), d ≥ m, by `method`, or of a batch (…, d, m).

    If A is rank-deficient, the factor nearest to `start` (d, m) is returned. A further column of `start` is a direction
    that A does not determine; it is completed like the others. `basis` is the eigenbasis V of an earlier, similar A;
    batches ignore it.

    Raises
    ------
    ValueError
        On the CPU, if A is not finite.
    """
    if method == "auto":
        method = choose(A, start)
    if A.ndim > 2:
        return _decompose_batch(A, start, method)
    try:
        found = _attempt(A, start, basis, method)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        found = None
    if found is None:
        if A.device.type == "cpu" and not A.isfinite().all():
            raise ValueError("class_means or proximal contain NaN or infinite entries.")
        found = by_svd(A, start)._replace(fallbacks=1)
        _warn_once(method, A)
    if found.gauge is None and start.shape[1] > A.shape[1]:
        found = found._replace(gauge=complete_by_one(found.factor, start))
    return found


def _attempt(A: Tensor, start: Tensor, basis: Tensor | None, method: str) -> Polar | None:
    """The decomposition by this method; None if it is not accurate enough."""
    if method == "eigh":
        return (by_basis(A, basis) if basis is not None else None) or by_eigh(A)
    if method == "matmul":
        return by_matmul(A)
    if method == "trust-region":
        return by_trust_region(A, start)
    return by_svd(A, start)


def _decompose_batch(A: Tensor, start: Tensor, method: str) -> Polar:
    """The decomposition of all members at once, and then of those that are not accurate enough one by one."""
    batch, m = A.shape[:-2], A.shape[-1]
    A, start = A.flatten(0, -3), start.expand(*batch, -1, -1).flatten(0, -3)
    found, exact = _all_at_once(A, method)
    gauge = None
    if start.shape[-1] > m:
        gauge, clear = unit_remainder(found.factor, start[..., -1:].to(A.dtype))
        exact = exact & clear
    fallbacks = torch.zeros(len(A), dtype=torch.int64, device=A.device) + found.fallbacks
    if isinstance(found.known, Deficient):  # from products on an accelerator, unsolved members are NaN
        alone = method if method == "trust-region" else "svd"
        for i in (~exact).nonzero().flatten().tolist():
            member = decompose(A[i], start[i], None, alone)
            found.factor[i] = member.factor
            for whole, part in zip(found.known, tensors(member.known), strict=True):
                whole[i] = part
            if gauge is not None and member.gauge is not None:
                gauge[i] = member.gauge
            fallbacks[i] = member.fallbacks if method == alone else 1
    known = type(found.known)(*(x.unflatten(0, batch) for x in tensors(found.known)))
    gauge = gauge if gauge is None else gauge.unflatten(0, batch)
    return Polar(found.factor.unflatten(0, batch), known, gauge, fallbacks.unflatten(0, batch))


def _all_at_once(A: Tensor, method: str) -> tuple[Polar, Tensor]:
    """The polar decompositions of A (n, d, m), and which of them (n,) are accurate enough."""
    try:
        if method == "matmul" and (found := by_matmul(A)) is not None:
            return found, torch.ones(len(A), dtype=torch.bool, device=A.device)
        if method == "eigh" and A.dtype == torch.float32:
            return all_by_eigh(A)
        if method != "trust-region":  # the Gram matrix of a float64 problem has too few correct digits
            return all_by_svd(A)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        pass
    blank = Deficient(torch.empty_like(A), A.new_empty(len(A), A.shape[-1]), A.new_empty(len(A), *A.shape[-1:] * 2))
    return Polar(torch.empty_like(A), blank), torch.zeros(len(A), dtype=torch.bool, device=A.device)


def expected_kind(A: Tensor, basis: Tensor | None, method: str) -> Kind:
    """The kind to which `as_kind` converts every result, since compilers need shapes before values."""
    if method == "matmul":
        return Products
    warm = method == "eigh" and A.ndim == 2 and (basis is not None or A.dtype == torch.float64)
    return Warm if warm else Deficient


def as_kind(known: Decomposition, kind: Kind, device: torch.device) -> Decomposition:
    """The decomposition, converted to that kind."""
    if isinstance(known, kind):
        return known
    assert isinstance(known, Spectral | Deficient)
    if kind is Products:  # from the SVD as fallback: a frame without gradient
        return Products(torch.zeros(known.sigma.shape[:-1], dtype=torch.bool, device=device))
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
        f"{method!r} cannot compute the polar factor of a matrix of condition number {float(sigma[0] / sigma[-1]):.1e} "
        f"in {A.dtype}: 'svd' replaces it, now and in all such cases (shown once). The usual cause is class means "
        "that coincide or are missing; if it persists, use a larger delta or float64.",
        RuntimeWarning,
        stacklevel=3,
    )
