"""Claims about the nearest tight frame.

Each is measured on two problems for each problem of the bank: on its own class means H, and on `(H Q)ᵀ` (K−1, d), the
class means of d classes in K−1 dimensions. The solution is checked against singular vectors, the derivatives against
the formula with the Lyapunov equation, solved by SciPy, and against finite differences.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from scipy.linalg import solve_sylvester, svd

from .claims import Case, Claim, relative
from .claims_gradient import central
from .equal_norm import classifier_from_tight_frame, equal_norm_tight_frame
from .frames import canonical_tight_frame
from .geometry import frame_geometry
from .implicit import IllConditionedWarning
from .riemannian import Status
from .simplex import centred, centred_basis, simplex_etf
from .stiefel import Array
from .tight_frame import NearestTightFrame, nearest_tight_frame
from .tight_frame_gradient import tight_frame_jvp, tight_frame_vjp


def _wide_problem(case: Case) -> tuple[Array, Array | None] | None:
    """Class means (K−1, d) of d > K classes, and a proximal point; None where d ≤ K."""
    H, delta = case.problem.class_means, case.problem.delta
    d, K = H.shape
    if d <= K:
        return None
    return (H @ centred_basis(K)).T, canonical_tight_frame(K - 1, d) if delta > 0 else None


def _wide(case: Case) -> NearestTightFrame | None:
    problem = _wide_problem(case)
    return None if problem is None else nearest_tight_frame(*problem, case.problem.delta)


def _narrow(case: Case) -> NearestTightFrame:
    return nearest_tight_frame(case.problem.class_means, case.problem.proximal, case.problem.delta)


def _solutions(case: Case) -> Iterator[NearestTightFrame]:
    """The nearest tight frames of both problems."""
    yield from (solution for solution in (_narrow(case), _wide(case)) if solution is not None)


def _certificate(case: Case) -> float:
    """The relative gap of the solutions; infinite for one that did not converge."""
    return max(
        abs(solution.optimality_gap) / float(solution.singular_values.sum())
        if solution.status is Status.CONVERGED
        else np.inf
        for solution in _solutions(case)
    )


def _tightness(case: Case) -> float:
    """`F 1 = 0`, `FFᵀF = F`, the mean square norm of the "tight" rows, and their tightness error."""
    worst = 0.0
    for solution in _solutions(case):
        F, W = solution.frame, classifier_from_tight_frame(solution.frame, "tight")
        errors = [np.linalg.norm(F.sum(axis=1)), np.linalg.norm(F @ (F.T @ F) - F), np.square(W).sum() / len(W) - 1.0]
        worst = max(worst, *(abs(float(error)) for error in errors), frame_geometry(W).tightness_error)
    return worst


def _against_singular_vectors(case: Case) -> float:
    """The frame against the r leading singular vectors of A, computed here from the problem."""
    worst = 0.0
    for solution in _solutions(case):
        r = min(solution.frame.shape[0], solution.frame.shape[1] - 1)
        A = (2.0 / np.sqrt(r)) * solution.class_means
        if solution.proximal is not None:
            A = A + case.problem.delta * solution.proximal
        left, _, right_t = svd(centred(A), full_matrices=False)
        worst = max(worst, relative(solution.frame, left[:, :r] @ right_t[:r]))
    return worst


def _gauge_free(case: Case) -> float | None:
    """For K ≤ d+1: frame and classifier against those of (R)."""
    if case.problem.formulation == "paper":
        return None
    solution = _narrow(case)
    errors = relative(solution.frame, case.solution.frame), relative(solution.classifier, case.solution.classifier)
    return max(errors)


def _lyapunov(case: Case) -> float | None:
    """vjp against `Ā = ΦF + P⁻¹G(I − FᵀF)`, `PΦ + ΦP = GFᵀ − FGᵀ`, with P and Φ by SciPy's dense solvers."""
    solution = _wide(case)
    if solution is None:
        return None
    F, A = solution.frame, solution.linear_term
    G = case.rng.standard_normal(F.shape)
    P = A @ F.T
    Phi = solve_sylvester(P, P, G @ F.T - F @ G.T)
    A_bar = centred(Phi @ F + np.linalg.solve(P, G - (G @ F.T) @ F))
    expected = np.stack([(2.0 / np.sqrt(len(F))) * A_bar, case.problem.delta * A_bar])
    return relative(np.stack(tight_frame_vjp(solution, G)), expected)


def _adjoint(case: Case) -> float | None:
    """⟨G, jvp(dH, dF₀)⟩ = ⟨vjp(G), (dH, dF₀)⟩ for K > d+1, also where few classes are present."""
    solution = _wide(case)
    if solution is None:
        return None
    worst = 0.0
    for solved in (solution, nearest_tight_frame(_with_absent_classes(solution.class_means))):
        G, H_dot, F0_dot = case.rng.standard_normal((3, *solved.frame.shape))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IllConditionedWarning)  # the second minimiser is not unique
            H_bar, F0_bar = tight_frame_vjp(solved, G)
            pushed = float(np.vdot(G, tight_frame_jvp(solved, H_dot, F0_dot)))
        pulled = float(np.vdot(H_bar, H_dot) + np.vdot(F0_bar, F0_dot))
        size = np.linalg.norm(H_bar) * np.linalg.norm(H_dot) + np.linalg.norm(F0_bar) * np.linalg.norm(F0_dot)
        worst = max(worst, abs(pushed - pulled) / float(size + 1e-300))
    return worst


