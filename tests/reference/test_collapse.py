"""The metrics against theory: exact values at collapse, invariances, degenerate data."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import ortho_group

from nearest_etf.reference import NeuralCollapse, canonical_etf, neural_collapse

Array = NDArray[np.float64]
Data = tuple[Array, NDArray[np.int64], Array, Array]


def random_data(seed: int, num_classes: int = 4, num_features: int = 6, size: int = 60) -> Data:
    """Features, labels (every class present), W and b."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(size) % num_classes)
    centres = 3 + rng.standard_normal((num_classes, num_features))
    features = centres[labels] + 0.5 * rng.standard_normal((size, num_features))
    return (
        features,
        labels,
        rng.standard_normal((num_classes, num_features)),
        rng.standard_normal(num_classes),
    )


def figures(measured: NeuralCollapse) -> Array:
    """All figures as one vector."""
    return np.array([value for value in asdict(measured).values() if isinstance(value, float)])


@pytest.mark.parametrize(("num_classes", "num_features"), [(2, 1), (4, 3), (4, 9), (10, 32)])
def test_exact_values_at_collapse(num_classes: int, num_features: int) -> None:
    rng = np.random.default_rng(0)
    rotation = ortho_group.rvs(num_features, random_state=0) if num_features > 1 else np.eye(1)
    etf = (rotation @ canonical_etf(num_features, num_classes)).T
    labels = rng.permutation(np.arange(7 * num_classes) % num_classes)
    features = 3 * etf[labels] + 1.0  # off the origin
    measured = neural_collapse(features, labels, etf, -etf @ np.ones(num_features))

    ideal = num_classes / (num_classes - 1)
    exact = replace(measured, cosine_margin=measured.cosine_margin - ideal, numerical_rank=measured.numerical_rank - 1)
    np.testing.assert_allclose(figures(exact), 0.0, atol=1e-7)
    assert measured.nc1 < 1e-28
    assert measured.margin_histogram.sum() == len(labels)
    assert measured.margin_histogram.max() == len(labels)


def test_formulas_on_two_classes_by_hand() -> None:
    features = np.array([[-2.0, 0.0], [0.0, 0.0], [2.0, 1.0], [2.0, -1.0]])  # means (−1, 0), (2, 0); μ_G = (½, 0)
    labels = np.array([0, 0, 1, 1])
    weight, bias = np.array([[-1.0, 0.0], [1.0, 0.0]]), np.array([1.0, 0.0])
    measured = neural_collapse(features, labels, weight, bias)
    # Σ_W = diag(½, ½), Σ_B = diag(9/4, 0).
    assert measured.nc1 == pytest.approx(0.5 / 2.25 / 2)
    assert measured.variability_collapse == pytest.approx(1 - 2.25 / 2.75)
    assert measured.cdnv == pytest.approx((1 + 1) / (2 * 9))
    assert measured.bias_offset == pytest.approx(math.hypot(0.5, 0.5))
    # Sample (0, 0) has no ties: the mean (−1, 0) is nearer, and the logits are (1, 0).
    assert measured.nc4 == 0.0
    cosine = 1.5 / math.hypot(1.5, 1.0)
    assert measured.cosine_margin == pytest.approx((2 + 2 + 4 * cosine) / 4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(1e-3, 1e3))
def test_invariances(seed: int, scale: float) -> None:
    features, labels, weight, bias = random_data(seed)
    expected = neural_collapse(features, labels, weight, bias)
    rotation = ortho_group.rvs(features.shape[1], random_state=seed)
    rotated = neural_collapse(features @ rotation, labels, weight @ rotation, bias)
    np.testing.assert_allclose(figures(rotated), figures(expected), rtol=1e-8, atol=1e-12)

    scaled = neural_collapse(scale * features, labels, weight, scale * bias)
    np.testing.assert_allclose(
        figures(replace(scaled, bias_offset=scaled.bias_offset / scale)),
        figures(expected),
        rtol=1e-8,
        atol=1e-12,
    )
    enlarged = neural_collapse(features, labels, scale * weight, scale * bias)
    np.testing.assert_allclose(
        figures(replace(enlarged, bias_offset=enlarged.bias_offset / scale)), figures(expected), rtol=1e-8
    )

    order = np.random.default_rng(seed).permutation(len(weight))
    permuted = neural_collapse(features, np.argsort(order)[labels], weight[order], bias[order])
    np.testing.assert_allclose(figures(permuted), figures(expected), rtol=1e-8, atol=1e-12)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    reordered = neural_collapse(features[shuffled], labels[shuffled], weight, bias)
    np.testing.assert_allclose(figures(reordered), figures(expected), rtol=1e-8, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), exponent=st.floats(-12, 2), num_classes=st.integers(2, 7))
