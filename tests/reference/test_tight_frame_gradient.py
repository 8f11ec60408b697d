"""The derivative of the nearest tight frame: closed form, finite differences, linear algebra, and autodiff."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from nearest_etf.reference import (
    IllConditionedWarning,
    Status,
    canonical_tight_frame,
    nearest_etf_vjp,
    nearest_tight_frame,
    tight_frame_jvp,
    tight_frame_vjp,
)
from nearest_etf.reference.frames import transposed, transposed_back
from nearest_etf.reference.problems import class_means_of_condition
from nearest_etf.reference.simplex import centred, centring

BOTH = pytest.mark.parametrize("method", ["trust-region", "svd"])


def random_tight_frame(d, K, rng):
    return nearest_tight_frame(rng.standard_normal((d, K)), method="svd").frame


def relative(found, expected):
    return np.linalg.norm(np.asarray(found) - np.asarray(expected)) / np.linalg.norm(expected)


def is_tight(F):
    d, K = F.shape
    error = F.T @ F - centring(K) if d >= K - 1 else F @ F.T - np.eye(d)
    return np.linalg.norm(error) < 1e-12 and np.linalg.norm(F.sum(axis=1)) < 1e-12


@BOTH
@pytest.mark.parametrize(("d", "K"), [(5, 3), (3, 4), (1, 3), (3, 5), (3, 8)])
@pytest.mark.parametrize("delta", [0.0, 1e-3, 1.0])
def test_vjp_agrees_with_finite_differences_in_every_entry_and_with_jvp(method, d, K, delta):
    rng = np.random.default_rng(3)
    H, F0, G = class_means_of_condition(d, K, 5, rng), random_tight_frame(d, K, rng), rng.standard_normal((d, K))
    C = canonical_tight_frame(d, K)

    def solve(H, F0):
        return nearest_tight_frame(H, F0, delta, method=method, initial=C)

    solution, step = solve(H, F0), 1e-5
    H_bar, F0_bar = tight_frame_vjp(solution, G)
    H_dot, F0_dot = rng.standard_normal((2, d, K))
    pulled = np.vdot(H_bar, H_dot) + np.vdot(F0_bar, F0_dot)
    assert np.vdot(G, tight_frame_jvp(solution, H_dot, F0_dot)) == pytest.approx(pulled, rel=1e-10, abs=1e-12)
    losses = (lambda E: np.vdot(G, solve(H + E, F0).frame)), (lambda E: np.vdot(G, solve(H, F0 + E).frame))
    for bar, loss in zip((H_bar, F0_bar), losses, strict=True):
        entries = step * np.eye(d * K).reshape(-1, d, K)
        found = [(loss(E) - loss(-E)) / (2 * step) for E in entries]
        assert np.linalg.norm(bar.ravel() - found) <= 1e-6 * np.linalg.norm(H_bar) + 1e-9
        assert bar.sum(axis=1) == pytest.approx(0, abs=1e-12 * (1 + np.linalg.norm(bar)))


@pytest.mark.parametrize(("d", "K"), [(1, 3), (2, 5), (3, 5), (4, 8)])
def test_jvp_agrees_with_the_kkt_system_of_kronecker_products(d, K):
    """`A = P F` with P symmetric and `FFᵀ = I`, differentiated: linear equations in dF and dP, as one matrix."""
    rng = np.random.default_rng(0)
    H, F0 = class_means_of_condition(d, K, 10, rng), random_tight_frame(d, K, rng)
    solution = nearest_tight_frame(H, F0, 0.2)
    F, A = solution.frame, solution.linear_term
    H_dot, F0_dot = rng.standard_normal((2, d, K))
    A_dot = centred(2 / np.sqrt(d) * H_dot + 0.2 * F0_dot)
    I_d, I_K = np.eye(d), np.eye(K)
    swap = np.eye(d * d).reshape(d, d, d, d).transpose(1, 0, 2, 3).reshape(d * d, d * d)  # vec(B) -> vec(Bᵀ)
    P_F, F_right = np.kron(A @ F.T, I_K), np.kron(I_d, F.T)  # row by row: vec(P dF), vec(dP F)
    dF_Ft = np.kron(I_d, F)  # vec(dF Fᵀ)
    system = np.block(
        [
            [P_F, F_right],
            [(np.eye(d * d) + swap) @ dF_Ft, np.zeros((d * d, d * d))],
            [np.zeros((d * d, d * K)), np.eye(d * d) - swap],
        ]
    )
    right_side = np.concatenate([A_dot.ravel(), np.zeros(2 * d * d)])
    expected = np.linalg.lstsq(system, right_side, rcond=None)[0][: d * K].reshape(d, K)
    assert relative(tight_frame_jvp(solution, H_dot, F0_dot), expected) < 1e-10


@pytest.mark.parametrize(("d", "K"), [(1, 3), (3, 5), (4, 12)])
@pytest.mark.parametrize("delta", [0.0, 0.2])
def test_vjp_agrees_with_the_dense_declarative_form_of_the_transposed_problem(d, K, delta):
    rng = np.random.default_rng(0)
    H, F0, G = class_means_of_condition(d, K, 10, rng), random_tight_frame(d, K, rng), rng.standard_normal((d, K))
    solution = nearest_tight_frame(H, F0, delta)
    dense = nearest_etf_vjp(solution.solved, transposed(G), form="dense")
    found = tight_frame_vjp(solution, G)
    assert relative(np.stack(found), np.stack([transposed_back(bar) for bar in dense])) < 1e-10


@pytest.mark.parametrize(("d", "K"), [(5, 4), (3, 5), (4, 11)])
def test_vjp_agrees_with_autodiff_through_an_unrolled_polar_iteration(d, K):
    rng = np.random.default_rng(1)
    H, F0, G = class_means_of_condition(d, K, 4, rng), random_tight_frame(d, K, rng), rng.standard_normal((d, K))

    def loss(H, F0):
        X = (2 / anp.sqrt(min(d, K - 1)) * H + 0.5 * F0) @ centring(K)
        X = X / anp.sqrt(anp.sum(X**2))
        for _ in range(40):
            X = 1.5 * X - 0.5 * X @ X.T @ X
        return anp.sum(G * X)

    expected = autograd.grad(loss, (0, 1))(H, F0)
    assert relative(np.stack(tight_frame_vjp(nearest_tight_frame(H, F0, 0.5), G)), np.stack(expected)) < 1e-9


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_accuracy_degrades_no_faster_than_the_condition_number(condition):
    rng = np.random.default_rng(0)
    solution = nearest_tight_frame(class_means_of_condition(4, 10, condition, rng))
    G = rng.standard_normal((4, 10))
    dense = transposed_back(nearest_etf_vjp(solution.solved, transposed(G), form="dense")[0])
    assert relative(tight_frame_vjp(solution, G)[0], dense) < 1e-13 * condition


def batch_of(d, K, absent, seed):
    """Class means of a batch, as a function of the step t along a direction of its data."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 4, size=K)
    counts[list(absent)] = 0
    rows, along = rng.standard_normal((2, K, d))

    def class_means(t):
        means = (rows + t * along).T * (counts > 0)
        return (means - means @ counts[:, None] / counts.sum()) * (counts > 0)

    return class_means


