"""Claims about the simplex, the manifold and the derivatives of the problem.

The gradient of (P′) is checked against the paper's own objective, an independent formula.
"""

from __future__ import annotations

import numpy as np

from .claims import Case, Claim
from .riemannian import local_model, truncated_cg
from .simplex import canonical_etf, etf_error, simplex_etf
from .spectral import exact_step
from .stiefel import project, random_tangent, retract_polar, retract_qr
from .taylor import gradient_slope, hessian_slope, retraction_slope


def _simplex(case: Case) -> float:
    """Unit columns, equal angles, rank K−1, and NC2 = 0 in the canonical placement."""
    d, K = case.solution.frame.shape
    E = simplex_etf(K)
    angles = E.T @ E - (K * np.eye(K) - 1.0) / (K - 1)
    return max(float(np.abs(angles).max()), float(np.abs(E.sum(axis=1)).max()), etf_error(canonical_etf(d, K).T))


def _manifold(case: Case) -> float:
    """Projection: tangent, idempotent, self-adjoint; both retractions: on the manifold."""
    U, rng = case.point, case.rng
    Y, Z = rng.standard_normal((2, *U.shape))
    PY, PZ = project(U, Y), project(U, Z)
    tangency = np.abs(U.T @ PZ + PZ.T @ U).max()
    adjoint = abs(np.vdot(PY, Z) - np.vdot(Y, PZ)) / np.linalg.norm(Y)
    errors = [tangency, np.abs(project(U, PZ) - PZ).max(), adjoint]
    for retraction in (retract_polar, retract_qr):
        X = retraction(U, case.direction)
        errors.append(np.abs(X.T @ X - np.eye(X.shape[1])).max())
    return float(max(errors))


def _polar_retraction(case: Case) -> float:
    return retraction_slope(retract_polar, case.point, case.direction, order=2).slope


def _qr_retraction(case: Case) -> float:
    return retraction_slope(retract_qr, case.point, case.direction, order=1).slope


def _gradient(case: Case) -> float:
    """The Riemannian gradient of (P′) against values of the paper's objective."""
    gradient = local_model(case.cost, case.point).gradient
    return gradient_slope(case.objective, case.point, case.direction, gradient=gradient).slope  # type: ignore[arg-type]


def _hessian(case: Case) -> float:
    return hessian_slope(case.cost, case.point, case.direction).slope


def _hessian_symmetry(case: Case) -> float:
    hessian = local_model(case.cost, case.point).hessian
    V, W = case.direction, random_tangent(case.point, case.rng)
    return abs(float(np.vdot(hessian(V), W) - np.vdot(V, hessian(W)))) / float(np.linalg.norm(case.cost.A))


def _subproblem(case: Case) -> float:
    """The largest error of the exact step: its decrease against truncated CG and as reported, and its length."""
    model = local_model(case.cost, case.point)
    errors = []
    for radius in (0.1, 1.0):
        exact, approximate = exact_step(model, radius), truncated_cg(model, radius)
        V = exact.direction
        modelled = -float(np.vdot(model.gradient, V)) - 0.5 * float(np.vdot(V, model.hessian(V)))
        size = exact.decrease + float(np.linalg.norm(case.cost.A))
        errors += [(approximate.decrease - modelled) / size, abs(modelled - exact.decrease) / size]
        errors.append(float(np.linalg.norm(V)) / radius - 1)
    return max(errors)


PROBLEM_CLAIMS = (
    Claim("simplex ETF: unit columns, equal angles", 1e-13, _simplex),
    Claim("manifold: projection and retractions", 1e-12, _manifold),
    Claim("polar retraction is of second order: slope", 2.9, _polar_retraction, at_least=True),
    Claim("QR retraction is of first order: slope", 1.9, _qr_retraction, at_least=True),
    Claim("gradient against the paper's objective: slope", 1.9, _gradient, at_least=True),
    Claim("Hessian: slope", 2.9, _hessian, at_least=True),
    Claim("Hessian: symmetry", 1e-12, _hessian_symmetry),
    Claim("exact step minimises the model in the ball", 1e-8, _subproblem),
)