def test_nc1_is_never_negative(seed: int, exponent: float, num_classes: int) -> None:
    features, labels, weight, _ = random_data(seed, num_classes, num_features=4)
    means = np.stack([features[labels == c].mean(0) for c in range(num_classes)])
    nearly = means[labels] + 10**exponent * (features - means[labels])
    measured = neural_collapse(nearly, labels, weight)
    assert 0.0 <= measured.nc1 < np.inf
    assert 0.0 <= measured.variability_collapse <= 1.0
    assert measured.cdnv >= 0.0


def test_an_absent_class_is_left_out() -> None:
    features, labels, weight, _ = random_data(0, num_classes=3)
    measured = neural_collapse(features, np.array([0, 2, 3])[labels], np.insert(weight, 1, 1.0, axis=0))
    expected = neural_collapse(features, labels, weight)
    for name in (
        "nc1",
        "nc2_means",
        "nc3",
        "equinorm_means",
        "etf_distance_means",
        "etf_distance_between",
        "cdnv",
    ):
        assert getattr(measured, name) == pytest.approx(getattr(expected, name), rel=1e-12), name


def test_single_samples_have_no_spread() -> None:
    weight = random_data(1)[2]
    measured = neural_collapse(np.random.default_rng(1).standard_normal((4, 6)), np.arange(4), weight)
    assert (measured.nc1, measured.cdnv) == (0.0, 0.0)
    assert measured.numerical_rank == pytest.approx(1.0)


def test_coincident_class_means() -> None:
    weight = np.eye(2, 3)
    measured = neural_collapse(np.full((10, 3), 0.1), np.arange(10) % 2, weight)
    assert (measured.nc1, measured.cdnv, measured.variability_collapse) == (np.inf, np.inf, 1.0)
    assert (measured.nc2_means, measured.nc3) == pytest.approx((1.0, 1.0))
    assert math.isnan(measured.equinorm_means)
    assert math.isnan(measured.etf_distance_between)


def test_more_classes_than_dimensions() -> None:
    measured = neural_collapse(*random_data(2, num_classes=8, num_features=3, size=80))
    assert measured.nc1 > 0
    assert math.isnan(measured.etf_distance_weight)
    assert math.isnan(measured.etf_distance_means)
    assert measured.nc2_means > 0.5  # eight equiangular vectors do not fit into three dimensions


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"features": np.zeros((8, 5))}, "expected \\(N, d\\) and \\(K, d\\)"),
        ({"features": np.zeros((6, 8))}, "pass features.T"),
        ({"weight": np.zeros((6, 4))}, "pass weight.T"),
        ({"labels": np.zeros(7, int)}, "expected integers \\(8,\\)"),
        ({"labels": np.linspace(0, 1, 8)}, "expected integers"),
        ({"labels": np.arange(8)}, "span 0…7; expected 0…3"),
        ({"labels": np.zeros(8, int)}, "1 class"),
        ({"features": np.full((8, 6), np.nan)}, "features contains 48 NaN"),
        ({"weight": np.zeros((4, 6))}, "weight is zero"),
        ({"bias": np.zeros(3)}, "bias has shape"),
    ],
)
def test_bad_input_is_named(changed: dict[str, Array], message: str) -> None:
    features, labels, weight, bias = random_data(0, size=8)
    given: dict[str, Any] = {"features": features, "labels": labels, "weight": weight, "bias": bias}
    with pytest.raises(ValueError, match=message):
        neural_collapse(**(given | changed))


@pytest.mark.parametrize("of_features", [1e-150, 1e-30, 1e30, 1e150, 1e200])
@pytest.mark.parametrize("of_weight", [1e-100, 1.0, 1e100])
def test_metrics_do_not_depend_on_the_scale_of_features_and_weight(of_features: float, of_weight: float) -> None:
    features, labels, W, b = random_data(3)
    expected = neural_collapse(features, labels, W)
    measured = neural_collapse(of_features * features, labels, of_weight * W)
    np.testing.assert_allclose(measured.bias_offset / of_features / of_weight, expected.bias_offset, rtol=1e-12)
    np.testing.assert_allclose(
        figures(replace(measured, bias_offset=0.0)), figures(replace(expected, bias_offset=0.0)), rtol=1e-9, atol=1e-14
    )
    with_bias = neural_collapse(of_features * features, labels, W, of_features * b)
    assert with_bias.nc4 == neural_collapse(features, labels, W, b).nc4


def test_a_bias_that_dominates_all_logits_is_refused() -> None:
    features, labels, W, _ = random_data(3)
    with pytest.raises(ValueError, match="bias outweighs"):
        neural_collapse(1e-200 * features, labels, 1e-200 * W, np.ones(4))
