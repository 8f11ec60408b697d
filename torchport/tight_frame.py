"""The nearest tight frame to a set of class means, for any number of classes, as a differentiable function.

With `C = H M` and r = min(d, K−1), it is the partial isometry F (d, K) of rank r with `F 1 = 0` that solves

    max ⟨F, A⟩,    A = (2/√r) H M + δ F₀.

For K ≤ d+1 this is problem (R) of `procrustes`, and the columns of F are a simplex ETF. For K > d+1 there is no simplex
ETF: `F Fᵀ = I`, the columns are a tight frame, and Fᵀ is the polar factor of Aᵀ within `1^⊥`. Without proximal term, F
is the whitened class means `(C Cᵀ)^{-1/2} C`. Sources: Strohmer & Heath 2003 (*Grassmannian frames*); Tropp, Dhillon,
Heath & Strohmer 2005 (*Designing structured tight frames via an alternating projection method*).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..common.arguments import real_number, whole_number
from ..reference.stiefel import random_point
from .arguments import check_finite, check_floats, is_mapped, sees_values
from .methods.autograd import Found, polar
from .methods.decompose import METHODS
from .methods.spectral import Deficient, by_svd
from .procrustes import INITIAL, Solution, check_basis, named_or_given_frame, solve, without_autocast
from .simplex import canonical_frame, centred, classifier_from_frame, from_coordinates, to_coordinates

Norms = Literal["unit", "tight", "equal"]
NORMS = ("unit", "tight", "equal")
ROUNDS = 50  # of alternating projections at most, since autograd keeps all of them


def nearest_tight_frame(
    class_means: Tensor,
    proximal: Tensor | None = None,
    delta: float = 1e-3,
    *,
    method: str = "auto",
    initial: Tensor | str | None = None,
) -> Tensor:
    """The tight frame F (d, K) nearest to the class means H (d, K), for any d and K.

    Parameters
    ----------
    class_means : (d, K)
        `H`: columns are class means minus the global mean, usually divided by `‖H‖_F`. Any d ≥ 1 and K ≥ 2 are valid,
        so a transposed matrix is not recognised.
    proximal : (d, K), optional
        `F₀`, usually the frame of the previous solution. None, or delta = 0, omits the proximal term: of the
        maximisers, the one nearest to `initial` is returned.
    delta : float
        `δ ≥ 0`, the weight of the proximal term.
    method : {"auto", "svd", "eigh", "matmul", "trust-region"}
        The algorithm for the polar factor, as in `nearest_etf`.
    initial : (d, K) or {"canonical", "random", "feature-polar"}, optional
        The start of the trust region. If the maximiser is not unique, the one nearest to it is returned. Default: the
        proximal point, or without one `canonical_tight_frame`. Derivatives treat it as constant.

    Returns
    -------
    F : (d, K)
        In the class means' dtype, differentiable in class means and proximal point, like `nearest_etf`. For K ≤ d+1
        it is the frame of `nearest_etf(..., formulation="gauge-free")`.

    Raises
    ------
    ValueError
        If a shape, delta, an option or (on the CPU) a value is invalid.

    Examples
    --------
    >>> H = torch.randn(3, 10, requires_grad=True)
    >>> F = nearest_tight_frame(H)
    >>> (F @ F.T).allclose(torch.eye(3), atol=1e-5), F.sum(1).allclose(torch.zeros(3), atol=1e-5)
    (True, True)
    >>> F[0, 0].backward()
    >>> H.grad.shape
    torch.Size([3, 10])
    """
    return solve_tight_frame(class_means, proximal, delta, method=method, initial=initial).frame


def solve_tight_frame(
    class_means: Tensor,
    proximal: Tensor | None = None,
    delta: float = 1e-3,
    *,
    method: str = "auto",
    initial: Tensor | str | None = None,
    basis: Tensor | None = None,
) -> Solution:
    """`nearest_tight_frame` with its certificate and diagnostics.

    Parameters
    ----------
    basis : (r, r), optional
        `basis` of an earlier solution of a similar problem, for a warm start.
    others
        As in `nearest_tight_frame`.

    Returns
    -------
    Solution
        For K > d+1 its `variable` and `linear_term` are `(F Q)ᵀ` and `(A Q)ᵀ`, (K−1, d), with an orthonormal basis Q of
        `1^⊥`; its `classifier` is `√(K/r) Fᵀ`.

    Raises
    ------
    ValueError
        As `nearest_tight_frame`.

    Examples
    --------
    >>> solution = solve_tight_frame(torch.randn(3, 10, dtype=torch.float64))
    >>> abs(solution.optimality_gap) < 1e-12, solution.orthogonality < 1e-12
    (True, True)
    """
    check_tight_problem(class_means, proximal, initial, delta, method)
    d, K = class_means.shape
    check_basis(basis, class_means, min(d, K - 1))
    if d + 1 >= K:
        return solve(
            class_means, proximal, delta, method=method, formulation="gauge-free", initial=initial, basis=basis
        )
    dtype = torch.promote_types(class_means.dtype, torch.float32)
    with without_autocast(class_means.device):
        H = class_means.to(dtype)
        F0 = proximal.to(dtype) if proximal is not None and delta > 0 else None
        given = initial if initial is not None else proximal if proximal is not None else "canonical"
        C = _frame_named(given, H) if isinstance(given, str) else given.detach().to(dtype)
        scaled = 2.0 / math.sqrt(d) * H
        A = to_coordinates(scaled if F0 is None else scaled.add(F0, alpha=delta))[0].mT  # (K−1, d)
        start = to_coordinates(C)[0].mT
        found = polar(A, start, method, basis)
        X = _completed(found, A, start) if F0 is None else found.frame
        frame = from_coordinates(X.mT).to(class_means.dtype)
        return Solution(frame, found.variable.detach(), A.detach(), found.fallbacks, found.basis)


def canonical_tight_frame(
    num_features: int,
    num_classes: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """The default start of a solve, a tight frame (d, K).

    For K ≤ d+1 it is the start of (R): `eye(d, K) M`, and for K = d+1 Helmert's basis. For K > d+1 it consists of the
    first d non-constant rows of the orthonormal DCT-II matrix, `F[j, k] = √(2/K) cos(π (j+1)(2k+1)/(2K))`.

    Parameters
    ----------
    num_features, num_classes : int
        d and K.
    dtype, device : optional
        Of the result; default: those of torch.

    Raises
    ------
    ValueError
        If d < 1 or K < 2.

    Examples
    --------
    >>> F = canonical_tight_frame(3, 10)
    >>> (F @ F.T).allclose(torch.eye(3), atol=1e-6), F.sum(1).abs().max().item() < 1e-6
    (True, True)
    """
    d, K = num_features, num_classes
    _check_sizes(d, K)
    if d + 1 >= K:
        return centred(canonical_frame(d, K, dtype=dtype, device=device))
    j, k = torch.arange(d, dtype=torch.float64)[:, None], torch.arange(K, dtype=torch.float64)
    F = math.sqrt(2.0 / K) * torch.cos(math.pi / (2 * K) * (j + 1) * (2 * k + 1))
    return F.to(device=device, dtype=dtype or torch.get_default_dtype())


def classifier_from_tight_frame(frame: Tensor, norms: Norms = "unit") -> Tensor:
    """The classifier W (K, d) of a tight frame F (d, K), differentiable.

    Parameters
    ----------
    frame : (d, K)
    norms : {"unit", "tight", "equal"}
        - "unit": the rows of Fᵀ, divided by their norms; for K > d+1 they are not a tight frame.
        - "tight": `W = √(K/r) Fᵀ`, whose rows have unit norm in the mean square.
        - "equal": rows of unit norm that are a tight frame too, by alternating projections between both sets (Tropp et
          al. 2005), through which the gradient flows. After at most 50 rounds from random class means, the relative
          error of tightness is 1e-8 at (64, 100), 1e-5 at (8, 16) and 1e-2 at (64, 66).

    Returns
    -------
    W : (K, d)
        For K ≤ d+1 it is the simplex ETF in each case. A row that is shorter than √eps with "tight" is zero with the
        others, without gradient, since its direction is mostly rounding.

    Raises
    ------
    ValueError
        If the frame is not a matrix or has no column of sufficient length, `norms` is unknown, or for "equal" no tight
        frame of K unit vectors in d dimensions sums to zero.

    Examples
    --------
    >>> W = classifier_from_tight_frame(canonical_tight_frame(3, 10), norms="equal")
    >>> (W.T @ W).allclose(10 / 3 * torch.eye(3), atol=1e-4), W.norm(dim=1).allclose(torch.ones(10))
    (True, True)
    """
    check_floats("frame", frame, "a floating-point matrix (d, K)")
    if frame.ndim != 2:
        raise ValueError(f"frame has shape {tuple(frame.shape)}; expected (d, K), columns are classes.")
    d, K = frame.shape
    _check_sizes(d, K)
    check_norms(norms, d, K)
    check_finite("frame", frame)
    W = classifier_from_frame(frame.to(torch.promote_types(frame.dtype, torch.float32)))
    if norms == "tight":
        return W.to(frame.dtype)
    least = torch.finfo(W.dtype).eps ** 0.5
    lengths = torch.linalg.vector_norm(W.detach(), dim=1)
    kept = lengths > least
    if sees_values(W) and not (kept & lengths.isfinite()).any():
        raise ValueError("frame has no column of a tight frame's length; expected a result of nearest_tight_frame.")
    W = unit_rows(W, least)
    return (_made_tight(W, kept) if norms == "equal" and d + 1 < K else W).to(frame.dtype)


def check_norms(norms: str, num_features: int, num_classes: int) -> None:
    """Refuse unknown `norms`, and "equal" where no spherical 2-design of K points exists (Mimura 1990)."""
    d, K = num_features, num_classes
    if norms not in NORMS:
        raise ValueError(f"norms = {norms!r}; expected one of {', '.join(map(repr, NORMS))}.")
    if norms == "equal" and K % 2 == 1 and (d + 2 == K or d == 1 < K - 1):
        raise ValueError(
            f'norms = "equal" with {K} classes and d = {d}: no tight frame of {K} unit vectors sums to zero there. Use '
            'norms="unit", or one more feature.'
        )


def unit_rows(W: Tensor, least: float | Tensor = 0.0) -> Tensor:
    """The rows of W (K, d) at unit length; rows not longer than `least` become zero, without gradient."""
    length = torch.linalg.vector_norm(W, dim=1, keepdim=True)
    return W / torch.where(length > least, length, torch.inf)


def centred_over(B: Tensor, kept: Tensor) -> Tensor:
    """The columns of B (d, K) that are kept, minus their mean; the others become zero."""
    mean = torch.where(kept, B, 0.0).sum(1, keepdim=True) / kept.sum().clamp(min=1)
    return torch.where(kept, B - mean, 0.0)


def named_or_given_tight_frame(initial: str | Tensor, num_features: int, num_classes: int) -> Tensor:
    """The tight frame (d, K) from which a head starts: a copy, in float32 at least.

    Raises
    ------
    ValueError
        If the name is not "canonical" or "random", or the matrix is not a tight frame (d, K).
    """
    d, K = num_features, num_classes
    _check_sizes(d, K)
    if d + 1 >= K or (isinstance(initial, str) and initial not in ("canonical", "random")):
        return named_or_given_frame(initial, d, K)
    dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
    if isinstance(initial, str):
        return _frame_named(initial, torch.zeros(d, K, dtype=dtype))
    check_floats("initial", initial, "'canonical', 'random' or a frame (d, K)")
    check_tight_frame("initial", initial, (d, K))
    return initial.detach().to(torch.promote_types(initial.dtype, torch.float32), copy=True)


def check_tight_frame(name: str, F: Tensor, shape: tuple[int, int]) -> None:
    """Refuse a matrix that is not a tight frame of K > d+1 vectors: `(F M)(F M)ᵀ` must be the identity."""
    if F.shape != shape:
        raise ValueError(f"{name} has shape {tuple(F.shape)}; expected {shape}.")
    if F.is_meta:
        return
    rows = centred(F.double())
    error = float((rows @ rows.mT - torch.eye(shape[0], dtype=rows.dtype, device=rows.device)).abs().max())
    if not error <= 1e-3:
        raise ValueError(
            f"{name} is not a tight frame: (F M)(F M)ᵀ differs from the identity by {error:.1e}. Pass a solution of "
            "nearest_tight_frame."
        )


def _completed(found: Found, A: Tensor, start: Tensor) -> Tensor:
    """The factor X (K−1, d) of A, with the derivative of the part that `start` determines if A is rank-deficient.

    `X = W + Z` with W the polar factor of A on its range and Z that of `(I − WWᵀ) C (I − WᵀW)`, C the start. An absent
    class keeps its zero in A, but both the row and the column space of A can change; in `completion`, where classes are
    columns, the row space is constant. Directions that the start does not determine either are treated as constant.
    Under compilers and vmap, where values cannot be read, the derivative is that for an A of full rank.
    """
    known = found.known
    if not isinstance(known, Deficient) or torch.compiler.is_compiling() or A.is_meta or is_mapped(A):
        return found.frame
    kept = known.sigma > 0
    if bool(kept.all()) or not bool(kept.any()):
        return found.frame
    W = _polar_on_range(A, known.left[:, kept], known.basis[:, kept])
    outside = start - W @ (W.mT @ start)
    B = outside - (outside @ W.mT) @ W
    left, sigma, Rt = torch.linalg.svd(B.detach().double(), full_matrices=False)
    determined = sigma > 1e-6
    formula = W
    if bool(determined.any()):
        formula = W + _polar_on_range(B, left[:, determined].to(A.dtype), Rt[determined].mT.to(A.dtype))
    return found.frame.detach() + (formula - formula.detach())


def _polar_on_range(A: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The partial isometry `L Rᵀ` of `A = L Σ Rᵀ`, with the derivative along changes of A (n, m) that keep its rank."""
    L = polar(A @ right, left, "svd").frame  # a basis of the column space; next, the row space may change too
    return L @ polar(A.mT @ L, right, "svd").frame.mT


