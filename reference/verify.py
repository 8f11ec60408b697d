"""Is the solver right, is the gradient right, on this machine? A table of claims, each measured on a bank of problems.

Every claim is checked against something that does not share its formula: the gradient of (P′) against the paper's
own objective, the trust region against singular values and SciPy, the closed-form derivative against the dense
declarative one and against finite differences of the polar solver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import orthogonal_procrustes, polar

from .class_means import ClassMeans
from .collapse import neural_collapse
from .implicit import nearest_etf_jvp, nearest_etf_vjp
from .procrustes import LinearCost, NearestETF, nearest_etf
from .problems import NearestETFProblem, class_means_of_condition
from .simplex import canonical_etf, centred_basis, centring, etf_error, simplex_etf
from .spectral import exact_step
from .stiefel import Array, project, random_point, random_tangent, retract_polar, retract_qr
from .taylor import gradient_slope, hessian_slope, retraction_slope
from .riemannian import Status, local_model, truncated_cg

DENSE_UNKNOWNS = 150  # the dense declarative form is built up to here


class Case:
    """One problem of the bank with its solutions, each computed when first asked for."""

    def __init__(self, problem: NearestETFProblem) -> None:
        self.problem = problem
        self.rng = np.random.default_rng(0)

    @cached_property
    def solution(self) -> NearestETF:
        return self.problem.solve()

    @cached_property
    def polar(self) -> NearestETF:
        return self.problem.solve(solver="polar")

    @cached_property
    def cost(self) -> LinearCost:
        return LinearCost(self.solution.linear_term)

    @cached_property
    def point(self) -> Array:
        """A random point of the manifold that the problem is solved on."""
        d, m = self.solution.variable.shape
        return random_point(d, m, self.rng)

    @cached_property
    def direction(self) -> Array:
        return random_tangent(self.point, self.rng)

    @cached_property
    def cotangent(self) -> Array:
        return self.rng.standard_normal(self.solution.frame.shape)

    @property
    def nuclear_norm(self) -> float:
        return float(self.solution.singular_values.sum())


@dataclass(frozen=True)
class Claim:
    """A figure that must not exceed its bound (or fall below it, `at_least`) on any problem of the bank."""

    name: str
    bound: float
    measure: Callable[[Case], float | None]  # None: the claim does not apply to this problem
    at_least: bool = False


@dataclass(frozen=True)
class Check:
    """What a claim came to: its worst figure, and the problem that gave it."""

    name: str
    figure: float
    bound: float
    at_least: bool
    passed: bool
    problems: int
    worst: str


def verify(problems: Iterable[NearestETFProblem]) -> list[Check]:
    """Measure every claim on every problem.

    Returns
    -------
    list of Check
        In the order of `CLAIMS`; a claim that applies to none of the problems is left out.

    Examples
    --------
    >>> from nearest_etf.reference.problems import problem_bank
    >>> checks = verify(problem_bank([(5, 3)], seeds=1))
    >>> all(check.passed for check in checks)
    True
    """
    figures: dict[str, list[tuple[float, str]]] = {claim.name: [] for claim in CLAIMS}
    for problem in problems:
        case = Case(problem)
        for claim in CLAIMS:
            try:
                figure = claim.measure(case)
            except ValueError:  # one part refuses what another gave it: that is a failure too
                figure = np.nan
            if figure is not None:
                figures[claim.name].append((figure, problem.name))
    return [_check(claim, figures[claim.name]) for claim in CLAIMS if figures[claim.name]]


def _check(claim: Claim, figures: list[tuple[float, str]]) -> Check:
    badness = [-f if claim.at_least else f for f, _ in figures]
    figure, worst = figures[int(np.argmax(np.where(np.isnan(badness), np.inf, badness)))]
    passed = figure >= claim.bound if claim.at_least else figure <= claim.bound
    return Check(claim.name, figure, claim.bound, claim.at_least, bool(passed), len(figures), worst)


# --- the simplex and the manifold


def _simplex(case: Case) -> float:
    """Unit columns, equal angles, rank K−1, and NC2 = 0 in the canonical placement."""
    d, K = case.solution.frame.shape
    E = simplex_etf(K)
    angles = E.T @ E - (K * np.eye(K) - 1.0) / (K - 1)
    return max(float(np.abs(angles).max()), float(np.abs(E.sum(axis=1)).max()), etf_error(canonical_etf(d, K).T))


def _classifier(case: Case) -> float:
    """The solution's classifier: a simplex ETF with unit rows, and zero row sum."""
    W = case.solution.classifier
    return max(etf_error(W), float(np.abs(np.linalg.norm(W, axis=1) - 1).max()), float(np.abs(W.sum(axis=0)).max()))


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


