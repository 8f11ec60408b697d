"""Checks of gradients, Hessians and retractions by Taylor slopes.

Source: Boumal, *An Introduction to Optimization on Smooth Manifolds* (2023), sections 4.8 and 6.8; Manopt's
`checkgradient` and `checkhessian`. Along a tangent direction V the error of a k-th order model,
`|f(R_U(tV)) − model(t)|`, is O(t^{k+1}): its slope in a log-log plot is 2 for a correct gradient and 3 for a correct
Hessian. With a second-order retraction (polar) the Hessian's slope is 3 everywhere, with a first-order one (QR) only at
critical points. The error of an exact model is rounding only, and has no slope.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .riemannian import EPS, Problem, local_model
from .stiefel import Array, project, retract_polar

STEPS: Array = np.logspace(-6, -1, 26)
WINDOW = 7  # points of STEPS, 1.2 decades
# The larger error of t and −t is used: |at² + bt³| may bend where its terms cancel, |a|t² + |b|t³ does not.
BOTH_WAYS: Array = np.stack([STEPS, -STEPS])  # (2, n)


@dataclass(frozen=True)
class TaylorSlope:
    """The slope found, the one expected, and whether the check passes.

    If `exact`, the error does not exceed rounding, and the slope is infinite.
    """

    slope: float
    expected: float
    exact: bool

    @property
    def ok(self) -> bool:
        return self.slope > self.expected - 0.1


def gradient_slope(
    problem: Problem,
    U: Array,
    V: Array,
    *,
    gradient: Array | None = None,
    retraction: Callable[[Array, Array], Array] = retract_polar,
) -> TaylorSlope:
    """Slope of `|f(R_U(tV)) − f(U) − t⟨g, V⟩|`: 2 for a correct g (that of the problem, or `gradient`).

    Examples
    --------
    >>> from nearest_etf.reference.polar import LinearCost
    >>> from nearest_etf.reference.stiefel import random_point, random_tangent
    >>> rng = np.random.default_rng(0)
    >>> U = random_point(6, 3, rng)
    >>> gradient_slope(LinearCost(rng.standard_normal((6, 3))), U, random_tangent(U, rng)).ok
    True
    """
    g = local_model(problem, U).gradient if gradient is None else gradient
    base, first = problem.cost(U), float(np.vdot(g, V))
    values = np.array([[problem.cost(retraction(U, t * V)) for t in way] for way in BOTH_WAYS])
    errors = np.abs(values - base - BOTH_WAYS * first)
    return fit_slope(errors.max(axis=0), 2.0, noise=abs(base) + np.abs(values).max())


def hessian_slope(
    problem: Problem, U: Array, V: Array, *, retraction: Callable[[Array, Array], Array] = retract_polar
) -> TaylorSlope:
    """Slope of `|f(R_U(tV)) − f(U) − t⟨g, V⟩ − ½t²⟨V, Hess[V]⟩|`: 3 if gradient and Hessian are correct."""
    model = local_model(problem, U)
    base, first, second = (
        problem.cost(U),
        float(np.vdot(model.gradient, V)),
        float(np.vdot(V, model.hessian(V))),
    )
    values = np.array([[problem.cost(retraction(U, t * V)) for t in way] for way in BOTH_WAYS])
    errors = np.abs(values - base - BOTH_WAYS * first - 0.5 * BOTH_WAYS**2 * second)
    terms = float(np.linalg.norm(model.frame_gradient))  # the cost may be small because its terms cancel
    return fit_slope(errors.max(axis=0), 3.0, noise=terms + abs(base) + np.abs(values).max())


def retraction_slope(retraction: Callable[[Array, Array], Array], U: Array, V: Array, order: int) -> TaylorSlope:
    """Slope of `‖Proj_U(R_U(tV) − U − tV)‖`: 2 for every retraction, 3 for a second-order one."""
    errors = np.array([np.linalg.norm(project(U, retraction(U, t * V) - U - t * V)) for t in STEPS])
    return fit_slope(errors, order + 1.0, noise=1.0)


def fit_slope(errors: Array, expected: float, noise: float) -> TaylorSlope:
    """The slope of log(errors) over log(STEPS) in the most linear window above the rounding of `noise`."""
    above = errors > 1e3 * EPS * noise
    fits = []
    for start in range(len(STEPS) - WINDOW + 1):
        window = slice(start, start + WINDOW)
        if above[window].all():
            fit, residual, *_ = np.polyfit(np.log(STEPS[window]), np.log(errors[window]), 1, full=True)
            fits.append((float(residual[0]), float(fit[0])))
    if not fits:
        return TaylorSlope(np.inf, expected, exact=True)
    return TaylorSlope(min(fits)[1], expected, exact=False)
