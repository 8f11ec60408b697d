"""The gradient on the problem bank: closed form, dense declarative form, finite differences, and autodiff through an
unrolled polar iteration."""

import warnings

import autograd
import autograd.numpy as anp
import numpy as np
import pytest

from nearest_etf.reference import IllConditionedWarning, Status, nearest_etf, nearest_etf_jvp, nearest_etf_vjp
from nearest_etf.reference.problems import class_means_of_condition, problem_bank
from nearest_etf.reference.simplex import centred_basis
from nearest_etf.reference.stiefel import random_point

BANK = list(problem_bank([(3, 2), (4, 4), (3, 4), (9, 5), (15, 8)], seeds=2))


def relative(found, expected):
    return np.linalg.norm(np.asarray(found) - np.asarray(expected)) / np.linalg.norm(expected)


@pytest.mark.parametrize("problem", BANK, ids=lambda p: p.name)
def test_closed_form_agrees_with_the_dense_form_and_is_its_own_adjoint(problem):
    rng = np.random.default_rng(0)
    solution = problem.solve()
    G, H_dot, U0_dot = rng.standard_normal((3, *solution.frame.shape))
    H_bar, U0_bar = nearest_etf_vjp(solution, G)
    dense_H_bar, dense_U0_bar = nearest_etf_vjp(solution, G, form="dense")
    assert relative(H_bar, dense_H_bar) < 1e-9
    assert np.linalg.norm(U0_bar - dense_U0_bar) <= 1e-9 * np.linalg.norm(H_bar)
    pushed = nearest_etf_jvp(solution, H_dot, U0_dot)
    assert relative(pushed, nearest_etf_jvp(solution, H_dot, U0_dot, form="dense")) < 1e-9
    pulled = np.vdot(H_bar, H_dot) + np.vdot(U0_bar, U0_dot)
    size = np.linalg.norm(H_bar) * np.linalg.norm(H_dot) + np.linalg.norm(U0_bar) * np.linalg.norm(U0_dot)
    assert abs(np.vdot(G, pushed) - pulled) < 1e-12 * size