# --- the problem's derivatives


@dataclass(frozen=True)
class _PaperObjective:
    """(P) or (R) as the paper writes it, quadratic terms and all: it knows nothing of A."""

    problem: NearestETFProblem
    E: Array  # (K, m): the ETF of the variable X is X Eᵀ

    def cost(self, X: Array) -> float:
        H, U0, K = self.problem.class_means, self.problem.proximal, len(self.E)
        value = np.linalg.norm(H - X @ self.E.T / np.sqrt(K - 1)) ** 2
        if U0 is not None:
            apart = X - U0 if self.E.shape[1] == K else X @ self.E.T - U0 @ centring(K)
            value += 0.5 * self.problem.delta * np.linalg.norm(apart) ** 2
        return float(value)


def _gradient(case: Case) -> float:
    """The Riemannian gradient of (P′) against values of the paper's objective."""
    K = case.solution.frame.shape[1]
    objective = _PaperObjective(case.problem, centred_basis(K) if case.solution.gauge_free else centring(K))
    gradient = local_model(case.cost, case.point).gradient
    return gradient_slope(objective, case.point, case.direction, gradient=gradient).slope  # type: ignore[arg-type]


def _hessian(case: Case) -> float:
    return hessian_slope(case.cost, case.point, case.direction).slope


def _hessian_symmetry(case: Case) -> float:
    hessian = local_model(case.cost, case.point).hessian
    V, W = case.direction, random_tangent(case.point, case.rng)
    return abs(float(np.vdot(hessian(V), W) - np.vdot(V, hessian(W)))) / float(np.linalg.norm(case.cost.A))


def _subproblem(case: Case) -> float:
    """How much less the exact step takes from the model than it says, or than truncated conjugate gradients do."""
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


# --- the solution


def _converged(case: Case) -> float:
    """0 if the trust region says `converged`, else 1."""
    return float(case.solution.status is not Status.CONVERGED)


def _gap(case: Case) -> float:
    return case.solution.optimality_gap / case.nuclear_norm


def _orthonormality(case: Case) -> float:
    U = case.solution.frame
    gram = U.T @ U
    identity = np.eye(len(gram)) if case.problem.formulation == "paper" else centring(len(gram))
    return float(np.linalg.norm(gram - identity))


def _against_polar(case: Case) -> float:
    """The ETF of the trust region against the polar factor's, relative."""
    apart = np.linalg.norm(case.solution.classifier - case.polar.classifier)
    return float(apart / np.linalg.norm(case.polar.classifier))


def _against_scipy(case: Case) -> float:
    """The variable against scipy.linalg.polar, and orthogonal_procrustes where A is square."""
    A, X = case.solution.linear_term, case.solution.variable
    errors = [np.linalg.norm(X - polar(A)[0])]
    if A.shape[0] == A.shape[1]:
        errors.append(np.linalg.norm(X - orthogonal_procrustes(np.eye(len(A)), A)[0]))
    return float(max(errors) / np.sqrt(A.shape[1]))


def _truncated_cg(case: Case) -> float | None:
    """The two subproblem solvers' ends, where conjugate gradients are not hopeless."""
    if case.solution.condition_number > 1e3:
        return None
    other = case.problem.solve(subproblem="truncated-cg")
    return abs(other.optimality_gap) / case.nuclear_norm if other.status is Status.CONVERGED else np.inf


