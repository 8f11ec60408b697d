"""The solver against its certificate, the other method, and on degenerate problems."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearest_etf.reference import Status, etf_error, initial_frame, nearest_etf
from nearest_etf.reference.problems import class_means_of_condition
from nearest_etf.reference.simplex import centred_basis, centring
from nearest_etf.reference.stiefel import check_point, random_point

BOTH = pytest.mark.parametrize("method", ["trust-region", "svd"])
FORMULATIONS = pytest.mark.parametrize("formulation", ["paper", "gauge-free"])


def relative_gap(solution):
    return solution.optimality_gap / solution.singular_values.sum()


def random_problem(seed):
    """A problem with random size, conditioning, formulation, δ, proximal point and start."""
    rng = np.random.default_rng([7, seed])
    K = int(rng.integers(2, 101) if seed % 25 == 0 else rng.integers(2, 21))
    formulation = ("paper", "gauge-free")[seed % 2]
    smallest = K if formulation == "paper" else K - 1
    d = smallest if rng.random() < 0.15 else int(rng.integers(smallest, 301 if seed % 25 == 0 else 101))
    H = class_means_of_condition(d, K, 10 ** rng.uniform(0, 10), rng)
    U0 = initial_frame(("canonical", "random", "feature-polar")[seed % 3], H, rng) if rng.random() < 0.7 else None
    options = {"formulation": formulation, "initial": (None, "canonical", "random", "feature-polar")[seed % 4]}
    return H, U0, 10 ** rng.uniform(-6, 1), options


@pytest.mark.parametrize("hundred", range(5))
def test_five_hundred_random_problems_converge_to_certified_minimisers(hundred):
    for seed in range(100 * hundred, 100 * hundred + 100):
        H, U0, delta, options = random_problem(seed)
        solution = nearest_etf(H, U0, delta, **options)
        assert solution.status is Status.CONVERGED, seed
        assert abs(relative_gap(solution)) <= 1e-12, seed
        U, K = solution.frame, H.shape[1]
        gram = np.eye(K) if options["formulation"] == "paper" else centring(K)
        assert np.linalg.norm(U.T @ U - gram) <= 1e-12, seed
        assert etf_error(solution.classifier) <= 1e-12, seed


@FORMULATIONS
@pytest.mark.parametrize(("d", "K"), [(6, 6), (10, 4), (64, 20)])
@pytest.mark.parametrize("delta", [0.0, 1e-3, 1.0, 1e6])
def test_both_methods_agree(formulation, d, K, delta):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        H = class_means_of_condition(d, K, 100, rng)
        U0 = random_point(d, K, rng)
        ours = nearest_etf(H, U0, delta, formulation=formulation)
        oracle = nearest_etf(H, U0, delta, formulation=formulation, method="svd")
        assert ours.objective == pytest.approx(oracle.objective, rel=1e-12)
        assert abs(relative_gap(ours)) < 1e-12
        M = centring(K)
        assert ours.frame @ M == pytest.approx(oracle.frame @ M, abs=1e-9)
        assert ours.frame == pytest.approx(oracle.frame, abs=1e-9)


@pytest.mark.parametrize(("d", "K"), [(5, 5), (9, 3), (60, 10)])
def test_truncated_cg_reaches_the_same_solution(d, K):
    rng = np.random.default_rng(d)
    H = class_means_of_condition(d, K, 10, rng)
    exact = nearest_etf(H, initial="random")
    truncated = nearest_etf(H, initial="random", subproblem="truncated-cg")
    assert truncated.status is Status.CONVERGED
    assert truncated.frame @ centring(K) == pytest.approx(exact.frame @ centring(K), abs=1e-9)
    assert exact.iterations <= truncated.iterations


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), K=st.integers(2, 8), extra=st.integers(0, 5), scale=st.floats(-150, 150))
def test_rotation_scale_and_relabelling_commute_with_the_solution(seed, K, extra, scale):
    rng = np.random.default_rng(seed)
    d = K + extra
    H = class_means_of_condition(d, K, 10, rng)
    R, order = random_point(d, d, rng), rng.permutation(K)
    etf = nearest_etf(H).classifier.T
    moved = nearest_etf(10.0**scale * (R @ H)[:, order] + rng.standard_normal((d, 1)) * 10.0**scale)
    assert moved.status is Status.CONVERGED
    assert pytest.approx((R @ etf)[:, order], abs=1e-9) == moved.classifier.T


def test_objective_is_the_papers_own():
    rng = np.random.default_rng(0)
    H, U0 = class_means_of_condition(8, 4, 10, rng), random_point(8, 4, rng)
    M = centring(4)
    U = nearest_etf(H, U0, 0.3).frame
    value = np.linalg.norm(H - U @ M / np.sqrt(3)) ** 2 + 0.15 * np.linalg.norm(U - U0) ** 2
    assert nearest_etf(H, U0, 0.3).objective == pytest.approx(value)
    U = nearest_etf(H, U0, 0.3, formulation="gauge-free").frame
    value = np.linalg.norm(H - U @ M / np.sqrt(3)) ** 2 + 0.15 * np.linalg.norm((U - U0) @ M) ** 2
    assert nearest_etf(H, U0, 0.3, formulation="gauge-free").objective == pytest.approx(value)


def test_formulations_differ_by_delta_and_agree_as_it_vanishes():
    rng = np.random.default_rng(0)
    H, U0 = class_means_of_condition(20, 5, 10, rng), random_point(20, 5, rng)
    apart = [
        np.linalg.norm(
            nearest_etf(H, U0, delta).classifier - nearest_etf(H, U0, delta, formulation="gauge-free").classifier
        )
        for delta in (1e-2, 1e-3, 1e-4)
    ]
    assert apart[0] > apart[1] > apart[2]
    assert apart[2] < 1e-3


@BOTH
@FORMULATIONS
def test_first_step_takes_the_minimiser_nearest_to_the_start(method, formulation):
    """Without a proximal term U·1 is free: other choices have the same objective, but are further from the start."""
    rng = np.random.default_rng(0)
    H = class_means_of_condition(7, 4, 10, rng)
    C = random_point(7, 4, rng)
    solution = nearest_etf(H, method=method, formulation=formulation, initial=C)
    if formulation == "gauge-free":
        assert solution.frame.sum(axis=1) == pytest.approx(0, abs=1e-12)
        return
    assert check_point(solution.frame)[0]
    X = solution.frame @ centred_basis(4)
    for _ in range(50):
        z = rng.standard_normal(7)
        z -= X @ (X.T @ z)
        other = X @ centred_basis(4).T + np.outer(z / np.linalg.norm(z), np.full(4, 0.5))
        assert np.linalg.norm(solution.frame - C) <= np.linalg.norm(other - C)


@BOTH
@FORMULATIONS
@pytest.mark.parametrize("K", [3, 6])
def test_equal_class_means_give_the_minimiser_nearest_to_the_start(method, formulation, K):
    rng = np.random.default_rng(0)
    H = class_means_of_condition(9, K, 10, rng)
    H[:, 1] = H[:, 0]
    C = random_point(9, K, rng)
    solution = nearest_etf(H, method=method, formulation=formulation, initial=C)
    assert solution.status is Status.NOT_UNIQUE
    assert solution.condition_number > 1e14
    assert abs(relative_gap(solution)) < 1e-13
    assert etf_error(solution.classifier) < 1e-12
    again = nearest_etf(H, method="svd", formulation=formulation, initial=C)
    assert solution.frame == pytest.approx(again.frame, abs=1e-7)


@BOTH
@FORMULATIONS
def test_zero_class_means_give_the_start(method, formulation):
    C = random_point(6, 3, np.random.default_rng(0))
    solution = nearest_etf(np.zeros((6, 3)), method=method, formulation=formulation, initial=C)
    assert solution.status is Status.NOT_UNIQUE
    assert solution.optimality_gap == 0
    assert solution.frame @ centring(3) == pytest.approx(C @ centring(3), abs=1e-12)
    kept = nearest_etf(np.zeros((6, 3)), C, method=method, formulation=formulation)
    assert kept.frame @ centring(3) == pytest.approx(C @ centring(3), abs=1e-12)


def test_starts_at_a_saddle_and_at_the_maximum_are_escaped():
    rng = np.random.default_rng(0)
    H = class_means_of_condition(8, 4, 10, rng)
    best = nearest_etf(H)
    left, _, right = np.linalg.svd(best.frame @ centring(4), full_matrices=False)
    for signs in ([-1, 1, 1, 1], [-1, -1, -1, 1]):
        solution = nearest_etf(H, initial=(left * signs) @ right)
        assert solution.status is Status.CONVERGED
        assert solution.objective == pytest.approx(best.objective)
        assert solution.iterations > 0


def test_square_problems_reach_the_other_component():
    rng = np.random.default_rng(0)
    for formulation, d, K in (("paper", 5, 5), ("gauge-free", 4, 5)):
        H = class_means_of_condition(d, K, 10, rng)
        best = (
            nearest_etf(H, np.eye(d, K), formulation=formulation, method="svd")
            if d == K
            else nearest_etf(H, formulation=formulation, method="svd")
        )
        U0 = np.eye(d, K) if d == K else None
        for sign in (1.0, -1.0):
            flip = np.diag([sign, *np.ones(d - 1)])
            start = flip @ best.frame
            solution = nearest_etf(H, U0, formulation=formulation, initial=start)
            assert solution.status is Status.CONVERGED
            assert solution.objective == pytest.approx(best.objective)
            assert abs(relative_gap(solution)) < 1e-12


@FORMULATIONS
def test_singular_values_over_twelve_orders_of_magnitude(formulation):
    H = class_means_of_condition(40, 8, 1e12, np.random.default_rng(0))
    solution = nearest_etf(H, formulation=formulation)
    assert solution.status.ok
    assert abs(relative_gap(solution)) < 1e-12
    assert solution.condition_number == pytest.approx(1e12, rel=1e-2)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_solution_without_proximal_term_does_not_depend_on_the_scale(scale):
    H = class_means_of_condition(12, 4, 10, np.random.default_rng(0))
    solution = nearest_etf(scale * H)
    assert solution.status is Status.CONVERGED
    assert solution.classifier == pytest.approx(nearest_etf(H).classifier, abs=1e-12)
    assert abs(relative_gap(solution)) < 1e-13


def test_both_formulations_accept_proximal_points_of_both():
    rng = np.random.default_rng(0)
    H = class_means_of_condition(9, 4, 10, rng)
    paper = random_point(9, 4, rng)
    gauge_free = paper @ centring(4)
    expected = nearest_etf(H, paper, 0.1, formulation="gauge-free").classifier
    assert nearest_etf(H, gauge_free, 0.1, formulation="gauge-free").classifier == pytest.approx(expected, abs=1e-12)
    assert nearest_etf(H, gauge_free, 0.1).classifier == pytest.approx(expected, abs=1e-12)
    assert check_point(nearest_etf(H, gauge_free, 0.1).frame)[0]


def test_large_delta_gives_the_proximal_point_and_two_classes_align():
    rng = np.random.default_rng(0)
    H, U0 = class_means_of_condition(9, 4, 10, rng), random_point(9, 4, rng)
    assert nearest_etf(H, U0, 1e6).frame == pytest.approx(U0, abs=1e-5)
    H = class_means_of_condition(5, 2, 1, rng)
    assert nearest_etf(H).classifier == pytest.approx((H / np.linalg.norm(H, axis=0)).T, abs=1e-12)


def test_any_memory_layout_and_float32_are_solved_in_float64():
    rng = np.random.default_rng(0)
    H = class_means_of_condition(10, 4, 10, rng)
    expected = nearest_etf(H).frame
    strided = np.zeros((20, 8))
    strided[::2, ::2] = H
    read_only = H.copy()
    read_only.setflags(write=False)
    for same in (np.asfortranarray(H), strided[::2, ::2], read_only, H.tolist(), H.astype(">f8")):
        assert nearest_etf(same).frame == pytest.approx(expected, abs=1e-13)
    single = nearest_etf(H.astype(np.float32))
    assert single.frame.dtype == np.float64
    assert np.array_equal(single.frame, nearest_etf(H.astype(np.float32).astype(np.float64)).frame)


@pytest.mark.parametrize("kind", ["canonical", "random", "feature-polar"])
@pytest.mark.parametrize(("d", "K"), [(7, 3), (3, 3), (2, 3)])
def test_initial_frames_are_frames(kind, d, K):
    H = class_means_of_condition(d, K, 10, np.random.default_rng(0))
    U = initial_frame(kind, H)
    gram = np.eye(K) if d >= K else centring(K)
    assert pytest.approx(gram, abs=1e-12) == U.T @ U
    if kind == "feature-polar":
        assert U @ centring(K) == pytest.approx(nearest_etf(H, formulation="gauge-free").frame, abs=1e-9)


@pytest.mark.parametrize("length", [0.0, 1e-6, 3.0, 100.0])
def test_a_start_off_the_manifold_is_moved_onto_it(length):
    """The length of U·1 of a frame is free: it is zero in the gauge-free form."""
    rng = np.random.default_rng(0)
    H, U0 = class_means_of_condition(9, 4, 10, rng), random_point(9, 4, rng)
    start = U0 @ centring(4) + length * U0 @ (np.eye(4) - centring(4))
    solution = nearest_etf(H, U0, initial=start)
    assert solution.status is Status.CONVERGED
    assert solution.frame == pytest.approx(nearest_etf(H, U0, method="svd").frame, abs=1e-9)
    assert nearest_etf(H, start).status is Status.CONVERGED


@FORMULATIONS
def test_single_precision_solution_as_proximal_point_converges(formulation):
    """Its columns are orthonormal only up to 1e-8, and no step reduces the resulting part of the gradient."""
    U0 = random_point(82, 2, np.random.default_rng(0)).astype(np.float32)
    for delta in (0.04, 3.0):
        assert nearest_etf(np.zeros((82, 2)), U0, delta, formulation=formulation).status is Status.CONVERGED


def test_both_methods_find_the_same_rank_of_small_matrices():
    for seed in range(300):
        rng = np.random.default_rng(seed)
        H = rng.standard_normal((3, 4)) * [1, 1, 0, 1]
        H = (H - H.sum(axis=1, keepdims=True) / 3) * [1, 1, 0, 1]
        ours, oracle = (nearest_etf(H, formulation="gauge-free", method=m) for m in ("trust-region", "svd"))
        assert ours.status is oracle.status is Status.NOT_UNIQUE, seed
        assert ours.frame == pytest.approx(oracle.frame, abs=1e-9), seed


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.ones(3),), {}, r"class_means has shape \(3,\); expected a matrix \(d, K\)"),
        ((np.ones((3, 1)),), {}, "at least 2 classes"),
        ((np.ones((3, 4)),), {}, 'formulation="gauge-free"'),
        ((np.ones((2, 4)),), {"formulation": "gauge-free"}, "use at least 3 features"),
        ((np.full((4, 3), np.nan),), {}, "NaN or infinite entries: 12 of 12"),
        ((np.full((4, 3), np.inf),), {}, "NaN or infinite"),
        ((np.eye(4, 3), np.eye(3)), {}, r"proximal has shape \(3, 3\); expected \(4, 3\)"),
        ((np.eye(4, 3), 2 * np.eye(4, 3)), {}, "proximal is not a frame"),
        ((np.eye(4, 3), None, -1.0), {}, "delta = -1.0"),
        ((np.eye(4, 3), None, np.nan), {}, "delta = nan"),
        ((np.eye(4, 3),), {"method": "newton"}, "expected one of 'trust-region', 'svd'"),
        *[((np.eye(4, 3),), {"method": m}, f"'{m}' is a method of torchport") for m in ("auto", "eigh", "matmul")],
        ((np.eye(4, 3),), {"formulation": "gauge"}, "'paper', 'gauge-free'"),
        ((np.eye(4, 3),), {"subproblem": "cg"}, "'exact', 'truncated-cg'"),
        ((np.eye(4, 3),), {"initial": "identity"}, "'canonical', 'random', 'feature-polar'"),
        ((np.eye(4, 3),), {"initial": np.zeros((4, 3))}, "initial is not a frame"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        nearest_etf(*arguments, **options)


def test_too_few_iterations_are_reported():
    solution = nearest_etf(class_means_of_condition(30, 6, 1e4, np.random.default_rng(0)), max_iterations=1)
    assert solution.status is Status.MAX_ITERATIONS
    assert "max_iterations" in solution.status.advice
