"""The Riemannian trust-region method for a smooth cost on the Stiefel manifold.

Source: Absil, Baker & Gallivan, *Trust-region methods on Riemannian manifolds* (2007); Conn, Gould & Toint,
*Trust-Region Methods* (2000), section 7.5 (truncated conjugate gradients); Boumal (2023), section 6.4.

At a point U the cost is modelled on the tangent space by

    m(V) = f(U) + ⟨g, V⟩ + ½⟨V, Hess f(U)[V]⟩,    ‖V‖ ≤ Δ,

The (approximate) minimiser of the subproblem is retracted to the manifold. The ratio of the actual to the modelled
decrease determines whether the step is accepted and how Δ changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np

from .stiefel import Array, check_point, frobenius, project, retract_polar, sym

EPS = float(np.finfo(np.float64).eps)


class Status(Enum):
    """The outcome of a solve.

    Attributes
    ----------
    ok : bool
        Whether the point is a minimiser.
    advice : str
        A sentence with the remedy.

    Examples
    --------
    >>> [status.name for status in Status if status.ok]
    ['CONVERGED', 'NOT_UNIQUE']
    """

    CONVERGED = "converged"
    NOT_UNIQUE = "not_unique"
    MAX_ITERATIONS = "max_iterations"
    RADIUS_TOO_SMALL = "radius_too_small"
    NOT_FINITE = "not_finite"

    @property
    def advice(self) -> str:
        return _ADVICE[self]

    @property
    def ok(self) -> bool:
        """Whether the point is a minimiser."""
        return self in (Status.CONVERGED, Status.NOT_UNIQUE)


_ADVICE = {
    Status.CONVERGED: "the point is a minimiser to the given tolerance",
    Status.NOT_UNIQUE: "the point is a minimiser, but not the only one: it is the one nearest to `initial`, "
    "and derivatives are undefined here; distinct class means, or delta > 0, make it unique",
    Status.MAX_ITERATIONS: "raise max_iterations, start nearer (a previous solution), or loosen the tolerance",
    Status.RADIUS_TOO_SMALL: "no step decreases the cost: the tolerance is below rounding, "
    "or gradient and Hessian do not belong to the cost (check them with nearest_etf.reference.taylor)",
    Status.NOT_FINITE: "cost or gradient became infinite or NaN: rescale the problem or check its derivatives",
}


class Problem(Protocol):
    """A smooth cost on St(d, K), given by its extension to R^{d×K}."""

    def cost(self, U: Array) -> float:
        """f(U)."""
        ...

    def gradient(self, U: Array) -> Array:
        """The Euclidean gradient ∇f(U), (d, K)."""
        ...

    def hessian(self, U: Array, V: Array) -> Array | float:
        """The Euclidean Hessian along V, D∇f(U)[V], (d, K), or 0.0 if the cost is linear."""
        ...


@dataclass(frozen=True)
class LocalModel:
    """The quadratic model of the cost on the tangent space at `point`."""

    point: Array  # U (d, K)
    gradient: Array  # the Riemannian gradient g (d, K)
    frame_gradient: Array  # Uᵀ∇f (K, K); its symmetric part is the multiplier of UᵀU = I
    hessian: Callable[[Array], Array]  # V -> Hess f(U)[V] (d, K)


@dataclass(frozen=True)
class Step:
    """The solution of a subproblem."""

    direction: Array  # V (d, K), tangent
    decrease: float  # m(0) − m(V), positive
    on_boundary: bool
    inner_iterations: int


Subproblem = Callable[[LocalModel, float], Step]


@dataclass(frozen=True)
class Iteration:
    """The record of one outer iteration."""

    cost: float
    gradient_norm: float
    radius: float
    ratio: float
    step_norm: float
    accepted: bool
    inner_iterations: int


@dataclass(frozen=True)
class TrustRegionResult:
    """The final point, with its status and the history.

    Attributes
    ----------
    point : (d, K)
        `U`.
    model : LocalModel
        The quadratic model of the cost at the point.
    cost, gradient_norm : float
        The cost, and the norm of its Riemannian gradient.
    status : Status
    history : tuple of Iteration
    iterations : int

    Examples
    --------
    >>> class Linear:
    ...     def cost(self, U): return -float(U[:2].trace())
    ...     def gradient(self, U): return -np.eye(4, 2)
    ...     def hessian(self, U, V): return np.zeros_like(V)
    >>> found = trust_region(Linear(), np.eye(4, 2, k=-1))
    >>> found.point.shape, found.status.ok, round(found.cost, 6)
    ((4, 2), True, -2.0)
    """

    model: LocalModel  # at the final point
    cost: float
    gradient_norm: float
    status: Status
    history: tuple[Iteration, ...]

    @property
    def point(self) -> Array:
        return self.model.point

    @property
    def iterations(self) -> int:
        return len(self.history)


def trust_region(
    problem: Problem,
    initial: Array,
    *,
    subproblem: Subproblem | None = None,
    escape: Callable[[LocalModel], tuple[Array, float] | None] | None = None,
    retraction: Callable[[Array, Array], Array] = retract_polar,
    tolerance: float = 1e-10,
    max_iterations: int = 300,
    radius: float | None = None,
) -> TrustRegionResult:
    """Minimise a smooth cost over St(d, K).

    Parameters
    ----------
    problem : Problem
        Cost, Euclidean gradient and Hessian-vector product.
    initial : (d, K)
        A matrix with orthonormal columns, d ≥ K. With an error of up to 1e-3 it is moved onto the manifold.
    subproblem : callable, optional
        Minimises the model in a ball, `(LocalModel, radius) -> Step`; default `truncated_cg`.
    escape : callable, optional
        At a critical point, returns a unit tangent direction of negative curvature and that curvature, or None at a
        minimiser. Without it, a saddle counts as converged.
    retraction : callable
        `retract_polar` or `retract_qr`.
    tolerance : float
        Absolute bound on the norm of the Riemannian gradient.
    max_iterations : int
        Outer iterations, rejected steps included.
    radius : float, optional
        The initial trust-region radius; default √K/2, a quarter of the largest radius.

    Returns
    -------
    TrustRegionResult

    Raises
    ------
    ValueError
        If the initial point is not on the manifold.

    Examples
    --------
    The dominant subspace of a symmetric matrix, by Brockett's cost −½ tr(UᵀBU):

    >>> class Subspace:
    ...     B = np.diag([5.0, 4.0, 1.0, 0.5])
    ...     def cost(self, U): return -0.5 * float(np.sum(U * (self.B @ U)))
    ...     def gradient(self, U): return -self.B @ U
    ...     def hessian(self, U, V): return -self.B @ V
    >>> from nearest_etf.reference.stiefel import random_point
    >>> result = trust_region(Subspace(), random_point(4, 2, np.random.default_rng(0)))
    >>> result.status.value, round(result.cost, 6)
    ('converged', -4.5)
    """
    solve = truncated_cg if subproblem is None else subproblem
    U = np.array(initial, dtype=np.float64)
    on_manifold, reason = check_point(U) if U.ndim == 2 else (False, f"shape {U.shape} is not that of a matrix")
    if not on_manifold:
        if U.ndim != 2 or not check_point(U, tolerance=1e-3)[0]:
            raise ValueError(
                f"initial is not a point of the Stiefel manifold: {reason}. Pass a matrix (d, K) with orthonormal "
                "columns."
            )
        U = retract_polar(U, np.zeros_like(U))  # no step would reduce the normal part of the gradient
    largest = 2.0 * np.sqrt(U.shape[1])  # the diameter of the manifold in the Frobenius norm
    delta = largest / 4 if radius is None else min(radius, largest)
    cost, model = problem.cost(U), local_model(problem, U)
    norm = frobenius(model.gradient)
    history: list[Iteration] = []

    def ended(status: Status) -> TrustRegionResult:
        return TrustRegionResult(model, cost, norm, status, tuple(history))

    while True:
        if not (np.isfinite(cost) and np.isfinite(norm)):
            return ended(Status.NOT_FINITE)
        step = None
        if norm <= tolerance:
            way_out = escape(model) if escape is not None else None
            if way_out is None:
                return ended(Status.CONVERGED)
            direction, curvature = way_out
            step = Step(delta * direction, -0.5 * curvature * delta**2, True, 0)
        if len(history) == max_iterations:
            return ended(Status.MAX_ITERATIONS)
        if delta < 1e4 * EPS * largest:  # below this radius the ratio is dominated by rounding
            return ended(Status.RADIUS_TOO_SMALL)

        if step is None:
            step = solve(model, delta)
        trial = retraction(U, step.direction)
        trial_cost = problem.cost(trial)
        # Near the optimum both decreases are smaller than the rounding of f. With this rounding added to both, the
        # ratio tends to 1 instead of being noise (Conn, Gould & Toint, section 17.4.2).
        rounding = 1e3 * EPS * abs(cost)
        ratio = (cost - trial_cost + rounding) / (step.decrease + rounding) if step.decrease > 0 else -np.inf
        accepted = bool(ratio > 0.1)
        step_norm = frobenius(step.direction)
        history.append(Iteration(cost, norm, delta, float(ratio), step_norm, accepted, step.inner_iterations))

        if not ratio >= 0.25:  # also for NaN
            delta = 0.25 * min(delta, step_norm) if step_norm > 0 else 0.25 * delta
        elif ratio > 0.75 and step.on_boundary:
            delta = min(2.0 * delta, largest)
        if accepted:
            U, cost, model = trial, trial_cost, local_model(problem, trial)
            norm = frobenius(model.gradient)


def local_model(problem: Problem, U: Array) -> LocalModel:
    """Riemannian gradient and Hessian from the Euclidean ones (Absil et al. 2008, section 5.3; Boumal, 7.3).

    `g = ∇f − U S` and `Hess[V] = Proj_U(D∇f[V] − V S)` with `S = sym(Uᵀ∇f)`.
    """
    euclidean = problem.gradient(U)
    frame_gradient = U.T @ euclidean
    S = sym(frame_gradient)
    gradient = U @ S
    np.subtract(euclidean, gradient, out=gradient)  # allocating a (d, K) array costs as much as a product

    def hessian(V: Array) -> Array:
        return project(U, problem.hessian(U, V) - V @ S)

    return LocalModel(U, gradient, frame_gradient, hessian)


def truncated_cg(model: LocalModel, radius: float, *, kappa: float = 0.1, theta: float = 1.0) -> Step:
    """The conjugate gradients of Steihaug and Toint, stopped at the boundary, at negative curvature or at a tolerance.

    The tolerance on the residual is `‖g‖ · min(‖g‖^θ, κ)`; with θ = 1 the outer method converges quadratically. First
    the gradient is projected again: near the optimum, rounding adds a normal part, along which curvature is noise.
    """
    V = np.zeros_like(model.gradient)
    HV = np.zeros_like(V)
    residual = project(model.point, model.gradient)
    direction = -residual
    rr = rr_first = float(np.vdot(residual, residual))
    target = np.sqrt(rr_first) * min(rr_first ** (theta / 2), kappa)
    vv = vp = 0.0  # ‖V‖² and ⟨V, direction⟩, by recurrence
    pp = rr
    d, K = V.shape
    most = d * K - K * (K + 1) // 2  # the dimension of the manifold

    for inner in range(1, most + 1):
        HP = model.hessian(direction)
        curvature = float(np.vdot(direction, HP))
        length = rr / curvature if curvature > 0 else np.inf
        if curvature <= 0 or vv + 2 * length * vp + length**2 * pp >= radius**2:
            to_boundary = (-vp + np.sqrt(vp**2 + pp * (radius**2 - vv))) / pp
            V, HV = V + to_boundary * direction, HV + to_boundary * HP
            return Step(V, _decrease(model, V, HV), True, inner)
        V, HV = V + length * direction, HV + length * HP
        residual = residual + length * HP
        rr_next = float(np.vdot(residual, residual))
        if np.sqrt(rr_next) <= target:
            break
        vv += 2 * length * vp + length**2 * pp
        beta = rr_next / rr
        vp = beta * (vp + length * pp)
        pp = rr_next + beta**2 * pp
        direction = beta * direction - residual
        rr = rr_next
    return Step(V, _decrease(model, V, HV), False, inner)


def _decrease(model: LocalModel, V: Array, HV: Array) -> float:
    return -float(np.vdot(model.gradient, V)) - 0.5 * float(np.vdot(V, HV))
