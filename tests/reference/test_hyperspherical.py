"""Uniformity, coherence and NC5: bounds, limits, invariances, and the formulas as loops."""

from __future__ import annotations

from itertools import combinations
from math import log

import numpy as np
import pytest

from nearest_etf.reference import hyperspherical_uniformity, mutual_coherence, ood_deviation, simplex_etf
from nearest_etf.reference.stiefel import random_point

SIZES = [(2, 2), (3, 2), (5, 8), (10, 4), (40, 6)]


def rows_of(seed: int, K: int, d: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((K, d)) + 3.0


def least_energy(K: int) -> float:
    return -0.5 * log(2 * K / (K - 1))


@pytest.mark.parametrize(("K", "d"), SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_formulas_agree_with_loops(K: int, d: int, seed: int) -> None:
    X = rows_of(seed, K, d)
    v = [(x - X.mean(axis=0)) / np.linalg.norm(x - X.mean(axis=0)) for x in X]
    energies = [log(1 / np.linalg.norm(a - b)) for a, b in combinations(v, 2)]
    assert hyperspherical_uniformity(X) == pytest.approx(np.mean(energies), rel=1e-12)
    assert mutual_coherence(X) == pytest.approx(max(abs(a @ b) for a, b in combinations(v, 2)), rel=1e-12)
    foreign = np.random.default_rng(seed + 9).standard_normal(d)
    cosines = [abs(x @ foreign) / np.linalg.norm(x) / np.linalg.norm(foreign) for x in X]
    assert ood_deviation(X, foreign) == pytest.approx(np.mean(cosines), rel=1e-12)


@pytest.mark.parametrize(("K", "d"), SIZES)
def test_bounds(K: int, d: int) -> None:
    for seed in range(20):
        X = rows_of(seed, K, d)
        assert hyperspherical_uniformity(X) >= least_energy(K) - 1e-12
        centre = np.zeros(d)  # the Welch bound holds for any K directions in d dimensions
        welch = np.sqrt(max(K - d, 0) / (d * (K - 1)))
        assert welch - 1e-12 <= mutual_coherence(X - 3, centre) <= 1.0


@pytest.mark.parametrize("K", [2, 3, 10, 100])
def test_a_simplex_etf_is_the_optimum(K: int) -> None:
    """The value is invariant under rotation into more dimensions, scale and translation."""
    U = random_point(K + 3, K, np.random.default_rng(K))
    X = 7.0 * simplex_etf(K) @ U.T + 2.0
    assert hyperspherical_uniformity(X) == pytest.approx(least_energy(K), abs=1e-12)
    assert mutual_coherence(X) == pytest.approx(1 / (K - 1), abs=1e-12)
    centre = np.full(K + 3, 2.0)
    assert hyperspherical_uniformity(X, centre) == pytest.approx(least_energy(K), abs=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_figures_do_not_depend_on_the_scale(scale: float) -> None:
    X, foreign = rows_of(0, 6, 4), np.arange(4.0)
    assert hyperspherical_uniformity(scale * X) == pytest.approx(hyperspherical_uniformity(X), rel=1e-12)
    assert mutual_coherence(scale * X) == pytest.approx(mutual_coherence(X), rel=1e-12)
    assert ood_deviation(scale * X, foreign / scale) == pytest.approx(ood_deviation(X, foreign), rel=1e-12)


def test_degenerate_rows() -> None:
    equal = [[1.0, 0.0], [2.0, 0.0], [0.0, 5.0]]
    assert hyperspherical_uniformity(equal, [0.0, 0.0]) == np.inf
    assert mutual_coherence(equal, [0.0, 0.0]) == 1.0
    at_centre = [[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]
    coinciding = np.full((3, 2), 0.1)
    for rows in (at_centre, coinciding, np.zeros((3, 2))):
        assert np.isnan(hyperspherical_uniformity(rows))
        assert np.isnan(mutual_coherence(rows))
    assert ood_deviation(equal, [0.0, 0.0]) == 0.0


def test_near_neighbours_keep_their_distance() -> None:
    angle = 1e-9
    rows = [[1.0, 0.0], [np.cos(angle), np.sin(angle)]]
    assert hyperspherical_uniformity(rows, [0.0, 0.0]) == pytest.approx(-log(angle), rel=1e-12)


@pytest.mark.parametrize(
    ("rows", "vector", "message"),
    [
        (np.ones(3), None, r"shape \(3,\); expected \(K, d\)"),
        (np.ones((1, 3)), None, "at least two"),
        (np.ones((2, 3)), np.ones(2), r"centre has shape \(2,\); expected \(3,\)"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), None, "NaN or infinite"),
    ],
)
@pytest.mark.parametrize("measure", [hyperspherical_uniformity, mutual_coherence])
def test_bad_input_is_refused(measure, rows, vector, message) -> None:
    with pytest.raises(ValueError, match=message):
        measure(rows, vector)


def test_ood_deviation_refuses_another_size() -> None:
    with pytest.raises(ValueError, match=r"ood_mean has shape \(2,\); expected \(3,\)"):
        ood_deviation(np.ones((2, 3)), np.ones(2))