def _made_tight(W: Tensor, kept: Tensor) -> Tensor:
    """Tight unit rows from unit rows W (K, d): by turns the nearest tight frame, and its rows at unit length.

    As in the reference, and unlike the paper, rows are centred in between: only centred rows affect a classifier.
    """
    can_stop_early = W.device.type == "cpu" and not torch.compiler.is_compiling()  # elsewhere it would synchronise
    tolerance = 10 * torch.finfo(W.dtype).eps * len(W) ** 0.5
    for _ in range(ROUNDS):
        A = centred_over(W.mT, kept).mT
        tight = torch.where(kept[:, None], polar(A, A.detach()).frame, 0.0)
        previous, W = W, unit_rows(tight)
        if can_stop_early and float(torch.dist(W.detach(), previous.detach())) <= tolerance:
            break
    return W


def _frame_named(initial: str, H: Tensor) -> Tensor:
    """The initial frame (d, K) of that name, K > d+1, for class means H (d, K)."""
    d, K = H.shape
    canonical = canonical_tight_frame(d, K, dtype=H.dtype, device=H.device)
    if initial == "canonical":
        return canonical
    if initial == "random":
        X = torch.from_numpy(random_point(K - 1, d, np.random.default_rng(0))).to(H)
    else:
        X = by_svd(to_coordinates(H.detach())[0].mT, to_coordinates(canonical)[0].mT).factor
    return from_coordinates(X.mT)