def _nobody_is_nearer(case: Case) -> float:
    """How far the objective is above the best of 20 frames around the solution, relative: never above."""
    X = case.solution.variable
    K = case.solution.frame.shape[1]
    objective = _PaperObjective(case.problem, centred_basis(K) if case.solution.gauge_free else centring(K))
    best = min(
        objective.cost(retract_polar(X, length * random_tangent(X, case.rng)))
        for length in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
        for _ in range(4)
    )
    errors = [case.solution.objective - best, abs(case.solution.objective - objective.cost(X))]
    return max(errors) / (abs(best) + case.nuclear_norm)


def _superlinear(case: Case) -> float | None:
    """The best order of three successive gradient norms, log(g₂/g₁)/log(g₁/g₀); 2 is quadratic.

    Ill-conditioned problems reach the tolerance before they show their order, and on a square manifold the way may
    lead over the other component's optimum, where the Hessian may be singular.
    """
    d, m = case.solution.variable.shape
    if case.solution.condition_number > 1e2 or d == m:
        return None
    scale = float(np.linalg.norm(case.solution.linear_term))
    norms = [step.gradient_norm for step in case.solution.history] + [case.solution.gradient_norm / scale]
    orders = [
        np.log(after / at) / np.log(at / before)
        for before, at, after in zip(norms, norms[1:], norms[2:], strict=False)
        if 1e-11 < after < at < min(before, 3e-3)  # nearer to rounding there is no order to see
    ]
    return float(max(orders)) if orders else None


# --- the derivatives of the solution


def _dense_vjp(case: Case) -> float | None:
    """Closed form against the dense declarative form, both cotangents."""
    if case.solution.variable.size > DENSE_UNKNOWNS:
        return None
    ours = nearest_etf_vjp(case.solution, case.cotangent)
    dense = nearest_etf_vjp(case.solution, case.cotangent, method="dense")
    return _relative(np.stack(ours), np.stack(dense))


def _adjoint(case: Case) -> float:
    """⟨G, jvp(dH, dU₀)⟩ = ⟨vjp(G), (dH, dU₀)⟩."""
    H_dot, U0_dot = case.rng.standard_normal((2, *case.solution.frame.shape))
    H_bar, U0_bar = nearest_etf_vjp(case.solution, case.cotangent)
    pushed = float(np.vdot(case.cotangent, nearest_etf_jvp(case.solution, H_dot, U0_dot)))
    pulled = float(np.vdot(H_bar, H_dot) + np.vdot(U0_bar, U0_dot))
    size = np.linalg.norm(H_bar) * np.linalg.norm(H_dot) + np.linalg.norm(U0_bar) * np.linalg.norm(U0_dot)
    return abs(pushed - pulled) / float(size)


def _finite_differences(case: Case) -> float | None:
    """jvp against central differences of the polar solver, for class means and proximal point together."""
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
        return nearest_etf(H, U0, problem.delta, solver="polar", formulation=problem.formulation).frame

    difference = (8 * (frame_at(step) - frame_at(-step)) - (frame_at(2 * step) - frame_at(-2 * step))) / (12 * step)
    return _relative(nearest_etf_jvp(case.solution, H_dot, U0_dot), difference)


# --- what stands around the solver


def _degenerate(case: Case) -> float | None:
    """Two equal class means: the status says that the minimiser is not unique, and the gap is zero all the same."""
    if case.problem.delta > 0:
        return None
    H = case.problem.class_means.copy()
    H[:, 1] = H[:, 0]
    worst = 0.0
    for solver in ("trust-region", "polar"):
        solution = nearest_etf(H, formulation=case.problem.formulation, solver=solver)  # type: ignore[arg-type]
        gap = solution.optimality_gap / max(float(solution.singular_values.sum()), 1e-300)
        worst = max(worst, gap, etf_error(solution.classifier), float(solution.status is not Status.NOT_UNIQUE))
    return worst


