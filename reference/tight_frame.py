"""The tight frame nearest to a set of class means, for any number of classes, with a certificate of optimality.

Here a tight frame is a partial isometry F (d, K) of rank `r = min(d, K−1)` whose columns, one per class, sum to zero:
`FᵀF = M` for K ≤ d+1, where it is a simplex ETF, and `FFᵀ = I` for K > d+1. With a proximal point F₀, the one nearest
to H at unit Frobenius norm solves

    min_F  ‖H − F/√r‖_F² + (δ/2) ‖F − F₀‖_F²,   that is   max_F ⟨F, A⟩  with  A = ((2/√r) H + δ F₀) M,

and every minimiser is a polar factor of A: for K > d+1 the whitened class means `(AAᵀ)^{-1/2} A`.

For K ≤ d+1 this is (R) of `procrustes`. For K > d+1 the transposed problem is (R): with an orthonormal basis Q_K
(K, K−1) of `1^⊥`, `X = (F Q_K)ᵀ` is a point of St(K−1, d), and `(A Q_K)ᵀ` corresponds to the class means of d+1 classes
in K−1 dimensions. So trust region, certificate and completion are those of the nearest ETF.

Source: Benedetto & Fickus 2003 (finite tight frames); Tropp, Dhillon, Heath & Strohmer 2005 (the nearest
tight frame is a polar factor); Schönemann 1966. No array has K² entries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
from numpy.typing import ArrayLike

from .checks import check_choice, finite_matrix
from .equal_norm import NORMS, Norms, classifier_from_tight_frame
from .frames import canonical_tight_frame, tight_frame_like, transposed, transposed_back
from .geometry import FrameGeometry, frame_geometry
from .procrustes import Method, NearestETF, nearest_etf
from .riemannian import EPS, Iteration, Status
from .simplex import centred
from .stiefel import Array, safe_frobenius


@dataclass(frozen=True)
class NearestTightFrame:
    """The nearest tight frame, with the data for its certificate and its derivatives.

    Attributes
    ----------
    frame : (d, K)
        `F`: `F 1 = 0`, and `FᵀF = M` for K ≤ d+1, `FFᵀ = I` for K > d+1.
    classifier : (K, d)
        Rows are classes, with the norms that `norms` selects; see `classifier_from_tight_frame`.
    geometry : FrameGeometry
        Tightness and angles of the classifier.
    status, iterations, history, optimality_gap, gradient_norm, condition_number
        As in `NearestETF`; the condition number is σ₁/σ_r of A.
    objective : float
        `‖H − F/√r‖_F² + (δ/2) ‖F − F₀ M‖_F²`.

    Examples
    --------
    >>> found = nearest_tight_frame(np.random.default_rng(0).standard_normal((3, 8)))
    >>> found.rank, found.is_etf, found.classifier.shape, bool(np.allclose(found.frame @ found.frame.T, np.eye(3)))
    (3, False, (8, 3), True)
    """

    frame: Array
    class_means: Array = field(repr=False)  # H (d, K)
    proximal: Array | None = field(repr=False)  # F₀ (d, K), None without proximal term
    solved: NearestETF = field(repr=False)  # the solution of (R), for K > d+1 of the transposed problem
    norms: Norms = "unit"

    @property
    def rank(self) -> int:
        """`r = min(d, K−1)`."""
        return min(self.frame.shape[0], self.frame.shape[1] - 1)

    @property
    def is_etf(self) -> bool:
        """Whether K ≤ d+1, so that the frame is a simplex ETF."""
        return self.rank == self.frame.shape[1] - 1

    @cached_property
    def classifier(self) -> Array:
        """Rows are classes (K, d), with the norms that `norms` selects."""
        return classifier_from_tight_frame(self.frame, self.norms)

    @cached_property
    def geometry(self) -> FrameGeometry:
        """Tightness and angles of the classifier."""
        return frame_geometry(self.classifier)

    @cached_property
    def linear_term(self) -> Array:
        """`A = ((2/√r) H + δ F₀) M` (d, K)."""
        A = (2.0 / np.sqrt(self.rank)) * centred(self.class_means)
        return A if self.proximal is None else A + self.delta * centred(self.proximal)

    @cached_property
    def objective(self) -> float:
        """`‖H − F/√r‖_F² + (δ/2) ‖F − F₀ M‖_F²`."""
        value = safe_frobenius(self.class_means - self.frame / np.sqrt(self.rank)) ** 2
        if self.proximal is None:
            return value
        return value + 0.5 * self.delta * safe_frobenius(self.frame - centred(self.proximal)) ** 2

    @property
    def delta(self) -> float:
        return self.solved.delta

    @property
    def status(self) -> Status:
        return self.solved.status

    @property
    def history(self) -> tuple[Iteration, ...]:
        return self.solved.history

    @property
    def iterations(self) -> int:
        return self.solved.iterations

    @property
    def singular_values(self) -> Array:
        """The r singular values of A that can differ from zero, descending."""
        return self.solved.singular_values

    @property
    def optimality_gap(self) -> float:
        """`‖A‖_* − ⟨F, A⟩`: zero, up to rounding, exactly at a global minimiser."""
        return self.solved.optimality_gap

    @property
    def gradient_norm(self) -> float:
        return self.solved.gradient_norm

    @property
    def condition_number(self) -> float:
        """κ = σ₁/σ_r of A, infinite if A has a lower rank; derivatives lose about log₁₀ κ digits."""
        return self.solved.condition_number


def nearest_tight_frame(
    class_means: ArrayLike,
    proximal: ArrayLike | None = None,
    delta: float = 1e-3,
    *,
    method: Method = "trust-region",
    initial: ArrayLike | None = None,
    norms: Norms = "unit",
    tolerance: float = 1e-13,
    max_iterations: int = 300,
) -> NearestTightFrame:
    """The tight frame nearest to the class means, in float64; for K ≤ d+1 the gauge-free nearest simplex ETF.

    Parameters
    ----------
    class_means : (d, K)
        `H`: columns are class means minus the global mean, usually divided by `‖H‖_F`. Any d ≥ 1 and K ≥ 2 are valid,
        so a transposed matrix is not recognised.
    proximal : (d, K), optional
        `F₀`, a tight frame, usually the `frame` of the previous solution. None, or delta = 0, omits the proximal term.
    delta : float
        `δ ≥ 0`, the weight of the proximal term.
    method : {"trust-region", "svd"}
        The Riemannian trust region, or the polar factor of A by the SVD.
    initial : (d, K), optional
        The start of the trust region. If the minimiser is not unique, because A has rank less than r, the one nearest
        to it is returned. Default: the proximal point, or without one `canonical_tight_frame(d, K)`.
    norms : {"unit", "tight", "equal"}
        The norms of the classifier's rows; see `classifier_from_tight_frame`.
    tolerance : float
        Bound on the norm of the Riemannian gradient, relative to `‖A‖_F`.
    max_iterations : int
        Outer iterations of the trust region.

    Raises
    ------
    ValueError
        If an array has a wrong shape or is not finite, `delta` is negative, K < 2, a proximal or initial array is not
        a tight frame, or an option is unknown.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> first = nearest_tight_frame(rng.standard_normal((3, 10)))
    >>> np.allclose(first.frame @ first.frame.T, np.eye(3)), np.allclose(first.frame.sum(axis=1), 0)
    (True, True)
    >>> later = nearest_tight_frame(rng.standard_normal((3, 10)), proximal=first.frame)
    >>> later.status.value, abs(later.optimality_gap) < 1e-12
    ('converged', True)
    """
    check_choice("norms", norms, NORMS)
    H = finite_matrix("class_means", class_means)
    d, K = H.shape
    if d < 1 or K < 2:
        raise ValueError(
            f"class_means has shape ({d}, {K}); expected (d, K) with at least one feature and 2 classes. Columns are "
            "classes; pass class_means.T if your rows are classes."
        )
    F0 = None if proximal is None else tight_frame_like("proximal", proximal, (d, K))
    C = None if initial is None else tight_frame_like("initial", initial, (d, K))
    solve = partial(
        nearest_etf,
        delta=delta,
        method=method,
        formulation="gauge-free",
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    if d >= K - 1:
        solved = solve(H, F0, initial=C)
        frame = solved.frame
    else:
        B = centred(H)
        if safe_frobenius(B) <= 8 * EPS * safe_frobenius(H):  # equal class means, up to rounding
            B = np.zeros_like(B)
        if C is None:
            C = canonical_tight_frame(d, K) if F0 is None else F0
        solved = solve(transposed(B), None if F0 is None else transposed(F0), initial=transposed(C))
        frame = transposed_back(solved.frame)
    return NearestTightFrame(frame, H, None if solved.proximal is None else F0, solved, norms)
