"""The nearest simplex ETF to a set of class means, and the certificate that it is.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 3 (the problem, its proximal term and the
trust-region solution). With `UᵀU = I` both quadratic terms are constant, so the paper's problem

    (P)   min_{U ∈ St(d,K)}  ‖H − U M/√(K−1)‖_F² + (δ/2) ‖U − U₀‖_F²

is the orthogonal Procrustes problem (Schönemann 1966)

    (P′)  max_{U ∈ St(d,K)} ⟨U, A⟩,    A = (2/√(K−1)) H M + δ U₀,

solved by every polar factor of A, with value `‖A‖_*`. The gauge-free form (R) is the same in the K−1 dimensions
that the ETF lives in: `Q` for `M`, `U₀Q` for `U₀`, and a variable in St(d, K−1). Below, `X` is the variable of
either form and `E` its basis (`M` or `Q`); where nothing pins the direction `U·1` (no proximal term), the paper's
form too is solved as (R), and the free direction is then taken from the initial frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, cast

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh, qr, svd, svdvals

from .simplex import canonical_frame, centred_basis
from .spectral import escape, exact_step, is_positive_definite
from .stiefel import Array, random_point, retract_polar, sym
from .riemannian import EPS, Iteration, Status, truncated_cg, trust_region

Solver = Literal["trust-region", "polar"]
Formulation = Literal["paper", "gauge-free"]
Initial = Literal["canonical", "random", "feature-polar"]


@dataclass(frozen=True)
class LinearCost:
    """The cost `−⟨X, A⟩` of (P′) and (R), for `trust_region`."""

    A: Array

    def cost(self, X: Array) -> float:
        return -float(np.vdot(X, self.A))

    def gradient(self, X: Array) -> Array:
        return -self.A

    def hessian(self, X: Array, V: Array) -> float:
        return 0.0


@dataclass(frozen=True)
class NearestETF:
    """A solution of (P) or (R), with all that its certificate and its derivatives need.

    Attributes
    ----------
    frame : (d, K)
        `U`; in the gauge-free form the partial isometry `X Qᵀ`. `frame @ M` is the ETF in both.
    classifier : (K, d)
        `W = √(K/(K−1)) M Uᵀ`, unit rows.
    iterations : int
        Outer iterations of the trust region; 0 for the polar factor.
    status : Status
        `status.ok`, and `status.advice` in words.
    history : tuple of Iteration
        What the trust region did, for `A` scaled to unit Frobenius norm.
    """

    frame: Array
    classifier: Array
    status: Status
    formulation: Formulation
    delta: float
    class_means: Array = field(repr=False)  # H (d, K)
    proximal: Array | None = field(repr=False)  # U₀ (d, K), None where there is no proximal term
    variable: Array = field(repr=False)  # X (d, m): m = K, or K−1 where the gauge is left out
    linear_term: Array = field(repr=False)  # A (d, m)
    gauge_start: Array | None = field(repr=False)  # the initial frame's U·1/√K (d,), where it chose the gauge
    history: tuple[Iteration, ...] = field(default=(), repr=False)

    @property
    def iterations(self) -> int:
        return len(self.history)

    @property
    def gauge_free(self) -> bool:
        """Whether `variable` lives in the K−1 dimensions of (R)."""
        return self.variable.shape[1] < self.frame.shape[1]

    @cached_property
    def objective(self) -> float:
        """The value of (P), or of (R) with the proximal distance between ETFs."""
        value = _norm(self.class_means - _centred(self.frame) / np.sqrt(self.frame.shape[1] - 1)) ** 2
        if self.proximal is None:
            return value
        apart = self.frame - self.proximal
        return value + 0.5 * self.delta * _norm(apart if self.formulation == "paper" else _centred(apart)) ** 2

    @cached_property
    def gradient_norm(self) -> float:
        """`‖A − X sym(XᵀA)‖_F`, the norm of the Riemannian gradient of (P′)."""
        X, A = self.variable, self.linear_term
        return _norm(A - X @ sym(X.T @ A))

    @cached_property
    def singular_values(self) -> Array:
        """The singular values of A, descending, (m,)."""
        return svdvals(self.linear_term, check_finite=False)

    @property
    def optimality_gap(self) -> float:
        """`‖A‖_* − ⟨X, A⟩`: how far the value is from the best there is. Not below zero but for rounding."""
        return float(self.singular_values.sum()) - float(np.vdot(self.variable, self.linear_term))

    @property
    def condition_number(self) -> float:
        """σ₁/σ_m of A: derivatives lose about as many digits as it has; infinite where A is rank-deficient."""
        smallest = float(self.singular_values[-1])
        return float(self.singular_values[0]) / smallest if smallest > 0 else float("inf")


def nearest_etf(
    class_means: ArrayLike,
    proximal: ArrayLike | None = None,
    delta: float = 1e-3,
    *,
    solver: Solver = "trust-region",
    formulation: Formulation = "paper",
    initial: ArrayLike | Initial | None = None,
    subproblem: Literal["exact", "truncated-cg"] = "exact",
    tolerance: float = 1e-13,
    max_iterations: int = 300,
) -> NearestETF:
    """The simplex ETF nearest to the class means, in float64.

    Parameters
    ----------
    class_means : (d, K)
        `H`: columns are class means minus the global mean, as a rule divided by `‖H‖_F`.
    proximal : (d, K), optional
        `U₀`, a frame that the solution stays near: the `frame` of a previous solution, of either formulation.
        None, or delta = 0, leaves the proximal term out (the first step's rule): among the minimisers the one
        nearest to `initial` is taken, a full orthonormal frame in the paper's formulation.
    delta : float
        `δ ≥ 0`, the weight of the proximal term.
    solver : {"trust-region", "polar"}
        The paper's Riemannian trust region, or the polar factor of A by singular values.
    formulation : {"paper", "gauge-free"}
        (P), which needs d ≥ K, or (R), which needs d ≥ K−1.
    initial : (d, K) or {"canonical", "random", "feature-polar"}, optional
        Where the trust region starts, and what decides where the minimiser is not unique. Default: the proximal
        point, else the canonical (identity) frame. "random" is one fixed Haar frame; see `initial_frame`.
        Derivatives take it as constant.
    subproblem : {"exact", "truncated-cg"}
        How the trust region's steps are found.
    tolerance : float
        On the Riemannian gradient's norm, relative to `‖A‖_F`.
    max_iterations : int
        Outer iterations of the trust region.

    Returns
    -------
    NearestETF

    Raises
    ------
    ValueError
        If an array has a wrong shape or is not finite, `delta` is negative, K < 2, d is too small for the
        formulation, a proximal or initial array is not a frame, or an option is unknown.

    Notes
    -----
    For d = K the manifold has two components and a retraction never leaves its own: a trust region that ends at
    the optimum of the wrong one is reflected into the other, which is optimal.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> H = rng.standard_normal((16, 4))
    >>> first = nearest_etf(H / np.linalg.norm(H))
    >>> later = nearest_etf(H / np.linalg.norm(H), proximal=first.frame)
    >>> later.status.value, abs(later.optimality_gap) < 1e-12
    ('converged', True)
    """
    _check_choice("solver", solver, ("trust-region", "polar"))
    _check_choice("formulation", formulation, ("paper", "gauge-free"))
    _check_choice("subproblem", subproblem, ("exact", "truncated-cg"))
    H = _finite_matrix("class_means", class_means)
    d, K = H.shape
    _check_sizes(d, K, formulation)
    if not (np.isfinite(delta) and delta >= 0):
        raise ValueError(f"delta = {delta}; expected a finite number that is not negative.")
    U0 = None if proximal is None else _frame("proximal", proximal, (d, K))
    if initial is None:
        C = canonical_frame(d, K) if U0 is None else U0
    elif isinstance(initial, str):
        C = initial_frame(cast(Initial, initial), H)
    else:
        C = _frame("initial", initial, (d, K))

    # The linear problem max ⟨X, A⟩. Without a proximal term along 1 the direction U·1 drops out of it.
    ones = np.full(K, K**-0.5)
    if delta == 0:
        U0 = None
    reduced = formulation == "gauge-free" or U0 is None or float(np.linalg.norm(U0 @ ones)) < 1e-8
    Q = centred_basis(K) if reduced else None
    A = _centred(H) if Q is None else _centred(H) @ Q
    if _norm(A) <= 8 * EPS * _norm(H):  # what rounding leaves of equal class means
        A = np.zeros_like(A)
    A *= 2.0 / np.sqrt(K - 1)
    if U0 is not None:
        A += delta * (U0 if Q is None else U0 @ Q)
    start = C if Q is None else C @ Q

    scale = _norm(A)
    B = A / scale if scale > 0 else A
    if solver == "polar":
        X, left, right = _polar(B)
        history: tuple[Iteration, ...] = ()
        status = Status.CONVERGED
    else:
        X, left, right, history, status = polar_by_trust_region(B, start, subproblem, tolerance, max_iterations)

    # `left @ right.T` is X on the range of A; what A leaves open is taken from the initial frame.
    unique = left.shape[1] == X.shape[1]
    if not unique:
        X = complete_frame(left, right, start)
        status = Status.NOT_UNIQUE if status.ok else status
    gauge_start = None
    if Q is None:
        frame = X
    elif formulation == "gauge-free":
        frame = X @ Q.T
    else:
        gauge_start = C @ ones
        frame = complete_frame(left, Q @ right, C) if not unique else complete_frame(X, Q, C)
        X = frame @ Q

    return NearestETF(
        frame=frame,
        classifier=np.sqrt(K / (K - 1)) * _centred(frame).T,
        status=status,
        formulation=formulation,
        delta=0.0 if U0 is None else float(delta),
        class_means=H,
        proximal=U0,
        variable=X,
        linear_term=A,
        gauge_start=gauge_start,
        history=history,
    )


def initial_frame(kind: Initial, class_means: Array, rng: np.random.Generator | None = None) -> Array:
    """A start for the trust region, (d, K): the choices whose comparison the paper leaves open.

    "canonical" is the identity `eye(d, K)`; "random" is Haar-distributed, from `rng` (default: seed 0);
    "feature-polar" is the polar factor of the class means themselves, centred. The last solution is the fourth:
    pass its `frame`.

    Raises
    ------
    ValueError
        If the kind is unknown.
    """
    _check_choice("initial", kind, ("canonical", "random", "feature-polar"))
    d, K = class_means.shape
    canonical = canonical_frame(d, K)
    if kind == "canonical":
        return canonical
    Q = centred_basis(K)
    if kind == "random":
        rng = np.random.default_rng(0) if rng is None else rng
        return random_point(d, K, rng) if d >= K else random_point(d, K - 1, rng) @ Q.T
    scale = _norm(class_means)
    _, left, right = _polar(class_means @ Q / (scale if scale > 0 else 1.0))
    if d >= K:
        return complete_frame(left, Q @ right, canonical)
    return complete_frame(left, right, canonical @ Q) @ Q.T


def complete_frame(left: Array, right: Array, nearest_to: Array) -> Array:
    """The frame nearest to `nearest_to` (d, m) among those that map `right` (m, r) to `left` (d, r).

    Both have orthonormal columns. With orthonormal complements the frame is `left rightᵀ + left_⊥ Z right_⊥ᵀ`,
    and Z is the polar factor of `left_⊥ᵀ nearest_to right_⊥`; where that is singular too, LAPACK's singular
    vectors decide, always in the same way.
    """
    (d, r), m = left.shape, right.shape[0]
    if r == m:
        return left @ right.T
    right_rest = qr(right)[0][:, r:] if r else np.eye(m)  # (m, m−r)
    target = nearest_to @ right_rest
    # The complement of span(left) in R^d may be huge; this much of it holds the target, and room to complete it.
    span = qr(np.hstack([left, target, np.eye(d, m)]), mode="economic")[0]
    left_rest = span[:, r:]
    Z, _, Yt = svd(left_rest.T @ target, full_matrices=False)
    return left @ right.T + left_rest @ (Z @ Yt) @ right_rest.T


def _polar(B: Array) -> tuple[Array, Array, Array]:
    """A polar factor of B (d, m), and its factors on the range of B: left (d, r), right (m, r)."""
    left, singular_values, right_t = svd(B, full_matrices=False, check_finite=False)
    rank = int(np.sum(singular_values > _rank_tolerance(B.shape) * singular_values[0]))
    return left @ right_t, left[:, :rank], right_t[:rank].T


def polar_by_trust_region(
    B: Array,
    start: Array,
    subproblem: Literal["exact", "truncated-cg"] = "exact",
    tolerance: float = 1e-13,
    max_iterations: int = 300,
) -> tuple[Array, Array, Array, tuple[Iteration, ...], Status]:
    """The trust region's polar factor of B (d, m), from a point `start` of St(d, m); B has unit norm, or is zero.

    Returns the factor, its factors on the range of B, left (d, r) and right (m, r), the history and the status.
    """
    result = trust_region(
        LinearCost(B),
        start,
        subproblem=exact_step if subproblem == "exact" else truncated_cg,
        escape=escape,
        retraction=retract_polar,
        tolerance=tolerance * _norm(B),
        max_iterations=max_iterations,
    )
    X, S = result.model.point, -sym(result.model.frame_gradient)
    d, m = X.shape
    error = X.T @ X - np.eye(m)
    if _norm(error) > 4 * m * EPS:  # one Newton–Schulz step takes what rounding left of UᵀU − I to its square
        X = X - 0.5 * X @ error
    tolerated = max(_rank_tolerance(B.shape) * _norm(S), 4 * result.gradient_norm)
    if is_positive_definite(S, tolerated) or not result.status.ok:
        return X, X, np.eye(m), result.history, result.status
    values, Y = eigh(S)
    if d == m and values[0] < -tolerated:
        X = X - 2.0 * np.outer(X @ Y[:, 0], Y[:, 0])
        values = np.abs(values)
    kept = Y[:, values > tolerated]
    if kept.shape[1] == m:
        return X, X, np.eye(m), result.history, result.status
    return X, X @ kept, kept, result.history, result.status


def _rank_tolerance(shape: tuple[int, ...]) -> float:
    """Singular values below this share of the largest are zero: the rule of numpy.linalg.matrix_rank."""
    return max(shape) * EPS


def _centred(H: Array) -> Array:
    """`H M` (d, K)."""
    return H - H.mean(axis=1, keepdims=True)


def _norm(B: Array) -> float:
    """The Frobenius norm, safe from overflow and underflow of the squares."""
    squared = float(np.vdot(B, B))
    if 1e-250 < squared < 1e250:
        return squared**0.5
    largest = float(np.abs(B).max(initial=0.0))
    return largest * float(np.linalg.norm(B / largest)) if 0.0 < largest < np.inf else largest


def _check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} = {value!r}; expected one of {', '.join(map(repr, known))}.")


def _check_sizes(d: int, K: int, formulation: str) -> None:
    if K < 2:
        raise ValueError(f"class_means has {K} column(s); a simplex ETF needs at least 2 classes.")
    if d < K - 1:
        raise ValueError(
            f"class_means has shape ({d}, {K}): a simplex ETF of {K} classes spans {K - 1} dimensions and does not "
            f"fit into {d}. Use at least {K - 1} features, and the gauge-free formulation for exactly as many."
        )
    if d < K and formulation == "paper":
        raise ValueError(
            f"class_means has shape ({d}, {K}): the paper's formulation asks for {K} orthonormal columns in {d} "
            'dimensions. Use formulation="gauge-free", which needs only K−1 features, or more features.'
        )


def _finite_matrix(name: str, value: ArrayLike) -> Array:
    B = np.asarray(value, dtype=np.float64)
    if B.ndim != 2:
        raise ValueError(f"{name} has shape {B.shape}; expected a matrix (d, K) whose columns are classes.")
    if not np.isfinite(B).all():
        raise ValueError(f"{name} holds NaN or infinite entries: {int(np.sum(~np.isfinite(B)))} of {B.size}.")
    return B


def _frame(name: str, value: ArrayLike, shape: tuple[int, int]) -> Array:
    """A frame of either kind: only the Gram matrix of its ETF `U M` is asked to be M."""
    U = _finite_matrix(name, value)
    if U.shape != shape:
        raise ValueError(f"{name} has shape {U.shape}; expected {shape}, as class_means.")
    K = shape[1]
    etf = _centred(U)
    gram = etf.T @ etf
    gram[np.diag_indices(K)] -= 1.0
    error = float(np.abs(gram + 1.0 / K).max())
    if error > 1e-3:
        raise ValueError(
            f"{name} is not a frame: (U M)ᵀ(U M) differs from M by {error:.1e}. Pass the `frame` of a solution "
            "(not its classifier), or the polar factor of your matrix."
        )
    return U
