"""Classifiers of tight frames, and the alternating projections: their limits, and sizes without a solution."""

import numpy as np
import pytest

from nearest_etf.reference import (
    EqualNormWarning,
    canonical_tight_frame,
    classifier_from_tight_frame,
    equal_norm_tight_frame,
    etf_error,
    nearest_tight_frame,
)
from nearest_etf.reference.equal_norm import alternate

SIZES = [(2, 4), (2, 5), (3, 8), (4, 6), (5, 12), (16, 100), (1, 4)]


def tight_frame(d, K, seed=0):
    return nearest_tight_frame(np.random.default_rng(seed).standard_normal((d, K)), method="svd").frame


@pytest.mark.parametrize(("d", "K"), [*SIZES, (3, 5), (5, 3), (3, 4)])
def test_unit_and_tight_rows(d, K):
    F, r = tight_frame(d, K), min(d, K - 1)
    unit, tight = classifier_from_tight_frame(F), classifier_from_tight_frame(F, "tight")
    assert np.linalg.norm(unit, axis=1) == pytest.approx(1)
    assert np.square(tight).sum() == pytest.approx(K)
    assert tight == pytest.approx(np.sqrt(K / r) * F.T)
    assert tight.sum(axis=0) == pytest.approx(0, abs=1e-12)
    if d >= K - 1:
        assert etf_error(unit) < 1e-14
        assert unit == pytest.approx(tight, abs=1e-14)
        assert unit == pytest.approx(classifier_from_tight_frame(F, "equal"), abs=1e-14)


@pytest.mark.parametrize(("d", "K"), SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_equal_norms_give_a_spherical_two_design(d, K, seed):
    F = tight_frame(d, K, seed) if d > 1 else np.array([[0.5, 0.4, -0.3, -0.6]])
    E = equal_norm_tight_frame(F, tolerance=1e-9)
    gram = E @ E.T
    assert gram == pytest.approx(np.eye(d), abs=1e-13)
    assert E.sum(axis=1) == pytest.approx(0, abs=1e-13)
    assert np.linalg.norm(E, axis=0) == pytest.approx(np.sqrt(d / K), abs=1e-8)
    unit = classifier_from_tight_frame(F, "equal")
    assert np.linalg.norm(unit, axis=1) == pytest.approx(1, abs=1e-14)
    assert unit.T @ unit == pytest.approx(K / d * np.eye(d), abs=1e-4)


@pytest.mark.parametrize(("d", "K"), [(3, 5), (1, 3), (4, 9), (16, 100)])
def test_without_zero_sum_every_size_has_a_solution(d, K):
    F = equal_norm_tight_frame(tight_frame(d, K), zero_sum=False)
    gram = F @ F.T
    assert gram == pytest.approx(np.eye(d), abs=1e-13)
    assert np.linalg.norm(F, axis=0) == pytest.approx(np.sqrt(d / K), abs=1e-5)
    assert np.linalg.norm(F.sum(axis=1)) > 1e-3
    simplex = tight_frame(5, 4)
    assert equal_norm_tight_frame(simplex, zero_sum=False) == pytest.approx(simplex, abs=1e-13)


def test_an_equal_norm_tight_frame_is_kept():
    for F in (tight_frame(5, 3), tight_frame(3, 4), equal_norm_tight_frame(tight_frame(3, 8), tolerance=1e-13)):
        kept, rounds, _ = alternate(F, 10, 1e-12)
        assert rounds == 0
        assert kept == pytest.approx(F, abs=1e-13)


def test_the_frame_stays_nearer_than_a_canonical_one():
    """The rounds change a frame of many vectors little, since its norms are nearly equal."""
    F = tight_frame(8, 200)
    E = equal_norm_tight_frame(F)
    assert np.linalg.norm(E - F) < 0.5 * np.linalg.norm(equal_norm_tight_frame(canonical_tight_frame(8, 200)) - F)


def test_a_column_of_zeros_gets_a_direction():
    F = np.zeros((3, 8))
    F[:, 1:] = tight_frame(3, 7)
    unit = classifier_from_tight_frame(F)
    assert not unit[0].any()
    assert np.linalg.norm(unit[1:], axis=1) == pytest.approx(1)
    E = equal_norm_tight_frame(F)
    assert np.linalg.norm(E, axis=0) == pytest.approx(np.sqrt(3 / 8), abs=1e-5)


def test_too_few_rounds_warn_with_the_remedy():
    with pytest.warns(EqualNormWarning, match=r"after 2 rounds .* Raise `rounds`"):
        F = equal_norm_tight_frame(tight_frame(4, 9), rounds=2)
    gram = F @ F.T
    assert gram == pytest.approx(np.eye(4))


@pytest.mark.parametrize(("d", "K"), [(3, 5), (5, 7), (1, 3), (1, 5)])
def test_sizes_without_a_solution_are_refused(d, K):
    """The alternating projections find none either."""
    with pytest.raises(ValueError, match=r"sums to zero. Use norms=\"unit\""):
        equal_norm_tight_frame(tight_frame(d, K))
    assert min(alternate(tight_frame(d, K, seed), 500, 1e-6)[2] for seed in range(3)) > 1e-2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classifier_from_tight_frame(np.eye(2, 4), "none"), "norms = 'none'; expected one of 'unit'"),  # type: ignore[arg-type]
        (lambda: classifier_from_tight_frame(np.ones(3)), r"frame has shape \(3,\)"),
        (lambda: equal_norm_tight_frame(np.full((2, 4), np.inf)), "NaN or infinite"),
        (lambda: equal_norm_tight_frame(np.ones((2, 4))), r"rank 0 after centring; expected rank min\(d, K−1\) = 2"),
        (lambda: equal_norm_tight_frame(np.diag([1.0, 0.0]) @ tight_frame(2, 4)), "rank 1 after centring"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
