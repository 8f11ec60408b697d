"""The nearest tight frame for any number of classes: value, certificate, and degenerate problems."""

import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dct
from scipy.linalg import polar

from nearest_etf.reference import (
    IllConditionedWarning,
    Status,
    canonical_tight_frame,
    nearest_etf,
    nearest_etf_jvp,
    nearest_etf_vjp,
    nearest_tight_frame,
    tight_frame_jvp,
    tight_frame_vjp,
)
from nearest_etf.reference.frames import transposed, transposed_back
from nearest_etf.reference.problems import class_means_of_condition
from nearest_etf.reference.simplex import centred, centring
from nearest_etf.reference.stiefel import random_point, random_tangent, retract_polar

NARROW = [(1, 2), (5, 3), (6, 6), (3, 4), (12, 5)]
WIDE = [(1, 3), (1, 4), (2, 4), (3, 5), (4, 9), (6, 20)]
BOTH = pytest.mark.parametrize("method", ["trust-region", "svd"])


def random_tight_frame(d, K, rng):
    return nearest_tight_frame(rng.standard_normal((d, K)), method="svd").frame


def relative(found, expected):
    return np.linalg.norm(np.asarray(found) - np.asarray(expected)) / np.linalg.norm(expected)


def is_tight(F):
    d, K = F.shape
    error = F.T @ F - centring(K) if d >= K - 1 else F @ F.T - np.eye(d)
    return np.linalg.norm(error) < 1e-12 and np.linalg.norm(F.sum(axis=1)) < 1e-12


