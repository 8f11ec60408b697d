"""Distances as OOD scores: against loops and scikit-learn, invariances, degenerate features and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import EmpiricalCovariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from nearest_etf.reference import class_gaussians, mahalanobis_score, nearest_neighbour_score
from nearest_etf.reference.ood_distance import BLOCK
from nearest_etf.reference.stiefel import random_point


def problem(seed: int, N: int = 40, M: int = 90, K: int = 4, d: int = 7):
    """Features to score (N, d), training features (M, d) with correlated entries, and labels (M,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(M) % K
    mixing = rng.standard_normal((d, d))
    T = 3 * rng.standard_normal((K, d))[labels] + rng.standard_normal((M, d)) @ mixing
    return 3 * rng.standard_normal((N, d)), T, labels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("K", "d"), [(2, 3), (4, 7), (12, 5)])
def test_mahalanobis_agrees_with_scikit_learn(seed: int, K: int, d: int) -> None:
    X, T, y = problem(seed, K=K, d=d)
    means, covariance = class_gaussians(T, y, K)
    fitted = EmpiricalCovariance(assume_centered=True).fit(T - means[y])
    np.testing.assert_allclose(covariance, fitted.covariance_, rtol=1e-12)
    expected = -np.stack([fitted.mahalanobis(X - mean) for mean in means]).min(axis=0)
    np.testing.assert_allclose(mahalanobis_score(X, means, covariance), expected, rtol=1e-9)
    analysis = LinearDiscriminantAnalysis("lsqr", priors=np.full(K, 1 / K), store_covariance=True).fit(T, y)
    if np.ptp(np.bincount(y)) == 0:  # with equal priors and class sizes, its covariance is the shared one
        np.testing.assert_allclose(covariance, analysis.covariance_, rtol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_mahalanobis_agrees_with_loops(seed: int) -> None:
    X, T, y = problem(seed)
    means, covariance = class_gaussians(T, y, 4)
    sigma = np.zeros((7, 7))
    for x, c in zip(T, y, strict=True):
        sigma += np.outer(x - T[y == c].mean(axis=0), x - T[y == c].mean(axis=0)) / len(T)
    np.testing.assert_allclose(covariance, sigma, rtol=1e-12)
    inverse = np.linalg.inv(sigma)
    found = mahalanobis_score(X, means, covariance)
    for i, x in enumerate(X):
        assert found[i] == pytest.approx(max(-(x - m) @ inverse @ (x - m) for m in means), rel=1e-9)


@pytest.mark.parametrize("k", [1, 5, 90])
@pytest.mark.parametrize("seed", range(3))
def test_neighbours_agree_with_scikit_learn(seed: int, k: int) -> None:
    X, T, _ = problem(seed)
    fitted = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(normalize(T))
    expected = -fitted.kneighbors(normalize(X))[0][:, -1]
    np.testing.assert_allclose(nearest_neighbour_score(X, T, k), expected, rtol=1e-7)
    for i in range(5):
        distances = sorted(np.linalg.norm(X[i] / np.linalg.norm(X[i]) - t / np.linalg.norm(t)) for t in T)
        assert nearest_neighbour_score(X, T, k)[i] == pytest.approx(-distances[k - 1], rel=1e-12)


def test_scores_do_not_depend_on_the_blocks() -> None:
    X, T, _ = problem(0, N=2 * BLOCK + 3)
    whole = nearest_neighbour_score(X, T, 4)
    np.testing.assert_array_equal(whole[-3:], nearest_neighbour_score(X[-3:], T, 4))
    assert whole.shape == (2 * BLOCK + 3,)


@pytest.mark.parametrize("seed", range(3))
def test_invariances(seed: int) -> None:
    X, T, y = problem(seed)
    rng = np.random.default_rng(seed)
    A, shift, Q = rng.standard_normal((7, 7)), rng.standard_normal(7), random_point(7, 7, rng)
    score = mahalanobis_score(X, *class_gaussians(T, y, 4))
    np.testing.assert_allclose(
        mahalanobis_score(X @ A + shift, *class_gaussians(T @ A + shift, y, 4)), score, rtol=1e-6
    )
    near = nearest_neighbour_score(X, T, 5)
    scales = rng.uniform(0.1, 9.0, (len(X), 1))
    np.testing.assert_allclose(nearest_neighbour_score(scales * X @ Q, 7 * T @ Q, 5), near, rtol=1e-9)
    assert nearest_neighbour_score(1e200 * X, 1e-200 * T, 5) == pytest.approx(near, rel=1e-12)


def test_degenerate_features() -> None:
    X, T, y = problem(1)
    dead, other = np.pad(T, ((0, 0), (0, 1))), np.pad(X, ((0, 0), (0, 1)), constant_values=5.0)
    score = mahalanobis_score(X, *class_gaussians(T, y, 4))
    np.testing.assert_allclose(mahalanobis_score(other, *class_gaussians(dead, y, 4)), score, rtol=1e-9)
    doubled = mahalanobis_score(np.hstack([X, X]), *class_gaussians(np.hstack([T, T]), y, 4))  # Σ of rank d of 2d
    np.testing.assert_allclose(doubled, score, rtol=1e-6)
    means, covariance = class_gaussians(T, y, 4)
    np.testing.assert_allclose(mahalanobis_score(means, means, covariance), 0.0, atol=1e-12)
    assert nearest_neighbour_score(T, T, 1).max() <= 0.0
    np.testing.assert_allclose(nearest_neighbour_score(T, T, 1), 0.0, atol=1e-12)
    assert nearest_neighbour_score(np.zeros((1, 7)), T, 1)[0] == pytest.approx(-1.0)  # of length 0, not 1


X, T, Y = problem(2)
MEANS, COVARIANCE = class_gaussians(T, Y, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: class_gaussians(T, Y[:3], 4), r"labels have shape \(3,\) .* expected 90 integers"),
        (lambda: class_gaussians(T, Y.astype(float), 4), "float64; expected 90 integers"),
        (lambda: class_gaussians(T, Y, 3), r"labels are in 0…3; expected 0…2"),
        (lambda: class_gaussians(T, Y, 6), "class 4 has no sample"),
        (lambda: class_gaussians(np.where(T > 5, np.nan, T), Y, 4), "features: .* NaN"),
        (lambda: mahalanobis_score(X[:, :3], MEANS, COVARIANCE), r"class_mean_rows \(4, 7\).* expected \(K, 3\)"),
        (lambda: mahalanobis_score(X, MEANS, COVARIANCE[:3]), r"covariance \(3, 7\)"),
        (lambda: mahalanobis_score(X, MEANS, np.triu(COVARIANCE)), "not symmetric"),
        (lambda: mahalanobis_score(X, MEANS, 0 * COVARIANCE), "covariance is zero"),
        (lambda: nearest_neighbour_score(X[:, :3], T), r"features \(40, 3\) and training_features \(90, 7\)"),
        (lambda: nearest_neighbour_score(X, T, 91), r"k = 91; expected 1…90"),
        (lambda: nearest_neighbour_score(X, T, 0), "k = 0"),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
