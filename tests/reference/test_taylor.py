import numpy as np
import pytest

from nearest_etf.reference.polar import LinearCost
from nearest_etf.reference.riemannian import local_model
from nearest_etf.reference.stiefel import random_point, random_tangent, retract_qr
from nearest_etf.reference.taylor import gradient_slope, hessian_slope


class Quartic:
    """½‖BU‖² + ¼ Σ U⁴: a cost with nonzero derivatives up to order four."""

    def __init__(self, d: int, rng: np.random.Generator, gradient_error: float = 0.0, hessian_error: float = 0.0):
        self.B = rng.standard_normal((d, d))
        self.gradient_error, self.hessian_error = gradient_error, hessian_error

    def cost(self, U):
        return float(0.5 * np.sum((self.B @ U) ** 2) + 0.25 * np.sum(U**4))

    def gradient(self, U):
        return (1 + self.gradient_error) * (self.B.T @ (self.B @ U) + U**3)

    def hessian(self, U, V):
        return (1 + self.hessian_error) * (self.B.T @ (self.B @ V) + 3 * U**2 * V)


@pytest.fixture
def setting():
    rng = np.random.default_rng(1)
    U = random_point(6, 3, rng)
    return rng, U, random_tangent(U, rng)


def test_correct_derivatives_have_the_expected_slopes(setting):
    rng, U, V = setting
    problem = Quartic(6, rng)
    assert gradient_slope(problem, U, V).ok
    assert gradient_slope(problem, U, V, retraction=retract_qr).ok
    assert hessian_slope(problem, U, V).ok


@pytest.mark.parametrize("error", [1e-2, -0.5])
def test_wrong_derivatives_are_detected(setting, error):
    rng, U, V = setting
    slope = gradient_slope(Quartic(6, rng, gradient_error=error), U, V)
    assert not slope.ok
    assert slope.slope == pytest.approx(1, abs=0.1)
    slope = hessian_slope(Quartic(6, rng, hessian_error=error), U, V)
    assert not slope.ok
    assert slope.slope == pytest.approx(2, abs=0.15)


def test_a_first_order_retraction_has_slope_two_away_from_critical_points(setting):
    rng, U, V = setting
    assert hessian_slope(Quartic(6, rng), U, V, retraction=retract_qr).slope == pytest.approx(2, abs=0.1)


def test_the_error_of_an_exact_model_is_rounding(setting):
    _, U, V = setting
    slope = gradient_slope(LinearCost(np.zeros((6, 3))), U, V)
    assert slope.exact
    assert slope.ok


def test_a_given_gradient_is_checked_instead_of_the_problems(setting):
    rng, U, V = setting
    problem = Quartic(6, rng)
    right = local_model(problem, U).gradient
    assert gradient_slope(problem, U, V, gradient=right).ok
    assert not gradient_slope(problem, U, V, gradient=-right).ok
