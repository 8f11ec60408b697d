import numpy as np
import pytest
from scipy.linalg import polar

from nearest_etf.reference.stiefel import (
    check_point,
    check_tangent,
    eigh,
    project,
    random_point,
    random_tangent,
    retract_polar,
    retract_qr,
)
from nearest_etf.reference.taylor import retraction_slope

SIZES = [(2, 1), (5, 3), (4, 4), (40, 12)]


@pytest.mark.parametrize(("d", "K"), SIZES)
def test_random_points_and_tangents_pass_their_checks(d, K):
    rng = np.random.default_rng(d)
    U = random_point(d, K, rng)
    assert check_point(U)[0]
    V = random_tangent(U, rng)
    assert check_tangent(U, V)[0]
    assert np.linalg.norm(V) == pytest.approx(1)


def test_random_points_are_haar_distributed():
    rng = np.random.default_rng(0)
    first_entries = np.array([random_point(3, 2, rng)[0, 0] for _ in range(4000)])
    # On the sphere in R³ a coordinate is uniform on [−1, 1]: mean 0, variance 1/3.
    assert abs(first_entries.mean()) < 0.03
    assert first_entries.var() == pytest.approx(1 / 3, abs=0.02)


@pytest.mark.parametrize(("d", "K"), SIZES)
def test_projection_is_orthogonal(d, K):
    rng = np.random.default_rng(d)
    U = random_point(d, K, rng)
    Z, V = rng.standard_normal((d, K)), random_tangent(U, rng)
    assert project(U, V) == pytest.approx(V, abs=1e-13)
    assert np.vdot(Z - project(U, Z), V) == pytest.approx(0, abs=1e-13)


@pytest.mark.parametrize(("d", "K"), SIZES[1:])
@pytest.mark.parametrize(("retraction", "order"), [(retract_polar, 2), (retract_qr, 1)])
def test_retractions_stay_on_the_manifold_and_keep_their_order(retraction, order, d, K):
    rng = np.random.default_rng(d)
    U = random_point(d, K, rng)
    V = random_tangent(U, rng)
    for length in (1e-8, 1.0, 2 * np.sqrt(K)):
        assert check_point(retraction(U, length * V))[0]
    slope = retraction_slope(retraction, U, V, order)
    assert slope.ok, slope


@pytest.mark.parametrize(("d", "K"), [(12, 1), (7, 4)])
@pytest.mark.parametrize("length", [*10.0 ** np.arange(-9, 0.5, 0.5), 2.0])
def test_polar_retraction_is_the_polar_factor_to_rounding(d, K, length):
    """With an error of 1e-12 the trust region fails on 2 problems of 31,000: no step reduces the gradient."""
    rng = np.random.default_rng(0)
    U = random_point(d, K, rng)
    V = length * random_tangent(U, rng)
    assert retract_polar(U, V) == pytest.approx(polar(U + V)[0], abs=3e-15)
    assert check_point(retract_polar(U, V), tolerance=3e-15)[0]


def test_eigh_falls_back_if_divide_and_conquer_fails(monkeypatch):
    def fails(_):
        raise np.linalg.LinAlgError("Eigenvalues did not converge")

    monkeypatch.setattr(np.linalg, "eigh", fails)
    values, Q = eigh(np.diag([3.0, 1.0, 2.0]))
    assert values == pytest.approx([1, 2, 3])
    assert np.abs(Q) == pytest.approx(np.eye(3)[[1, 2, 0]].T)


def test_checks_give_a_reason():
    ok, reason = check_point(np.ones((2, 3)))
    assert not ok
    assert "more columns than rows" in reason
    ok, reason = check_point(2 * np.eye(3))
    assert not ok
    assert "‖UᵀU − I‖_F = 5.2e+00" in reason
    assert not check_tangent(np.eye(3), np.eye(3))[0]
