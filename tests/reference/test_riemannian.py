import itertools

import numpy as np
import pytest

from nearest_etf.reference import Status, trust_region
from nearest_etf.reference.polar import LinearCost
from nearest_etf.reference.riemannian import local_model, truncated_cg
from nearest_etf.reference.spectral import escape, exact_step
from nearest_etf.reference.stiefel import check_point, check_tangent, random_point, retract_polar, retract_qr


class Brockett:
    """−½ tr(UᵀBU N): its minimisers are eigenvectors of B, in the order of N."""

    def __init__(self, B, N):
        self.B, self.N = B, np.diag(N)

    def cost(self, U):
        return -0.5 * float(np.trace(U.T @ self.B @ U @ self.N))

    def gradient(self, U):
        return -self.B @ U @ self.N

    def hessian(self, U, V):
        return -self.B @ V @ self.N


@pytest.mark.parametrize("retraction", [retract_polar, retract_qr])
@pytest.mark.parametrize("seed", range(3))
def test_finds_eigenvectors(seed, retraction):
    rng = np.random.default_rng(seed)
    B = rng.standard_normal((12, 12))
    B = B @ B.T
    problem = Brockett(B, [3.0, 2.0, 1.0])
    result = trust_region(problem, random_point(12, 3, rng), retraction=retraction)
    assert result.status is Status.CONVERGED
    assert check_point(result.point)[0]
    values = np.linalg.eigvalsh(B)[::-1]
    assert result.cost == pytest.approx(-0.5 * (3 * values[0] + 2 * values[1] + values[2]), rel=1e-12)
    costs = [step.cost for step in result.history]
    assert all(after <= before + 1e-12 * abs(before) for before, after in itertools.pairwise(costs))


def test_converges_quadratically_with_truncated_cg():
    rng = np.random.default_rng(0)
    result = trust_region(LinearCost(rng.standard_normal((20, 5))), random_point(20, 5, rng), tolerance=1e-12)
    norms = [step.gradient_norm for step in result.history if step.accepted]
    last = [n for n in norms if n < 1e-2][:2]
    assert last[1] < 10 * last[0] ** 2


@pytest.mark.parametrize(("d", "K"), [(2, 1), (4, 2), (5, 5), (9, 3)])
@pytest.mark.parametrize("radius", [1e-3, 0.3, 10.0])
def test_exact_step_is_the_global_minimiser_of_the_model(d, K, radius):
    """Against the dense eigenvalue form of the same subproblem, in an orthonormal basis of the tangent space."""
    rng = np.random.default_rng(d)
    U = random_point(d, K, rng)
    model = local_model(LinearCost(rng.standard_normal((d, K))), U)
    step = exact_step(model, radius)
    assert check_tangent(U, step.direction)[0]
    assert np.linalg.norm(step.direction) <= radius * (1 + 1e-9)

    basis = tangent_basis(U)
    H = np.array([[np.vdot(E, model.hessian(F)) for F in basis] for E in basis])
    g = np.array([np.vdot(E, model.gradient) for E in basis])
    values, vectors = np.linalg.eigh(H)
    low, high = max(0.0, -values[0]), max(0.0, -values[0]) + 10 * np.linalg.norm(g) / radius
    for _ in range(200):
        mu = 0.5 * (low + high)
        v = -vectors @ ((vectors.T @ g) / (values + mu))
        low, high = (mu, high) if np.linalg.norm(v) > radius else (low, mu)
    dense = -(g @ v + 0.5 * v @ H @ v)
    assert step.decrease == pytest.approx(dense, rel=1e-7)


def test_exact_step_solves_the_hard_case():
    """At the global maximum of the cost the gradient vanishes and the curvature is negative."""
    A = np.diag([3.0, 2.0, 1.0, 0.0])[:, :3]
    model = local_model(LinearCost(A), -np.eye(4, 3))
    assert np.linalg.norm(model.gradient) == 0
    step = exact_step(model, 0.5)
    assert np.linalg.norm(step.direction) == pytest.approx(0.5)
    assert step.decrease == pytest.approx(0.5 * 3.0 * 0.25)
    direction, curvature = escape(model)
    assert curvature == pytest.approx(-3.0)
    assert np.vdot(direction, model.hessian(direction)) == pytest.approx(-3.0)
    assert escape(local_model(LinearCost(A), np.eye(4, 3))) is None


def test_truncated_cg_stops_at_the_boundary_and_at_negative_curvature():
    rng = np.random.default_rng(0)
    model = local_model(LinearCost(rng.standard_normal((8, 3))), random_point(8, 3, rng))
    step = truncated_cg(model, 1e-3)
    assert step.on_boundary
    assert np.linalg.norm(step.direction) == pytest.approx(1e-3)
    assert 0 < step.decrease <= exact_step(model, 1e-3).decrease * (1 + 1e-9)


class WrongGradient(LinearCost):
    """A linear cost with the wrong sign of the gradient."""

    def gradient(self, U):
        return self.A


class NaNCost(LinearCost):
    def cost(self, U):
        return float("nan")


@pytest.mark.parametrize(
    ("problem", "options", "status"),
    [
        (LinearCost, {"max_iterations": 1}, Status.MAX_ITERATIONS),
        (WrongGradient, {}, Status.RADIUS_TOO_SMALL),
        (NaNCost, {}, Status.NOT_FINITE),
    ],
)
def test_failures_have_their_own_status_and_advice(problem, options, status):
    rng = np.random.default_rng(0)
    result = trust_region(problem(rng.standard_normal((6, 3))), random_point(6, 3, rng), **options)
    assert result.status is status
    assert not result.status.ok
    assert len(result.status.advice) > 20


@pytest.mark.parametrize("initial", [np.eye(3, 6), 2 * np.eye(6, 3), np.full((6, 3), np.nan), np.ones(6)])
def test_a_start_off_the_manifold_is_refused(initial):
    with pytest.raises(ValueError, match=r"not a point of the Stiefel manifold: .*orthonormal columns"):
        trust_region(LinearCost(np.ones_like(initial)), initial)


def tangent_basis(U):
    _d, K = U.shape
    complement = np.linalg.svd(U)[0][:, K:]
    basis = []
    for i in range(K):
        for j in range(i):
            omega = np.zeros((K, K))
            omega[i, j], omega[j, i] = np.sqrt(0.5), -np.sqrt(0.5)
            basis.append(U @ omega)
        for n in complement.T:
            basis.append(np.outer(n, np.eye(K)[i]))
    return basis