def _running_means(case: Case) -> float | None:
    """Three steps of the moving average against the recurrence written out, one class absent from the second."""
    if case.problem.delta > 0:
        return None
    d, K = case.problem.class_means.shape
    running, H, mean = ClassMeans(d, K), np.zeros((d, K)), np.zeros(d)
    for t in (1, 2, 3):
        labels = np.repeat(np.arange(1 if t == 2 else 0, K), 2)
        features = case.rng.standard_normal((len(labels), d))
        running.update(features, labels)
        alpha = 2 / (t + 1)
        for c in range(K):
            if (labels == c).any():
                centred = features[labels == c].mean(axis=0) - features.mean(axis=0)
                H[:, c] = alpha * centred + (1 - alpha) * H[:, c]
        mean = alpha * features.mean(axis=0) + (1 - alpha) * mean
    return float(max(np.abs(running.means - H).max(), np.abs(running.global_mean - mean).max()))


def _collapsed(case: Case) -> float:
    """The metrics of exactly collapsed data under the solution's own classifier: all zero."""
    W = case.solution.classifier
    labels = np.repeat(np.arange(len(W)), 3)
    collapse = neural_collapse(5.0 * W[labels], labels, W)
    zeros = (
        collapse.nc1,
        collapse.nc2,
        collapse.nc2_means,
        collapse.nc3,
        collapse.nc4,
        collapse.etf_distance_means,
    )
    return float(max(zeros))


def _relative(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


CLAIMS = (
    Claim("simplex ETF: unit columns, equal angles", 1e-13, _simplex),
    Claim("manifold: projection and retractions", 1e-12, _manifold),
    Claim("polar retraction is of second order: slope", 2.9, _polar_retraction, at_least=True),
    Claim("QR retraction is of first order: slope", 1.9, _qr_retraction, at_least=True),
    Claim("gradient against the paper's objective: slope", 1.9, _gradient, at_least=True),
    Claim("Hessian: slope", 2.9, _hessian, at_least=True),
    Claim("Hessian: symmetry", 1e-12, _hessian_symmetry),
    Claim("exact step minimises the model in the ball", 1e-8, _subproblem),
    Claim("trust region: converged", 0.0, _converged),
    Claim("trust region: certificate gap / ‖A‖_*", 1e-12, _gap),
    Claim("trust region: ‖UᵀU − I‖", 1e-12, _orthonormality),
    Claim("trust region: order of convergence", 1.05, _superlinear, at_least=True),
    Claim("trust region ↔ polar factor: ETF", 1e-8, _against_polar),
    Claim("trust region ↔ scipy polar, procrustes", 1e-8, _against_scipy),
    Claim("exact step ↔ truncated CG: gap", 1e-12, _truncated_cg),
    Claim("no frame around it is nearer", 1e-12, _nobody_is_nearer),
    Claim("classifier: simplex ETF, unit rows", 1e-12, _classifier),
    Claim("vjp: closed form ↔ dense declarative", 1e-9, _dense_vjp),
    Claim("vjp ↔ jvp: adjoint", 1e-12, _adjoint),
    Claim("jvp ↔ finite differences", 1e-6, _finite_differences),
    Claim("equal class means: gap, status", 1e-12, _degenerate),
    Claim("class means: moving average", 1e-14, _running_means),
    Claim("metrics of collapsed data", 1e-12, _collapsed),
)


def convergence(d: int, K: int, seed: int = 0) -> dict[str, list[tuple[float, float]]]:
    """(certificate gap, gradient norm) per iteration of a cold start, by subproblem solver, for A of unit norm."""
    curves = {}
    H = class_means_of_condition(d, K, 10.0, np.random.default_rng(seed))
    for subproblem in ("truncated-cg", "exact"):
        solution = nearest_etf(H, subproblem=subproblem, initial="random")  # type: ignore[arg-type]
        scale = float(np.linalg.norm(solution.linear_term))
        best = float(solution.singular_values.sum()) / scale
        curve = [(best + step.cost, step.gradient_norm) for step in solution.history if step.accepted]
        curves[subproblem] = [*curve, (solution.optimality_gap / scale, solution.gradient_norm / scale)]
    return curves