@pytest.mark.parametrize(("d", "K"), NARROW + WIDE)
@pytest.mark.parametrize("delta", [0.0, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("condition", [1.0, 100.0])
def test_both_methods_agree_with_a_certificate(d, K, delta, condition):
    for seed in range(3):
        rng = np.random.default_rng([seed, d, K])
        H, F0 = class_means_of_condition(d, K, condition, rng), random_tight_frame(d, K, rng)
        ours, oracle = (nearest_tight_frame(H, F0, delta, method=method) for method in ("trust-region", "svd"))
        assert ours.status is Status.CONVERGED
        assert is_tight(ours.frame)
        assert abs(ours.optimality_gap) < 1e-12 * ours.singular_values.sum()
        assert ours.gradient_norm < 1e-10 * ours.singular_values.sum()
        assert ours.objective == pytest.approx(oracle.objective, rel=1e-12, abs=1e-14)
        assert ours.frame == pytest.approx(oracle.frame, abs=1e-9)


@pytest.mark.parametrize(("d", "K"), WIDE)
def test_more_classes_than_dimensions_are_the_whitened_class_means(d, K):
    rng = np.random.default_rng(0)
    H, F0 = rng.standard_normal((d, K)), random_tight_frame(d, K, rng)
    C = centred(H)
    values, V = np.linalg.eigh(C @ C.T)
    solution = nearest_tight_frame(H)
    assert solution.frame == pytest.approx((V / np.sqrt(values)) @ V.T @ C, abs=1e-12)
    A = 2 / np.sqrt(d) * C + 0.3 * F0
    assert nearest_tight_frame(H, F0, 0.3).frame == pytest.approx(polar(A, side="left")[0], abs=1e-12)
    assert solution.condition_number == pytest.approx(np.sqrt(values[-1] / values[0]))


@pytest.mark.parametrize(("d", "K"), NARROW + WIDE)
def test_objective_and_certificate_are_those_of_the_definition(d, K):
    rng = np.random.default_rng(1)
    H, F0, r = rng.standard_normal((d, K)), random_tight_frame(d, K, rng), min(d, K - 1)
    solution = nearest_tight_frame(H, F0, 0.3)
    A = (2 / np.sqrt(r) * H + 0.3 * F0) @ centring(K)
    assert solution.linear_term == pytest.approx(A, abs=1e-14)
    assert solution.singular_values == pytest.approx(np.linalg.svd(A, compute_uv=False)[:r])

    def objective(F):
        return np.linalg.norm(H - F / np.sqrt(r)) ** 2 + 0.15 * np.linalg.norm(F - F0) ** 2

    assert solution.objective == pytest.approx(objective(solution.frame))
    for _ in range(30):  # the objective is a constant minus ⟨F, A⟩
        F = random_tight_frame(d, K, rng)
        gap = np.linalg.norm(A, "nuc") - np.vdot(F, A)
        assert gap >= 0
        assert objective(F) - solution.objective == pytest.approx(gap, abs=1e-12)


@pytest.mark.parametrize(("d", "K"), [(5, 3), (3, 4), (3, 5), (4, 9)])
def test_gap_is_positive_away_from_the_optimum(d, K):
    rng = np.random.default_rng(0)
    solution = nearest_tight_frame(class_means_of_condition(d, K, 3, rng))
    X = solution.solved.variable
    for length in (1e-3, 1e-1, 1.0):
        other = retract_polar(X, length * random_tangent(X, rng))
        moved = replace(solution, solved=replace(solution.solved, variable=other))
        assert moved.optimality_gap > 1e-3 * length**2 * solution.singular_values[-1]


@BOTH
@pytest.mark.parametrize(("d", "K"), NARROW)
@pytest.mark.parametrize("delta", [0.0, 1e-3, 1.0])
def test_up_to_d_plus_one_classes_are_the_gauge_free_etf(method, d, K, delta):
    rng = np.random.default_rng(0)
    H, U0, G = class_means_of_condition(d, K, 10, rng), random_tight_frame(d, K, rng), rng.standard_normal((d, K))
    deficient = H @ (np.eye(K) - np.eye(K)[:, [0]] @ np.eye(K)[[0]])
    for means, proximal in ((H, U0), (H, None), (deficient, None), (0 * H, None)):
        ours = nearest_tight_frame(means, proximal, delta, method=method)
        etf = nearest_etf(means, proximal, delta, method=method, formulation="gauge-free")
        assert ours.status is etf.status
        assert ours.frame == pytest.approx(etf.frame, abs=1e-12)
        assert ours.classifier == pytest.approx(etf.classifier, abs=1e-12)
        assert ours.objective == pytest.approx(etf.objective, rel=1e-12, abs=1e-14)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IllConditionedWarning)
            assert np.stack(tight_frame_vjp(ours, G)) == pytest.approx(np.stack(nearest_etf_vjp(etf, G)), rel=1e-12)
            assert tight_frame_jvp(ours, G, U0) == pytest.approx(nearest_etf_jvp(etf, G, U0), rel=1e-12)


def test_a_proximal_point_of_the_papers_formulation_is_accepted():
    rng = np.random.default_rng(0)
    H, U0 = class_means_of_condition(7, 4, 3, rng), random_point(7, 4, rng)
    found = nearest_tight_frame(H, U0, 0.5).frame
    assert found == pytest.approx(nearest_tight_frame(H, U0 @ centring(4), 0.5).frame, abs=1e-12)


@BOTH
@pytest.mark.parametrize(("d", "K"), [(2, 4), (4, 9)])
def test_the_minimiser_nearest_to_the_start_is_returned(method, d, K):
    rng = np.random.default_rng(0)
    H, C = rng.standard_normal((d, 1)) @ centred(rng.standard_normal((1, K))), random_tight_frame(d, K, rng)
    F = nearest_tight_frame(H, method=method, initial=C).frame
    left, _, right_t = np.linalg.svd(H)
    fixed = left[:, :1] @ right_t[:1]
    for _ in range(50):  # other minimisers: equal on the range of H, any tight frame of the complement
        Z = rng.standard_normal((d, K))
        Z = centred(Z - left[:, :1] @ (left[:, :1].T @ Z))
        Z -= (Z @ right_t[:1].T) @ right_t[:1]
        u, _, vt = np.linalg.svd(Z, full_matrices=False)
        other = fixed * np.sign(np.vdot(fixed, H)) + u[:, : d - 1] @ vt[: d - 1]
        assert is_tight(other)
        assert np.vdot(other, H) == pytest.approx(np.vdot(F, H))
        assert np.linalg.norm(F - C) <= np.linalg.norm(other - C)


@pytest.mark.filterwarnings("ignore::nearest_etf.reference.IllConditionedWarning")
@BOTH
@pytest.mark.parametrize(("d", "K"), [(1, 2), (5, 3), (3, 4), (3, 5), (1, 3), (4, 9)])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e8])
def test_equal_class_means_give_the_start(method, d, K, value):
    H = value * np.outer(np.linspace(1, 2, d), np.ones(K))
    solution = nearest_tight_frame(H, method=method)
    assert solution.status is Status.NOT_UNIQUE
    assert solution.frame == pytest.approx(canonical_tight_frame(d, K), abs=1e-12)
    assert not np.any(tight_frame_vjp(solution, np.ones((d, K)))[0])
    assert not np.any(tight_frame_jvp(solution, np.eye(d, K)))
    F0 = random_tight_frame(d, K, np.random.default_rng(0))
    assert nearest_tight_frame(H, F0, 1.0, method=method).frame == pytest.approx(F0, abs=1e-7)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), d=st.integers(1, 6), extra=st.integers(-4, 8), scale=st.floats(-150, 150))
