"""The certificate is zero for what it certifies, and agrees with the solver elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from nearest_etf.export import ExportError
from nearest_etf.export.certificate import REMEDIES, etf_bound, etf_certificate, require_etf
from nearest_etf.reference import etf_error, nearest_etf


@pytest.mark.parametrize(("d", "K"), [(12, 5), (5, 5), (4, 5), (3, 2)])
def test_zero_at_the_nearest_etf(d: int, K: int) -> None:
    H = np.random.default_rng(d).standard_normal((d, K))
    W = nearest_etf(H, method="svd", formulation="gauge-free").classifier
    certificate = etf_certificate(W, 7 * H)
    assert max(certificate.values()) < 1e-6
    assert certificate["certificate_gap"] > -1e-12


def test_measures_how_far_another_classifier_is() -> None:
    rng = np.random.default_rng(0)
    H = rng.standard_normal((12, 5))
    elsewhere = nearest_etf(rng.standard_normal((12, 5)), method="svd")
    certificate = etf_certificate(elsewhere.classifier, H)
    H = (H - H.mean(1, keepdims=True)) / np.linalg.norm(H)
    nuclear = np.linalg.svd(H, compute_uv=False).sum()
    assert certificate["certificate_gap"] == pytest.approx(1 - np.vdot(elsewhere.frame, H) / nuclear)
    assert certificate["class_means_distance"] > 0.1
    assert certificate["etf_error"] < 1e-12


def test_a_learned_classifier_without_class_means() -> None:
    certificate = etf_certificate(2 * np.eye(4, 9))
    assert set(certificate) == {"etf_error", "row_norm_error", "etf_distance"}
    assert certificate["row_norm_error"] == 1
    assert certificate["etf_error"] > 0.5


def test_a_classifier_of_zeros_or_of_too_many_rows_has_no_nearest_etf() -> None:
    assert etf_certificate(np.zeros((4, 9))) == {"row_norm_error": 1}
    assert set(etf_certificate(np.eye(9, 4))) == {"row_norm_error", "etf_error"}


def random_etf(d: int, K: int) -> np.ndarray:
    H = np.random.default_rng(d + K).standard_normal((d, K))
    return nearest_etf(H, method="svd", formulation="gauge-free").classifier


def rounded(W: np.ndarray, digits: int) -> np.ndarray:
    """W with so many binary digits, as a type of machine epsilon 2^(1−digits) holds it."""
    fraction, exponent = np.frexp(W)
    return np.ldexp(np.round(fraction * 2.0**digits), exponent - digits)


@pytest.mark.parametrize(("d", "K"), [(2, 2), (2, 3), (9, 10), (64, 10), (99, 100)])
@pytest.mark.parametrize("digits", [8, 11, 24])
@pytest.mark.parametrize("kind", sorted(REMEDIES))
def test_an_etf_passes_in_every_precision(d: int, K: int, digits: int, kind: str) -> None:
    W, eps = rounded(random_etf(d, K), digits), 2.0 ** (1 - digits)
    assert etf_error(W) <= eps  # what the bound adds to the solver's own
    require_etf(W, kind, eps)


def test_the_bound_tells_rounding_from_averaging() -> None:
    """The loosest frame that a method accepts passes; an average of two ETFs five degrees apart does not."""
    d, K = 32, 10
    rng = np.random.default_rng(0)
    frame = np.linalg.qr(rng.standard_normal((d, K)))[0]
    loose = rng.standard_normal((K, K))
    frame = frame @ (np.eye(K) + 0.5e3 * 2**-23 * np.sqrt(K) * (loose + loose.T) / np.linalg.norm(loose + loose.T))
    assert np.linalg.norm(frame.T @ frame - np.eye(K)) == pytest.approx(1e3 * 2**-23 * np.sqrt(K), rel=1e-3)
    W = np.sqrt(K / (K - 1)) * (frame - frame.mean(1, keepdims=True)).T
    require_etf(W, "implicit", 2.0**-23)

    W = random_etf(d, K)
    skew = rng.standard_normal((d, d))
    left, _, right = np.linalg.svd(np.eye(d) + 0.01 * (skew - skew.T))
    rotation = left @ right
    average = 0.5 * (W + W @ rotation)
    assert np.rad2deg(np.arccos(np.vdot(W, W @ rotation) / K)) < 5
    with pytest.raises(ExportError, match=r"etf_error .* expected at most 2.0e-04"):
        require_etf(average, "implicit", 2.0**-23)


@pytest.mark.parametrize(
    ("kind", "remedy"), [("implicit", r"call head.refresh\(\)"), ("fixed", "load its weight from")]
)
def test_what_is_no_etf_is_refused_in_one_line_with_a_remedy(kind: str, remedy: str) -> None:
    average = 0.5 * (random_etf(12, 5) + random_etf(12, 5)[::-1])
    with pytest.raises(ExportError, match=rf"the {kind} head's classifier is no simplex ETF.*: {remedy}") as caught:
        require_etf(average, kind, 2.0**-23)
    assert f"etf_error {etf_error(average):.1e}" in str(caught.value)
    assert f"at most {etf_bound(2.0**-23):.1e}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("W", [0.5 * random_etf(3, 2), np.zeros((2, 3))])
def test_two_opposite_rows_that_are_too_short_are_refused(W: np.ndarray) -> None:
    """Of two classes any opposite rows are an ETF but for their length."""
    with pytest.raises(ExportError, match=rf"rows of length {np.linalg.norm(W[0]):.4f}"):
        require_etf(W, "implicit", 2.0**-23)