def _finite_differences(case: Case) -> float | None:
    """jvp against central differences of `method="svd"`, for class means and proximal point together."""
    problem = _wide_problem(case)
    if problem is None:
        return None
    (H, F0), delta = problem, case.problem.delta
    solution = nearest_tight_frame(H, F0, delta)
    H_dot, F0_dot = (Z / np.linalg.norm(Z) for Z in case.rng.standard_normal((2, *H.shape)))

    def frame_at(t: float) -> Array:
        F0_at = None if F0 is None else F0 + t * F0_dot
        return nearest_tight_frame(H + t * H_dot, F0_at, delta, method="svd").frame

    step = 3e-3 * min(1e-2, float(solution.singular_values[-1]))  # F₀ + t Ḟ₀ must still pass as a tight frame
    return relative(tight_frame_jvp(solution, H_dot, F0_dot), central(frame_at, step))


def _absent_classes(case: Case) -> float | None:
    """jvp against central differences where only d classes are present: rank d−1, row and column space of A change."""
    problem = _wide_problem(case)
    if problem is None or case.problem.delta > 0 or len(problem[0]) < 2:
        return None
    H = _with_absent_classes(problem[0])
    H_dot = _with_absent_classes(case.rng.standard_normal(H.shape))
    H_dot /= np.linalg.norm(H_dot)
    solution = nearest_tight_frame(H)
    difference = central(
        lambda t: nearest_tight_frame(H + t * H_dot, method="svd").frame,
        3e-3 * float(solution.singular_values[len(H) - 2]),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)  # the minimiser is not unique
        return relative(tight_frame_jvp(solution, H_dot), difference)


def _with_absent_classes(H: Array) -> Array:
    """The class means (d, K) of a batch with one sample of each of the last d classes."""
    d, K = H.shape
    return np.hstack([np.zeros((d, K - d)), centred(H[:, K - d :])])


def _geometry(case: Case) -> float:
    """The figures of known frames (simplex, orthoplex, three lines), and the bounds for the solutions."""
    d, K = case.problem.class_means.shape
    simplex, orthoplex = frame_geometry(simplex_etf(K)), frame_geometry(np.vstack([np.eye(d + 1), -np.eye(d + 1)]))
    errors = [simplex.tightness_error, simplex.norm_spread, abs(simplex.largest_cosine - simplex.cosine_bound)]
    errors += [abs(simplex.largest_cosine + 1 / (K - 1)), orthoplex.tightness_error, orthoplex.norm_spread]
    errors += [abs(orthoplex.largest_cosine - orthoplex.cosine_bound), abs(orthoplex.largest_absolute_cosine - 1.0)]
    angles = np.pi * np.arange(3) / 3  # three lines at 60°: an equiangular tight frame, which attains Welch's bound
    lines = frame_geometry(np.column_stack([np.cos(angles), np.sin(angles)]))
    errors += [lines.tightness_error, abs(lines.largest_absolute_cosine - lines.welch_bound)]
    for solution in _solutions(case):
        found = solution.geometry
        errors.append(found.welch_bound - found.largest_absolute_cosine)
        errors.append(found.cosine_bound - found.largest_cosine)
    return float(max(errors))


def _equal_norms(case: Case) -> float | None:
    """The equal-norm tight frame: `FFᵀ = I`, `F 1 = 0`, and the spread of its norms."""
    solution = _wide(case)
    if solution is None or not 1 < solution.rank <= solution.frame.shape[1] // 2:
        return None
    F = equal_norm_tight_frame(solution.frame, tolerance=1e-7)
    errors = [np.linalg.norm(F @ F.T - np.eye(len(F))), np.linalg.norm(F.sum(axis=1))]
    return max(frame_geometry(F.T).norm_spread, *(float(error) for error in errors))


TIGHT_FRAME_CLAIMS = (
    Claim("tight frame: converged, certificate gap", 1e-12, _certificate),
    Claim("tight frame: FFᵀF = F, F·1 = 0, tightness", 1e-12, _tightness),
    Claim("tight frame ↔ singular vectors", 1e-8, _against_singular_vectors),
    Claim("tight frame ↔ gauge-free ETF, K ≤ d+1", 1e-12, _gauge_free),
    Claim("tight frame vjp ↔ Lyapunov equation", 1e-9, _lyapunov),
    Claim("tight frame vjp ↔ jvp: adjoint", 1e-12, _adjoint),
    Claim("tight frame jvp ↔ finite differences", 1e-6, _finite_differences),
    Claim("tight frame jvp ↔ …, classes absent", 1e-6, _absent_classes),
    Claim("geometry of known frames; Welch, Rankin", 1e-12, _geometry),
    Claim("equal-norm tight frame", 1e-6, _equal_norms),
)
