"""Claims about the derivatives of the solution.

The closed form is checked against the dense declarative form and against finite differences of the other method.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

from .claims import Case, Claim, relative
from .implicit import IllConditionedWarning, nearest_etf_jvp, nearest_etf_vjp
from .procrustes import NearestETF, nearest_etf
from .stiefel import Array, project

DENSE_UNKNOWNS = 150  # the dense declarative form is built up to here


def _dense_vjp(case: Case) -> float | None:
    """Both cotangents: closed form against the dense declarative form."""
    if case.solution.variable.size > DENSE_UNKNOWNS:
        return None
    ours = nearest_etf_vjp(case.solution, case.cotangent)
    dense = nearest_etf_vjp(case.solution, case.cotangent, form="dense")
    return relative(np.stack(ours), np.stack(dense))


def _adjoint(case: Case) -> float:
    """⟨G, jvp(dH, dU₀)⟩ = ⟨vjp(G), (dH, dU₀)⟩."""
    H_dot, U0_dot = case.rng.standard_normal((2, *case.solution.frame.shape))
    H_bar, U0_bar = nearest_etf_vjp(case.solution, case.cotangent)
    pushed = float(np.vdot(case.cotangent, nearest_etf_jvp(case.solution, H_dot, U0_dot)))
    pulled = float(np.vdot(H_bar, H_dot) + np.vdot(U0_bar, U0_dot))
    size = np.linalg.norm(H_bar) * np.linalg.norm(H_dot) + np.linalg.norm(U0_bar) * np.linalg.norm(U0_dot)
    return abs(pushed - pulled) / float(size)


def _finite_differences(case: Case) -> float | None:
    """jvp against central differences of `method="svd"`, for class means and proximal point together."""
    problem = case.problem
    H_dot = case.rng.standard_normal(problem.class_means.shape)
    H_dot /= np.linalg.norm(H_dot)
    U0_dot = None
    if problem.proximal is not None:
        U0_dot = project(problem.proximal, case.rng.standard_normal(H_dot.shape))
        U0_dot /= np.linalg.norm(U0_dot)

    def frame_at(t: float) -> Array:
        U0 = None if problem.proximal is None or U0_dot is None else problem.proximal + t * U0_dot
        H = problem.class_means + t * H_dot
        return nearest_etf(H, U0, problem.delta, method="svd", formulation=problem.formulation).frame

    difference = central(frame_at, 3e-3 * float(case.solution.singular_values[-1]))
    return relative(nearest_etf_jvp(case.solution, H_dot, U0_dot), difference)


def _absent_class(case: Case) -> float | None:
    """jvp against central differences at class means without the first class, along others without it."""
    problem = case.problem
    d, K = problem.class_means.shape
    if problem.delta > 0 or K < 3:
        return None

    def batch(rows: Array) -> Array:  # one sample of every class except the first
        return np.column_stack([np.zeros(d), rows - rows.mean(axis=1, keepdims=True)])

    H, H_dot = batch(problem.class_means[:, 1:]), batch(case.rng.standard_normal((d, K - 1)))
    H_dot /= np.linalg.norm(H_dot)

    def solution_at(t: float) -> NearestETF:
        return nearest_etf(H + t * H_dot, method="svd", formulation=problem.formulation)

    solution = solution_at(0.0)
    difference = central(lambda t: solution_at(t).frame, 3e-3 * float(solution.singular_values[K - 3]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)  # the minimiser is not unique
        return relative(nearest_etf_jvp(solution, H_dot), difference)


def central(f: Callable[[float], Array], step: float) -> Array:
    """The derivative of f at 0 by central differences of fourth order."""
    return (8 * (f(step) - f(-step)) - (f(2 * step) - f(-2 * step))) / (12 * step)


GRADIENT_CLAIMS = (
    Claim("vjp: closed form ↔ dense declarative", 1e-9, _dense_vjp),
    Claim("vjp ↔ jvp: adjoint", 1e-12, _adjoint),
    Claim("jvp ↔ finite differences", 1e-6, _finite_differences),
    Claim("jvp ↔ finite differences, class absent", 1e-6, _absent_class),
)