def _check_sizes(num_features: int, num_classes: int) -> None:
    d, K = whole_number("num_features", num_features), whole_number("num_classes", num_classes)
    if d < 1 or K < 2:
        raise ValueError(f"num_features = {d}, num_classes = {K}; expected at least 1 and 2.")


def check_tight_problem(
    class_means: Tensor, proximal: Tensor | None, initial: Tensor | str | None, delta: float, method: str
) -> None:
    """Refuse invalid problems by shapes and options; `decompose` checks that class means and proximal are finite."""
    if method not in METHODS:
        raise ValueError(f"method = {method!r}; expected one of {', '.join(map(repr, METHODS))}.")
    expected = "a floating-point matrix (d, K) whose columns are classes"
    check_floats("class_means", class_means, expected)
    if class_means.ndim != 2:
        raise ValueError(
            f"class_means is {class_means.dtype} of shape {tuple(class_means.shape)}; expected {expected}."
        )
    _check_sizes(*class_means.shape)
    if isinstance(initial, str) and initial not in INITIAL:
        raise ValueError(f"initial = {initial!r}; expected a frame (d, K) or one of {', '.join(map(repr, INITIAL))}.")
    for name, frame in (("proximal", proximal), ("initial", initial)):
        if frame is None or (isinstance(frame, str) and name == "initial"):
            continue
        check_floats(name, frame, "a frame (d, K)", beside=class_means)
        assert isinstance(frame, Tensor)
        if frame.shape != class_means.shape:
            raise ValueError(
                f"{name} has shape {tuple(frame.shape)}; expected {tuple(class_means.shape)}, as class_means."
            )
    if isinstance(initial, Tensor) and initial is not proximal:
        check_finite("initial", initial)
    real_number("delta", delta)