@pytest.mark.parametrize("formulation", ["paper", "gauge-free"])
@pytest.mark.parametrize("delta", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("method", ["trust-region", "svd"])
def test_vjp_agrees_with_finite_differences_in_every_entry(formulation, delta, method):
    rng = np.random.default_rng(3)
    H, U0, G = class_means_of_condition(5, 3, 10, rng), random_point(5, 3, rng), rng.standard_normal((5, 3))

    def solve(H, U0):
        return nearest_etf(H, U0, delta, formulation=formulation, method=method, initial="canonical")

    def loss(H, U0):
        return float(np.vdot(G, solve(H, U0).frame))

    H_bar, U0_bar = nearest_etf_vjp(solve(H, U0), G)
    step = 1e-5
    for bar, perturb in ((H_bar, lambda E: loss(H + E, U0)), (U0_bar, lambda E: loss(H, U0 + E))):
        entries = np.eye(15).reshape(15, 5, 3)
        found = [(perturb(step * E) - perturb(-step * E)) / (2 * step) for E in entries]
        assert np.linalg.norm(bar.ravel() - found) <= 1e-6 * np.linalg.norm(H_bar)


@pytest.mark.parametrize("formulation", ["paper", "gauge-free"])
def test_vjp_agrees_with_autodiff_through_an_unrolled_polar_iteration(formulation):
    """Newton–Schulz iterations of A differentiated by autograd, which share no formula with the closed form."""
    rng = np.random.default_rng(1)
    d, K, delta = 7, 4, 0.5
    H, U0, G = class_means_of_condition(d, K, 5, rng), random_point(d, K, rng), rng.standard_normal((d, K))
    Q = centred_basis(K)
    E, back = (np.eye(K) - 1 / K, np.eye(K)) if formulation == "paper" else (Q, Q)

    def loss(H, U0):
        X = 2 / anp.sqrt(K - 1) * H @ E + delta * U0 @ back
        X = X / anp.sqrt(anp.sum(X**2))
        for _ in range(40):
            X = 1.5 * X - 0.5 * X @ (X.T @ X)
        return anp.sum(G * (X @ back.T))

    expected = autograd.grad(loss, (0, 1))(H, U0)
    found = nearest_etf_vjp(nearest_etf(H, U0, delta, formulation=formulation), G)
    assert relative(found[0], expected[0]) < 1e-9
    assert relative(found[1], expected[1]) < 1e-9


def test_gradients_of_the_etf_do_not_depend_on_the_gauge():
    """A loss of the classifier alone has the same derivative in both formulations of the first step."""
    rng = np.random.default_rng(0)
    H, G = class_means_of_condition(9, 4, 10, rng), rng.standard_normal((9, 4))
    G -= G.mean(axis=1, keepdims=True)
    paper = nearest_etf_vjp(nearest_etf(H), G)[0]
    gauge_free = nearest_etf_vjp(nearest_etf(H, formulation="gauge-free"), G)[0]
    assert relative(paper, gauge_free) < 1e-12


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_accuracy_degrades_no_faster_than_the_condition_number(condition):
    rng = np.random.default_rng(0)
    H, G = class_means_of_condition(12, 5, condition, rng), rng.standard_normal((12, 5))
    solution = nearest_etf(H, formulation="gauge-free")
    closed, dense = (nearest_etf_vjp(solution, G, form=form)[0] for form in ("closed", "dense"))
    assert relative(closed, dense) < 1e-13 * condition


def test_ill_conditioned_derivatives_warn_with_the_remedy():
    rng = np.random.default_rng(0)
    H = class_means_of_condition(6, 4, 10, rng)
    H[:, 1] = H[:, 0]
    solution = nearest_etf(H)
    assert solution.status is Status.NOT_UNIQUE
    with pytest.warns(IllConditionedWarning, match="Use a larger delta"):
        H_bar, _ = nearest_etf_vjp(solution, np.ones((6, 4)))
    assert np.isfinite(H_bar).all()
    with pytest.raises(ValueError, match="rank 2 of 3"):
        nearest_etf_vjp(solution, np.ones((6, 4)), form="dense")
    nearly = nearest_etf(class_means_of_condition(6, 4, 1e14, rng))
    with pytest.warns(IllConditionedWarning, match=r"condition number \d\.\de\+1[345]"):
        nearest_etf_jvp(nearly, H)


def batch_of(d, K, absent, seed):
    """Class means of a batch minus its mean, as a function of the step t along a direction of its data."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 4, size=K)
    counts[list(absent)] = 0
    rows, along = rng.standard_normal((2, K, d))

    def class_means(t):
        means = (rows + t * along).T * (counts > 0)
        return (means - means @ counts[:, None] / counts.sum()) * (counts > 0)

    return class_means


LACKING = [(9, 4, [0]), (7, 5, [1, 3]), (6, 6, [2]), (6, 6, [2, 4, 5]), (20, 10, [0, 3, 4, 5])]


@pytest.mark.filterwarnings("ignore::nearest_etf.reference.IllConditionedWarning")
@pytest.mark.parametrize("method", ["trust-region", "svd"])
@pytest.mark.parametrize("initial", ["canonical", "random"])
@pytest.mark.parametrize(
    ("d", "K", "absent", "formulation"),
    [(*case, "paper") for case in LACKING]
    + [(*case, "gauge-free") for case in [*LACKING, (3, 4, [1]), (5, 6, [1, 2])]],
)
def test_first_step_without_some_classes_has_the_derivative_of_the_data(d, K, absent, initial, method, formulation):
    """By finite differences along class means of such batches, for the frame and the classifier."""
    class_means = batch_of(d, K, absent, seed=1)

    def solve(t):
        return nearest_etf(class_means(t), formulation=formulation, method=method, initial=initial)

    solution, step = solve(0.0), 1e-5
    assert solution.status is Status.NOT_UNIQUE
    H_dot, after, before = class_means(1.0) - class_means(0.0), solve(step), solve(-step)
    frame_dot = nearest_etf_jvp(solution, H_dot)
    assert relative(frame_dot, (after.frame - before.frame) / (2 * step)) < 1e-6
    classifier_dot = np.sqrt(K / (K - 1)) * (frame_dot - frame_dot.mean(axis=1, keepdims=True)).T
    assert relative(classifier_dot, (after.classifier - before.classifier) / (2 * step)) < 1e-6
    G = np.random.default_rng(0).standard_normal((d, K))
    H_bar = nearest_etf_vjp(solution, G)[0]
    assert np.vdot(G, frame_dot) == pytest.approx(np.vdot(H_bar, H_dot), rel=1e-10)


@pytest.mark.filterwarnings("ignore::nearest_etf.reference.IllConditionedWarning")
@pytest.mark.parametrize("formulation", ["paper", "gauge-free"])
@pytest.mark.parametrize(("d", "K"), [(7, 4), (4, 4)])
def test_rank_lost_despite_the_proximal_point_is_completed_too(formulation, d, K):
    """`H M = −(δ/c) U₀ M` in one direction: A loses a rank despite the proximal term."""
    rng = np.random.default_rng(0)
    U0, delta = random_point(d, K, rng), 0.5
    v = np.zeros(K)
    v[:2] = 0.5**0.5, -(0.5**0.5)
    kept = np.eye(K) - np.outer(v, v)
    base = class_means_of_condition(d, K, 3, rng) @ kept - delta * np.sqrt(K - 1) / 2 * U0 @ np.outer(v, v)
    H_dot, C = rng.standard_normal((d, K)) @ kept, random_point(d, K, rng)

    def solve(t):
        return nearest_etf(base + t * H_dot, U0, delta, formulation=formulation, method="svd", initial=C)

    solution, step = solve(0.0), 1e-5
    assert solution.row_space is not None
    found = nearest_etf_jvp(solution, H_dot)
    assert relative(found, (solve(step).frame - solve(-step).frame) / (2 * step)) < 1e-6
    G = rng.standard_normal((d, K))
    assert np.vdot(G, found) == pytest.approx(np.vdot(nearest_etf_vjp(solution, G)[0], H_dot), rel=1e-10)


@pytest.mark.filterwarnings("ignore::nearest_etf.reference.IllConditionedWarning")
@pytest.mark.parametrize("formulation", ["paper", "gauge-free"])
def test_equal_class_means_have_a_finite_derivative(formulation):
    """One class per batch, or constant features: H = 0, the frame is the start, and its derivative is zero."""
    solution = nearest_etf(np.zeros((6, 3)), formulation=formulation)
    assert not nearest_etf_vjp(solution, np.ones((6, 3)))[0].any()
    assert not nearest_etf_jvp(solution, np.ones((6, 3))).any()


def test_square_problems_need_only_sums_of_singular_values():
    """d = m has no normal directions: one tiny singular value leaves the derivative well-conditioned."""
    rng = np.random.default_rng(0)
    left, right = random_point(3, 3, rng), random_point(3, 3, rng)
    H = (left * [1.0, 0.5, 1e-14]) @ right @ centred_basis(4).T
    G = rng.standard_normal((3, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution = nearest_etf(H, formulation="gauge-free", method="svd")
        assert solution.condition_number > 1e13
        H_bar = nearest_etf_vjp(solution, G)[0]
    assert relative(H_bar, nearest_etf_vjp(solution, G, form="dense")[0]) < 1e-9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: nearest_etf_vjp(s, np.ones((3, 6))), r"cotangent has shape \(3, 6\); expected \(6, 3\)"),
        (lambda s: nearest_etf_vjp(s, np.full((6, 3), np.nan)), "NaN or infinite"),
        (lambda s: nearest_etf_jvp(s, np.ones(3)), "class_means_dot has shape"),
        (lambda s: nearest_etf_jvp(s, np.ones((6, 3)), np.ones(2)), "proximal_dot has shape"),
        (lambda s: nearest_etf_vjp(s, np.ones((6, 3)), form="sparse"), "'closed', 'dense'"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_refused(call, message):
    solution = nearest_etf(class_means_of_condition(6, 3, 10, np.random.default_rng(0)))
    with pytest.raises(ValueError, match=message):
        call(solution)


def test_dense_form_refuses_large_sizes():
    solution = nearest_etf(class_means_of_condition(400, 10, 10, np.random.default_rng(0)))
    with pytest.raises(ValueError, match=r"4000 × 4000|3600 × 3600"):
        nearest_etf_vjp(solution, np.ones((400, 10)), form="dense")