def test_rotation_scale_and_relabelling_commute_with_the_solution(seed, d, extra, scale):
    rng = np.random.default_rng(seed)
    K = max(2, d + extra)
    H = class_means_of_condition(d, K, 10, rng)
    R, order = random_point(d, d, rng), rng.permutation(K)
    moved = nearest_tight_frame(10.0**scale * ((R @ H)[:, order] + rng.standard_normal((d, 1))))
    assert moved.status is Status.CONVERGED
    assert pytest.approx((R @ nearest_tight_frame(H).frame)[:, order], abs=1e-9) == moved.frame


@pytest.mark.parametrize(("d", "K"), [(5, 3), (4, 9)])
def test_single_precision_is_accepted(d, K):
    rng = np.random.default_rng(0)
    H, F0 = class_means_of_condition(d, K, 10, rng), random_tight_frame(d, K, rng)
    single = nearest_tight_frame(H.astype(np.float32), F0.astype(np.float32), 0.1, initial=F0.astype(np.float32))
    assert single.frame.dtype == np.float64
    assert is_tight(single.frame)
    assert single.frame == pytest.approx(nearest_tight_frame(H, F0, 0.1).frame, abs=1e-5)


def test_canonical_tight_frames():
    for d, K in NARROW + WIDE + [(64, 100)]:
        assert is_tight(canonical_tight_frame(d, K))
    assert canonical_tight_frame(4, 9) == pytest.approx(dct(np.eye(9), norm="ortho", axis=0)[1:5], abs=1e-14)
    assert canonical_tight_frame(5, 3) == pytest.approx(np.eye(5, 3) @ centring(3))


@pytest.mark.parametrize(("d", "K"), [(1, 3), (2, 7), (5, 40)])
def test_transposition_is_an_isometry_with_its_adjoint(d, K):
    rng = np.random.default_rng(0)
    F, Y = rng.standard_normal((d, K)), rng.standard_normal((K - 1, d + 1))
    assert transposed_back(transposed(F)) == pytest.approx(centred(F), abs=1e-13)
    assert np.linalg.norm(transposed(F)) == pytest.approx(np.linalg.norm(centred(F)))
    assert np.vdot(transposed(F), Y) == pytest.approx(np.vdot(F, transposed_back(Y)))


def test_many_classes_need_no_matrix_of_k_by_k():
    d, K = 8, 5000
    H = np.random.default_rng(0).standard_normal((d, K))
    tracemalloc.start()
    solution = nearest_tight_frame(H, canonical_tight_frame(d, K))
    H_bar, _ = tight_frame_vjp(solution, H)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert solution.status is Status.CONVERGED
    assert H_bar.shape == (d, K)
    assert peak < 60 * H.nbytes < K * K  # bytes; K² numbers would take eight times that


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nearest_tight_frame(np.ones(3)), r"class_means has shape \(3,\)"),
        (lambda: nearest_tight_frame(np.ones((3, 1))), r"shape \(3, 1\); expected \(d, K\) with at least one feature"),
        (lambda: nearest_tight_frame(np.ones((0, 3))), r"shape \(0, 3\); expected"),
        (lambda: nearest_tight_frame(np.full((3, 8), np.nan)), "NaN or infinite entries: 24 of 24"),
        (lambda: nearest_tight_frame(np.eye(3, 8), delta=-1.0), "delta = -1.0"),
        (lambda: nearest_tight_frame(np.eye(3, 8), np.eye(8, 3)), r"proximal has shape \(8, 3\).*Pass proximal.T"),
        (lambda: nearest_tight_frame(np.eye(3, 8), np.eye(3, 8)), "proximal is not a tight frame"),
        (lambda: nearest_tight_frame(np.eye(5, 3), np.ones((5, 3))), "proximal is not a frame"),
        (lambda: nearest_tight_frame(np.eye(3, 8), initial=np.zeros((3, 8))), "initial is not a tight frame"),
        (lambda: nearest_tight_frame(np.eye(3, 8), method="eigh"), "method of torchport"),  # type: ignore[arg-type]
        (lambda: nearest_tight_frame(np.eye(3, 8), norms="one"), "norms = 'one'"),  # type: ignore[arg-type]
        (lambda: canonical_tight_frame(3, 1), "num_features = 3, num_classes = 1"),
        (lambda: tight_frame_vjp(nearest_tight_frame(np.eye(3, 8)), np.ones((8, 3))), "Pass cotangent.T"),
        (lambda: tight_frame_jvp(nearest_tight_frame(np.eye(3, 8)), np.ones(3)), "class_means_dot has shape"),
        (lambda: tight_frame_jvp(nearest_tight_frame(np.eye(3, 8)), np.eye(3, 8), np.ones(3)), "proximal_dot has"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
