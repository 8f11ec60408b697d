"""Claims about the derivatives of the solution.

The closed form is checked against the dense declarative form and against finite differences of the other method.
"""

from __future__ import annotations

import numpy as np

from .claims import Case, Claim, relative
from .implicit import nearest_etf_jvp, nearest_etf_vjp
from .procrustes import nearest_etf
from .stiefel import Array, project

DENSE_UNKNOWNS = 150  # the dense declarative form is built up to here


def _dense_vjp(case: Case) -> float | None:
    """Closed form against the dense declarative form, both cotangents."""
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
    smallest = float(case.solution.singular_values[-1])
    H_dot = case.rng.standard_normal(problem.class_means.shape)
    H_dot /= np.linalg.norm(H_dot)
    U0_dot = None
    if problem.proximal is not None:
        U0_dot = project(problem.proximal, case.rng.standard_normal(H_dot.shape))
        U0_dot /= np.linalg.norm(U0_dot)
    step = 3e-3 * smallest

    def frame_at(t: float) -> Array:
        U0 = None if problem.proximal is None or U0_dot is None else problem.proximal + t * U0_dot
        H = problem.class_means + t * H_dot
        return nearest_etf(H, U0, problem.delta, method="svd", formulation=problem.formulation).frame

    difference = (8 * (frame_at(step) - frame_at(-step)) - (frame_at(2 * step) - frame_at(-2 * step))) / (12 * step)
    return relative(nearest_etf_jvp(case.solution, H_dot, U0_dot), difference)


GRADIENT_CLAIMS = (
    Claim("vjp: closed form ↔ dense declarative", 1e-9, _dense_vjp),
    Claim("vjp ↔ jvp: adjoint", 1e-12, _adjoint),
    Claim("jvp ↔ finite differences", 1e-6, _finite_differences),
)
