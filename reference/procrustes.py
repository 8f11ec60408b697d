"""The simplex ETF nearest to a set of class means, with a certificate of optimality.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 3 (the problem, its proximal term and the
trust-region solution). With `UᵀU = I` both quadratic terms are constant, so the paper's problem

    (P)   min_{U ∈ St(d,K)}  ‖H − U M/√(K−1)‖_F² + (δ/2) ‖U − U₀‖_F²

is the orthogonal Procrustes problem (Schönemann 1966)

    (P′)  max_{U ∈ St(d,K)} ⟨U, A⟩,    A = (2/√(K−1)) H M + δ U₀,

solved by every polar factor of A, with value `‖A‖_*`. The gauge-free form (R) is the same problem in the K−1 dimensions
of the ETF: `Q` in place of `M`, `U₀Q` in place of `U₀`, and a variable in St(d, K−1). Below, `X` is the variable of
either form and `E` its basis (`M` or `Q`). Without proximal term the direction `U·1` is free; then the paper's form is
solved as (R) too, and the free direction is taken from the initial frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, cast

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import svdvals

from ..common.arguments import real_number, whole_number
from .checks import check_choice, check_method, class_means_matrix, frame_like
from .polar import Subproblem, complete_frame, polar_by_svd, polar_by_trust_region
from .riemannian import EPS, Iteration, Status
from .simplex import canonical_frame, centred, centred_basis
from .stiefel import Array, check_point, random_point, safe_frobenius, sym

Method = Literal["trust-region", "svd"]
Formulation = Literal["paper", "gauge-free"]
Initial = Literal["canonical", "random", "feature-polar"]


@dataclass(frozen=True)
class NearestETF:
    """A solution of (P) or (R), with the data for its certificate and its derivatives.

    Attributes
    ----------
    frame : (d, K)
        `U`; in the gauge-free form the partial isometry `X Qᵀ`. `frame @ M` is the ETF in both.
    classifier : (K, d)
        `W = √(K/(K−1)) M Uᵀ`, unit rows.
    status : Status
        Outcome of the solve: `status.ok`, and a remedy in `status.advice`.
    iterations : int
        Outer iterations of the trust region; 0 for `method="svd"`.
    history : tuple of Iteration
        Iterations of the trust region, for `A` scaled to unit Frobenius norm.
    objective : float
        The value of (P) or (R).
    optimality_gap : float
        The certificate `‖A‖_* − ⟨X, A⟩`: zero, up to rounding, exactly at a global minimiser.
    gradient_norm, condition_number : float
        Norm of the Riemannian gradient of (P′); σ₁/σ_m of A.

    Examples
    --------
    >>> found = nearest_etf(np.eye(5, 3))
    >>> found.frame.shape, found.classifier.shape, found.status.ok, abs(found.optimality_gap) < 1e-12
    ((5, 3), (3, 5), True, True)
    """

    frame: Array
    status: Status
    formulation: Formulation
    delta: float
    class_means: Array = field(repr=False)  # H (d, K)
    proximal: Array | None = field(repr=False)  # U₀ (d, K), None without proximal term
    variable: Array = field(repr=False)  # X (d, m): m = K, or K−1 if solved as (R)
    linear_term: Array = field(repr=False)  # A (d, m)
    row_space: Array | None = field(repr=False)  # (m, r), orthonormal, of an A of rank r < m; None if r = m
    initial: Array = field(repr=False)  # (d, K): the frame that determines X where A does not
    history: tuple[Iteration, ...] = field(default=(), repr=False)

    @property
    def iterations(self) -> int:
        return len(self.history)

    @property
    def gauge_free(self) -> bool:
        """Whether `variable` is in St(d, K−1), as in (R)."""
        return self.variable.shape[1] < self.frame.shape[1]

    @cached_property
    def classifier(self) -> Array:
        """`W = √(K/(K−1)) M Uᵀ`, (K, d), unit rows."""
        K = self.frame.shape[1]
        return np.sqrt(K / (K - 1)) * centred(self.frame).T

    @cached_property
    def objective(self) -> float:
        """The value of (P), or of (R) with the proximal distance between ETFs."""
        value = safe_frobenius(self.class_means - centred(self.frame) / np.sqrt(self.frame.shape[1] - 1)) ** 2
        if self.proximal is None:
            return value
        apart = self.frame - self.proximal
        return value + 0.5 * self.delta * safe_frobenius(apart if self.formulation == "paper" else centred(apart)) ** 2

    @cached_property
    def gradient_norm(self) -> float:
        """`‖A − X sym(XᵀA)‖_F`, the norm of the Riemannian gradient of (P′)."""
        X, A = self.variable, self.linear_term
        return safe_frobenius(A - X @ sym(X.T @ A))

    @cached_property
    def singular_values(self) -> Array:
        """The singular values of A, descending, (m,)."""
        return svdvals(self.linear_term, check_finite=False)

    @property
    def optimality_gap(self) -> float:
        """`‖A‖_* − ⟨X, A⟩`, the distance of the value from its optimum; negative only by rounding."""
        return float(self.singular_values.sum()) - float(np.vdot(self.variable, self.linear_term))

    @property
    def condition_number(self) -> float:
        """κ = σ₁/σ_m of A, infinite if A is rank-deficient; derivatives lose about log₁₀ κ digits."""
        smallest = float(self.singular_values[-1])
        return float(self.singular_values[0]) / smallest if smallest > 0 else float("inf")


def nearest_etf(
    class_means: ArrayLike,
    proximal: ArrayLike | None = None,
    delta: float = 1e-3,
    *,
    method: Method = "trust-region",
    formulation: Formulation = "paper",
    initial: ArrayLike | Initial | None = None,
    subproblem: Subproblem = "exact",
    tolerance: float = 1e-13,
    max_iterations: int = 300,
) -> NearestETF:
    """The simplex ETF nearest to the class means, in float64.

    Parameters
    ----------
    class_means : (d, K)
        `H`: columns are class means minus the global mean, usually divided by `‖H‖_F`. A transposed matrix is refused
        unless its shape is valid too: at d = K, and gauge-free at d = K ± 1.
    proximal : (d, K), optional
        `U₀`, usually the `frame` of the previous solution, of either formulation. None, or delta = 0, omits the
        proximal term, as in the first step: of the minimisers, the one nearest to `initial` is returned, in the
        paper's formulation a full orthonormal frame.
    delta : float
        `δ ≥ 0`, the weight of the proximal term.
    method : {"trust-region", "svd"}
        The paper's Riemannian trust region, or the polar factor of A by the SVD. The other methods of
        `nearest_etf.torchport` are refused.
    formulation : {"paper", "gauge-free"}
        (P), which needs d ≥ K, or (R), which needs d ≥ K−1.
    initial : (d, K) or {"canonical", "random", "feature-polar"}, optional
        The start of the trust region. If the minimiser is not unique, the one nearest to it is returned. Default: the
        proximal point, or without one the canonical (identity) frame. "random" is one fixed Haar frame; see
        `initial_frame`. Derivatives treat it as constant.
    subproblem : {"exact", "truncated-cg"}
        The solver of the trust-region subproblem.
    tolerance : float
        Bound on the norm of the Riemannian gradient, relative to `‖A‖_F`.
    max_iterations : int
        Outer iterations of the trust region.

    Returns
    -------
    NearestETF

    Raises
    ------
    ValueError
        If an array has a wrong shape, is transposed or is not finite, `delta` is negative, K < 2, d is too small
        for the formulation, a proximal or initial array is not a frame, or an option is unknown.

    Notes
    -----
    For d = K the manifold has two components, and no retraction leads from one to the other. If the trust region ends
    at the optimum of the wrong component, the solution is its reflection into the other.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> H = rng.standard_normal((16, 4))
    >>> first = nearest_etf(H / np.linalg.norm(H))
    >>> later = nearest_etf(H / np.linalg.norm(H), proximal=first.frame)
    >>> later.status.value, abs(later.optimality_gap) < 1e-12
    ('converged', True)
    """
    check_method(method)
    check_choice("formulation", formulation, ("paper", "gauge-free"))
    check_choice("subproblem", subproblem, ("exact", "truncated-cg"))
    H = class_means_matrix(class_means, formulation)
    d, K = H.shape
    delta = real_number("delta", delta)
    tolerance, max_iterations = real_number("tolerance", tolerance), whole_number("max_iterations", max_iterations)
    U0 = None if proximal is None else frame_like("proximal", proximal, (d, K))
    if initial is None:
        C = canonical_frame(d, K) if U0 is None else U0
    elif isinstance(initial, str):
        C = initial_frame(cast(Initial, initial), H)
    else:
        C = frame_like("initial", initial, (d, K))

    # The linear problem max ⟨X, A⟩. Without a proximal term along 1 it does not depend on U·1.
    ones = np.full(K, K**-0.5)
    if delta == 0:
        U0 = None
    reduced = formulation == "gauge-free" or U0 is None or float(np.linalg.norm(U0 @ ones)) < 1e-8
    Q = centred_basis(K) if reduced else None
    A = centred(H) if Q is None else centred(H) @ Q
    if safe_frobenius(A) <= 8 * EPS * safe_frobenius(H):  # equal class means, up to rounding
        A = np.zeros_like(A)
    A *= 2.0 / np.sqrt(K - 1)
    if U0 is not None:
        A += delta * (U0 if Q is None else U0 @ Q)
    start = C if Q is None else C @ Q
    if not check_point(start, 1e-8)[0]:  # a single-precision frame, or ‖U·1‖ ≠ √K
        nearest = polar_by_svd(start)
        start = complete_frame(nearest.left, nearest.right, np.eye(*start.shape))

    scale = safe_frobenius(A)
    B = A / scale if scale > 0 else A
    if method == "svd":
        X, left, right, history, status = polar_by_svd(B)
    else:
        X, left, right, history, status = polar_by_trust_region(B, start, subproblem, tolerance, max_iterations)

    # `left @ right.T` is X on the range of A; the initial frame determines the rest.
    unique = left.shape[1] == X.shape[1]
    if not unique:
        X = complete_frame(left, right, start)
        status = Status.NOT_UNIQUE if status.ok else status
    if Q is None:
        frame, decided_by = X, start
    elif formulation == "gauge-free":
        frame, decided_by = X @ Q.T, start @ Q.T
    else:
        frame, decided_by = complete_frame(left, Q @ right, C) if not unique else complete_frame(X, Q, C), C
        X = frame @ Q

    return NearestETF(
        frame=frame,
        status=status,
        formulation=formulation,
        delta=0.0 if U0 is None else float(delta),
        class_means=H,
        proximal=U0,
        variable=X,
        linear_term=A,
        row_space=None if unique else right,
        initial=decided_by,
        history=history,
    )


def initial_frame(kind: Initial, class_means: ArrayLike, rng: np.random.Generator | None = None) -> Array:
    """A start for the trust region, (d, K); the paper does not compare these choices.

    A fourth choice is the previous solution: pass its `frame` as `initial`.

    Parameters
    ----------
    kind : {"canonical", "random", "feature-polar"}
        The identity `eye(d, K)`; a Haar-distributed frame; the polar factor of the centred class means.
    class_means : (d, K)
        Columns are classes.
    rng : numpy.random.Generator, optional
        Draws the random frame; default: seed 0.

    Raises
    ------
    ValueError
        If the kind is unknown, or the class means have a wrong shape, look transposed or are not finite.

    Examples
    --------
    >>> initial_frame("canonical", np.zeros((3, 2)))
    array([[1., 0.],
           [0., 1.],
           [0., 0.]])
    """
    check_choice("initial", kind, ("canonical", "random", "feature-polar"))
    H = class_means_matrix(class_means)
    d, K = H.shape
    canonical = canonical_frame(d, K)
    if kind == "canonical":
        return canonical
    Q = centred_basis(K)
    if kind == "random":
        rng = np.random.default_rng(0) if rng is None else rng
        return random_point(d, K, rng) if d >= K else random_point(d, K - 1, rng) @ Q.T
    scale = safe_frobenius(H)
    nearest = polar_by_svd(H @ Q / (scale if scale > 0 else 1.0))
    if d >= K:
        return complete_frame(nearest.left, Q @ nearest.right, canonical)
    return complete_frame(nearest.left, nearest.right, canonical @ Q) @ Q.T
