"""Claims about the solution: the trust region against its certificate, singular values and SciPy."""

from __future__ import annotations

import numpy as np
from scipy.linalg import orthogonal_procrustes, polar

from .claims import Case, Claim, relative
from .procrustes import Method, nearest_etf
from .riemannian import Status
from .simplex import centring, etf_error
from .stiefel import random_tangent, retract_polar


def _converged(case: Case) -> float:
    """0 if the status is `converged`, else 1."""
    return float(case.solution.status is not Status.CONVERGED)


def _gap(case: Case) -> float:
    return case.solution.optimality_gap / case.nuclear_norm


def _orthonormality(case: Case) -> float:
    U = case.solution.frame
    gram = U.T @ U
    identity = np.eye(len(gram)) if case.problem.formulation == "paper" else centring(len(gram))
    return float(np.linalg.norm(gram - identity))


def _superlinear(case: Case) -> float | None:
    """The best order of three successive gradient norms, log(g₂/g₁)/log(g₁/g₀); 2 is quadratic.

    Two kinds of problems are left out: ill-conditioned ones, which reach the tolerance first, and those on square
    manifolds, where the iterates may pass the optimum of the other component, whose Hessian may be singular.
    """
    d, m = case.solution.variable.shape
    if case.solution.condition_number > 1e2 or d == m:
        return None
    scale = float(np.linalg.norm(case.solution.linear_term))
    norms = [step.gradient_norm for step in case.solution.history] + [case.solution.gradient_norm / scale]
    orders = [
        np.log(after / at) / np.log(at / before)
        for before, at, after in zip(norms, norms[1:], norms[2:], strict=False)
        if 1e-11 < after < at < min(before, 3e-3)  # rounding hides the order below 1e-11
    ]
    return float(max(orders)) if orders else None


def _against_polar(case: Case) -> float:
    """The ETF of the trust region against that of the SVD."""
    return relative(case.solution.classifier, case.by_svd.classifier)


def _against_scipy(case: Case) -> float:
    """The variable against scipy.linalg.polar, and orthogonal_procrustes where A is square."""
    A, X = case.solution.linear_term, case.solution.variable
    errors = [np.linalg.norm(X - polar(A)[0])]
    if A.shape[0] == A.shape[1]:
        errors.append(np.linalg.norm(X - orthogonal_procrustes(np.eye(len(A)), A)[0]))
    return float(max(errors) / np.sqrt(A.shape[1]))


def _truncated_cg(case: Case) -> float | None:
    """The certificate gap of the trust region with truncated CG, on sufficiently well-conditioned problems."""
    if case.solution.condition_number > 1e3:
        return None
    other = case.problem.solve(subproblem="truncated-cg")
    return abs(other.optimality_gap) / case.nuclear_norm if other.status is Status.CONVERGED else np.inf


def _no_frame_is_nearer(case: Case) -> float:
    """The relative excess of the objective over the best of 20 frames around the solution."""
    X = case.solution.variable
    best = min(
        case.objective.cost(retract_polar(X, length * random_tangent(X, case.rng)))
        for length in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
        for _ in range(4)
    )
    errors = [case.solution.objective - best, abs(case.solution.objective - case.objective.cost(X))]
    return max(errors) / (abs(best) + case.nuclear_norm)


def _classifier(case: Case) -> float:
    """The solution's classifier: a simplex ETF with unit rows, and zero row sum."""
    W = case.solution.classifier
    return max(etf_error(W), float(np.abs(np.linalg.norm(W, axis=1) - 1).max()), float(np.abs(W.sum(axis=0)).max()))


def _degenerate(case: Case) -> float | None:
    """Two equal class means: the status is `not_unique`, and the gap is still zero."""
    if case.problem.delta > 0:
        return None
    H = case.problem.class_means.copy()
    H[:, 1] = H[:, 0]
    worst = 0.0
    methods: tuple[Method, ...] = ("trust-region", "svd")
    for method in methods:
        solution = nearest_etf(H, formulation=case.problem.formulation, method=method)
        gap = solution.optimality_gap / max(float(solution.singular_values.sum()), 1e-300)
        worst = max(worst, gap, etf_error(solution.classifier), float(solution.status is not Status.NOT_UNIQUE))
    return worst


SOLUTION_CLAIMS = (
    Claim("trust region: converged", 0.0, _converged),
    Claim("trust region: certificate gap / ‖A‖_*", 1e-12, _gap),
    Claim("trust region: ‖UᵀU − I‖", 1e-12, _orthonormality),
    Claim("trust region: order of convergence", 1.05, _superlinear, at_least=True),
    Claim("trust region ↔ singular values: ETF", 1e-8, _against_polar),
    Claim("trust region ↔ scipy polar, procrustes", 1e-8, _against_scipy),
    Claim("exact step ↔ truncated CG: gap", 1e-12, _truncated_cg),
    Claim("no frame around it is nearer", 1e-12, _no_frame_is_nearer),
    Claim("classifier: simplex ETF, unit rows", 1e-12, _classifier),
    Claim("equal class means: gap, status", 1e-12, _degenerate),
)