def low_rank(d, K, rank, seed):
    """Class means of this rank, on a curve along which their row and column space change."""
    left, left_dot, right, right_dot = np.random.default_rng(seed).standard_normal((4, max(d, K), rank))
    return lambda t: (left[:d] + t * left_dot[:d]) @ centred((right[:K] + t * right_dot[:K]).T)


@pytest.mark.filterwarnings("ignore::nearest_etf.reference.IllConditionedWarning")
@BOTH
@pytest.mark.parametrize("start", ["canonical", "other"])
@pytest.mark.parametrize(
    ("curve", "d", "K"),
    [
        (batch_of(4, 7, [0, 3, 5], 1), 4, 7),
        (batch_of(3, 9, [0, 1, 2, 4, 5, 6, 7], 1), 3, 9),
        (batch_of(6, 12, range(6), 1), 6, 12),
        (low_rank(2, 4, 1, 0), 2, 4),
        (low_rank(5, 8, 2, 0), 5, 8),
    ],
)
def test_derivative_at_a_lower_rank_includes_the_completion_from_the_start(curve, d, K, start, method):
    rng = np.random.default_rng(0)
    C = None if start == "canonical" else random_tight_frame(d, K, rng)

    def solve(t):
        return nearest_tight_frame(curve(t), method=method, initial=C)

    solution, step = solve(0.0), 1e-5
    assert solution.status is Status.NOT_UNIQUE
    assert is_tight(solution.frame)
    assert abs(solution.optimality_gap) < 1e-12 * solution.singular_values.sum()
    H_dot = (curve(1e-3) - curve(-1e-3)) / 2e-3  # the curves are quadratic at most
    frame_dot = tight_frame_jvp(solution, H_dot)
    assert relative(frame_dot, (solve(step).frame - solve(-step).frame) / (2 * step)) < 1e-6
    G = rng.standard_normal((d, K))
    assert np.vdot(G, frame_dot) == pytest.approx(np.vdot(tight_frame_vjp(solution, G)[0], H_dot), rel=1e-10)


def test_ill_conditioned_derivatives_warn_with_the_remedy():
    rng = np.random.default_rng(0)
    G = rng.standard_normal((4, 9))
    with pytest.warns(IllConditionedWarning, match=r"rank 2 of 4.*Use a larger delta"):
        tight_frame_vjp(nearest_tight_frame(low_rank(4, 9, 2, 0)(0.0)), G)
    with pytest.warns(IllConditionedWarning, match=r"condition number \d\.\de\+1[345].*fewer than 4 dimensions"):
        H_bar, _ = tight_frame_vjp(nearest_tight_frame(class_means_of_condition(4, 9, 1e14, rng)), G)
    assert np.isfinite(H_bar).all()


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_gradient_scales_with_the_class_means(scale):
    rng = np.random.default_rng(0)
    H, G = class_means_of_condition(3, 8, 10, rng), rng.standard_normal((3, 8))
    expected = tight_frame_vjp(nearest_tight_frame(H), G)[0]
    assert tight_frame_vjp(nearest_tight_frame(scale * H), G)[0] * scale == pytest.approx(expected, rel=1e-10)
