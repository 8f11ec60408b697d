"""OOD scores: against loops and scikit-learn, limits at collapse, invariances, ties and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from nearest_etf.reference import (
    auroc,
    class_subspace,
    energy_score,
    fpr95,
    max_logit_score,
    max_softmax_score,
    nci_score,
    neco_score,
    principal_subspace,
    simplex_etf,
)
from nearest_etf.reference.ood import acceptance_threshold
from nearest_etf.reference.stiefel import random_point


def problem(seed: int, N: int = 30, K: int = 5, d: int = 9):
    rng = np.random.default_rng(seed)
    X, W, b = rng.standard_normal((N, d)) + 1.0, rng.standard_normal((K, d)), rng.standard_normal(K)
    return X, W, b, rng.standard_normal(d)


@pytest.mark.parametrize("seed", range(3))
def test_formulas_agree_with_loops(seed: int) -> None:
    X, W, b, mean = problem(seed)
    V = random_point(9, 3, np.random.default_rng(seed))
    for i, x in enumerate(X):
        logits = [w @ x + c for w, c in zip(W, b, strict=True)]
        p = np.exp(logits) / np.exp(logits).sum()
        z = x - mean
        c = int(np.argmax(logits))
        assert max_softmax_score(X, W, b)[i] == pytest.approx(p.max(), rel=1e-12)
        assert max_logit_score(X, W, b)[i] == pytest.approx(max(logits), rel=1e-12)
        assert energy_score(X, W, b, 2.0)[i] == pytest.approx(2 * np.log(np.exp(np.array(logits) / 2).sum()), rel=1e-12)
        assert neco_score(X, V, mean)[i] == pytest.approx(np.linalg.norm(V.T @ z) / np.linalg.norm(z), rel=1e-12)
        expected = W[c] @ z / np.linalg.norm(z) + 0.3 * np.abs(x).sum()
        assert nci_score(X, W, b, global_mean=mean, norm_weight=0.3)[i] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("K", [2, 3, 10])
@pytest.mark.parametrize("seed", range(3))
def test_at_full_collapse(K: int, seed: int) -> None:
    """Features at the vertices, W the same ETF: NECO and NCI are 1, and features orthogonal to the ETF score 0."""
    rng = np.random.default_rng(seed)
    frame = random_point(K + 2, K + 2, rng)
    etf, mean = simplex_etf(K) @ frame[:, :K].T, rng.standard_normal(K + 2)
    X = 4.0 * etf[np.arange(5 * K) % K] + mean
    bias = -etf @ mean
    foreign = mean + np.outer(rng.standard_normal(6), frame[:, K])
    for V in (class_subspace(X[:K]), class_subspace(etf), principal_subspace(X, K - 1)):
        assert V.shape == (K + 2, K - 1)
        np.testing.assert_allclose(V.T @ V, np.eye(K - 1), atol=1e-12)
        np.testing.assert_allclose(neco_score(X, V, mean), 1.0, atol=1e-12)
        np.testing.assert_allclose(neco_score(foreign, V, mean), 0.0, atol=1e-12)
    np.testing.assert_allclose(nci_score(X, etf, bias, global_mean=mean), 1.0, atol=1e-12)
    np.testing.assert_allclose(nci_score(foreign, etf, bias, global_mean=mean), 0.0, atol=1e-12)
    largest = 1 / (1 + (K - 1) * np.exp(-4 * K / (K - 1)))
    np.testing.assert_allclose(max_softmax_score(X, etf, bias), largest, rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_invariances(seed: int) -> None:
    X, W, b, mean = problem(seed)
    Q = random_point(9, 9, np.random.default_rng(seed))
    V, nci = class_subspace(W), nci_score(X, W, b, global_mean=mean)
    rotated = class_subspace(W @ Q)
    np.testing.assert_allclose(rotated @ rotated.T, Q.T @ V @ V.T @ Q, atol=1e-12)
    neco = neco_score(X, V, mean)
    np.testing.assert_allclose(neco_score(X @ Q, rotated, mean @ Q), neco, rtol=1e-12)
    np.testing.assert_allclose(nci_score(X @ Q, W @ Q, b, global_mean=mean @ Q), nci, rtol=1e-10)
    both = [nci_score(X @ q, W @ q, b, global_mean=mean @ q, norm_weight=1, order=2) for q in (np.eye(9), Q)]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-10)
    of_axes = [nci_score(X @ q, W @ q, b, global_mean=mean @ q, norm_weight=1, order=1) for q in (np.eye(9), Q)]
    assert np.abs(of_axes[0] - of_axes[1]).max() > 0.1
    for scale in (1e-180, 1e180):
        np.testing.assert_allclose(neco_score(scale * X, V, scale * mean), neco, rtol=1e-12)
    np.testing.assert_allclose(nci_score(1e9 * X, W, 1e9 * b, global_mean=1e9 * mean), nci, rtol=1e-10)
    moved = max_softmax_score(X, W, b + 7), energy_score(X, W, b + 7)  # a common shift of the logits
    np.testing.assert_allclose(moved[0], max_softmax_score(X, W, b), rtol=1e-10)
    np.testing.assert_allclose(moved[1], energy_score(X, W, b) + 7, rtol=1e-10)


def test_energy_tends_to_the_largest_logit_and_large_logits_do_not_overflow() -> None:
    X, W, b, _ = problem(0)
    np.testing.assert_allclose(energy_score(X, W, b, 1e-4), max_logit_score(X, W, b), atol=1e-3)
    assert np.isfinite(energy_score(1e300 * X, W, b)).all()
    assert (max_softmax_score(1e300 * X, W, b) == 1.0).all()


def test_principal_components_are_those_of_scikit_learn() -> None:
    X = problem(1, N=40)[0]
    V, theirs = principal_subspace(X, 4), PCA(4).fit(X).components_.T
    np.testing.assert_allclose(V @ V.T, theirs @ theirs.T, atol=1e-12)


def test_degenerate_features() -> None:
    X, W, b, mean = problem(2)
    X[0] = mean
    assert neco_score(X, class_subspace(W), mean)[0] == 0.0
    assert nci_score(X, W, b, global_mean=mean)[0] == 0.0
    np.testing.assert_allclose(neco_score(X[1:], np.eye(9), mean), 1.0)  # the subspace is the whole space
    assert class_subspace(W[[0, 0, 1]]).shape == (9, 1)
    for rows in (np.ones((3, 2)), np.full((3, 2), 0.1), np.zeros((3, 2)), np.ones((1, 4))):
        with pytest.raises(ValueError, match="all rows coincide"):
            class_subspace(rows)


scores = st.lists(st.integers(-4, 4), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(inside=scores, outside=scores)
def test_auroc_is_the_share_of_pairs_and_agrees_with_scikit_learn(inside: list[int], outside: list[int]) -> None:
    a, b = np.array(inside), np.array(outside)
    pairs = (a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean()
    assert auroc(a, b) == pytest.approx(pairs, abs=1e-12)
    labels = np.r_[np.ones(len(a)), np.zeros(len(b))]
    assert auroc(a, b) == pytest.approx(roc_auc_score(labels, np.r_[a, b]), abs=1e-12)
    assert auroc(b, a) == pytest.approx(1 - auroc(a, b), abs=1e-12)
    assert auroc(np.exp(a), np.exp(b)) == pytest.approx(auroc(a, b), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(inside=scores, outside=scores)
def test_fpr95_agrees_with_a_search_over_thresholds(inside: list[int], outside: list[int]) -> None:
    a, b = np.array(inside), np.array(outside)
    thresholds = [t for t in a if 100 * np.sum(a >= t) >= 95 * len(a)]
    assert fpr95(a, b) == np.mean(b >= max(thresholds))


@settings(max_examples=60, deadline=None)
@given(inside=scores, percent=st.integers(1, 100))
def test_acceptance_threshold_agrees_with_a_search(inside: list[int], percent: int) -> None:
    a = np.array(inside)
    thresholds = [t for t in a if 100 * np.sum(a >= t) >= percent * len(a)]
    assert acceptance_threshold(a, percent / 100) == max(thresholds)


def test_perfect_chance_and_infinite_scores() -> None:
    assert (auroc([2, 3], [0, 1]), fpr95([2, 3], [0, 1])) == (1.0, 0.0)
    assert (auroc([1, 1], [1, 1]), fpr95([1, 1], [1, 1])) == (0.5, 1.0)
    assert auroc([np.inf, 0.0], [-np.inf]) == 1.0


X, W, B, MEAN = problem(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: max_softmax_score(X, W[:, :4]), r"features \(30, 9\) and weight \(5, 4\)"),
        (lambda: max_softmax_score(X, W.T), r"pass weight.T"),
        (lambda: energy_score(X, W, B[:2]), r"bias: shape \(2,\); expected \(5,\)"),
        (lambda: energy_score(X, W, B, 0.0), "temperature = 0.0"),
        (lambda: max_logit_score(np.where(X > 2, np.nan, X), W), "features: .* NaN or infinite"),
        (lambda: nci_score(X, W, B, global_mean=MEAN[:3]), r"global_mean: shape \(3,\)"),
        (lambda: nci_score(X, W, B, global_mean=MEAN, order=0.5), "order = 0.5"),
        (lambda: neco_score(X, np.eye(4)), r"subspace has shape \(4, 4\); expected \(9, r\)"),
        (lambda: neco_score(X, W.T), "not orthonormal"),
        (lambda: principal_subspace(X, 10), r"rank = 10; expected 1…9"),
        (lambda: auroc([], [1.0]), "scores_in"),
        (lambda: auroc([1.0], [np.nan]), "scores_out"),
        (lambda: acceptance_threshold([1.0], 0.0), r"share = 0.0; expected a number in \(0, 1\]"),
        (lambda: acceptance_threshold([1.0], 1.5), "share = 1.5"),
        (lambda: acceptance_threshold([]), "scores_in"),
        (lambda: fpr95([[1.0]], [1.0]), r"scores_in: shape \(1, 1\)"),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
