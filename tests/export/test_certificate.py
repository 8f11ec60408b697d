"""The certificate is zero at the nearest ETF or tight frame, and agrees with the solver elsewhere."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from nearest_etf.export import ExportError
from nearest_etf.export.certificate import REMEDIES, etf_bound, etf_certificate, require_kind
from nearest_etf.reference import FrameGeometry, etf_error, frame_geometry, nearest_etf, nearest_tight_frame

GEOMETRY = set(FrameGeometry.__dataclass_fields__)


@pytest.mark.parametrize(("d", "K"), [(12, 5), (5, 5), (4, 5), (3, 2)])
def test_zero_at_the_nearest_etf(d: int, K: int) -> None:
    H = np.random.default_rng(d).standard_normal((d, K))
    W = nearest_etf(H, method="svd", formulation="gauge-free").classifier
    certificate = etf_certificate(W, 7 * H)
    bounds = {name: certificate.pop(name) for name in ("cosine_bound", "welch_bound", "largest_absolute_cosine")}
    assert certificate.pop("largest_cosine") == pytest.approx(bounds["cosine_bound"]) == pytest.approx(-1 / (K - 1))
    assert max(certificate.values()) < 1e-6
    assert certificate["certificate_gap"] > -1e-12


@pytest.mark.parametrize(("d", "K"), [(2, 4), (4, 9), (7, 9), (16, 200)])
def test_zero_at_the_nearest_tight_frame(d: int, K: int) -> None:
    """For K > d+1, where no simplex ETF exists: tightness, gap and distance to the class means are zero, NC2 is not."""
    H = np.random.default_rng(d).standard_normal((d, K))
    W = nearest_tight_frame(H, norms="tight").classifier
    certificate = etf_certificate(W, 7 * H)
    for name in ("tightness_error", "class_means_distance", "certificate_gap"):
        assert abs(certificate[name]) < 1e-12, name
    assert "etf_distance" not in certificate
    assert certificate["cosine_bound"] == 0 <= certificate["largest_cosine"]
    assert certificate["welch_bound"] == pytest.approx(np.sqrt((K - d) / (d * (K - 1))))
    assert certificate["etf_error"] == pytest.approx(etf_error(W), rel=1e-12)
    other = nearest_tight_frame(np.random.default_rng(99).standard_normal((d, K)), norms="tight")
    elsewhere = etf_certificate(other.classifier, H)
    assert elsewhere["certificate_gap"] > 0.01
    H = (H - H.mean(1, keepdims=True)) / np.linalg.norm(H - H.mean(1, keepdims=True))
    assert elsewhere["certificate_gap"] == pytest.approx(1 - np.vdot(other.frame, H) / np.linalg.norm(H, "nuc"))


def test_the_geometry_of_the_frame_is_the_reference_s() -> None:
    W = np.random.default_rng(0).standard_normal((30, 6))
    certificate = etf_certificate(W, W.T)
    geometry = frame_geometry(W)
    assert {name: certificate[name] for name in GEOMETRY} == {name: getattr(geometry, name) for name in GEOMETRY}
    assert "certificate_gap" not in certificate, "it is defined only for tight frames"


def test_gap_and_distance_of_another_classifier() -> None:
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
    assert set(certificate) == {"etf_error", "row_norm_error", "etf_distance", *GEOMETRY}
    assert certificate["row_norm_error"] == 1
    assert certificate["etf_error"] > 0.5


def test_a_classifier_of_zeros_or_of_too_many_rows_has_no_nearest_etf() -> None:
    assert etf_certificate(np.zeros((4, 9))) == {"row_norm_error": 1}
    assert set(etf_certificate(np.eye(9, 4))) == {"row_norm_error", "etf_error", *GEOMETRY}


def random_etf(d: int, K: int) -> np.ndarray:
    H = np.random.default_rng(d + K).standard_normal((d, K))
    return nearest_etf(H, method="svd", formulation="gauge-free").classifier


def rounded(W: np.ndarray, digits: int) -> np.ndarray:
    """W rounded to so many binary digits, as in a type with machine epsilon 2^(1−digits)."""
    fraction, exponent = np.frexp(W)
    return np.ldexp(np.round(fraction * 2.0**digits), exponent - digits)


@pytest.mark.parametrize(("d", "K"), [(2, 2), (2, 3), (9, 10), (64, 10), (99, 100)])
@pytest.mark.parametrize("digits", [8, 11, 24])
@pytest.mark.parametrize("kind", sorted(REMEDIES))
def test_an_etf_passes_in_every_precision(d: int, K: int, digits: int, kind: str) -> None:
    W, eps = rounded(random_etf(d, K), digits), 2.0 ** (1 - digits)
    assert etf_error(W) <= eps  # the rounding term of the bound
    require_kind(W, kind, "unit", eps)


@pytest.mark.parametrize(("d", "K"), [(2, 4), (6, 40), (64, 100)])
@pytest.mark.parametrize("digits", [8, 11, 24])
@pytest.mark.parametrize("norms", ["unit", "tight", "equal"])
def test_a_tight_frame_passes_in_every_precision(
    d: int, K: int, digits: int, norms: Literal["unit", "tight", "equal"]
) -> None:
    H = np.random.default_rng(K).standard_normal((d, K))
    W = nearest_tight_frame(H, method="svd", norms=norms).classifier
    require_kind(rounded(W, digits), "tight-frame", norms, 2.0 ** (1 - digits))


def test_the_bound_distinguishes_rounding_from_averaging() -> None:
    """The loosest frame that a method accepts passes; an average of two ETFs five degrees apart does not."""
    d, K = 32, 10
    rng = np.random.default_rng(0)
    frame = np.linalg.qr(rng.standard_normal((d, K)))[0]
    loose = rng.standard_normal((K, K))
    frame = frame @ (np.eye(K) + 0.5e3 * 2**-23 * np.sqrt(K) * (loose + loose.T) / np.linalg.norm(loose + loose.T))
    assert np.linalg.norm(frame.T @ frame - np.eye(K)) == pytest.approx(1e3 * 2**-23 * np.sqrt(K), rel=1e-3)
    W = np.sqrt(K / (K - 1)) * (frame - frame.mean(1, keepdims=True)).T
    require_kind(W, "implicit", None, 2.0**-23)

    W = random_etf(d, K)
    skew = rng.standard_normal((d, d))
    left, _, right = np.linalg.svd(np.eye(d) + 0.01 * (skew - skew.T))
    rotation = left @ right
    average = 0.5 * (W + W @ rotation)
    assert np.rad2deg(np.arccos(np.vdot(W, W @ rotation) / K)) < 5
    with pytest.raises(ExportError, match=r"etf_error .* expected at most 2.0e-04"):
        require_kind(average, "implicit", None, 2.0**-23)


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [("implicit", r"call head.refresh\(\)"), ("fixed", "load its weight from"), ("tight-frame", r"head.refresh\(\)")],
)
def test_a_classifier_that_is_not_an_etf_is_refused_with_a_remedy(kind: str, remedy: str) -> None:
    average = 0.5 * (random_etf(12, 5) + random_etf(12, 5)[::-1])
    with pytest.raises(
        ExportError, match=rf"the {kind} head's classifier is not a simplex ETF.*: .*{remedy}"
    ) as caught:
        require_kind(average, kind, "unit", 2.0**-23)
    assert f"etf_error {etf_error(average):.1e}" in str(caught.value)
    assert f"at most {etf_bound(2.0**-23):.1e}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("W", [0.5 * random_etf(3, 2), np.zeros((2, 3))])
def test_two_opposite_rows_that_are_too_short_are_refused(W: np.ndarray) -> None:
    """For two classes, any opposite rows are an ETF up to their length."""
    with pytest.raises(ExportError, match=rf"rows of length {np.linalg.norm(W[0]):.4f}"):
        require_kind(W, "implicit", None, 2.0**-23)


@pytest.mark.parametrize(
    ("kind", "norms", "fault"),
    [
        ("tight-frame", "tight", r"is not a tight frame: tightness_error \d\.\de-02 and rows of length"),
        ("tight-frame", "unit", r"has rows of length 0\.\d+; expected 1 to within 2\.0e-04"),
        ("tight-frame", "equal", r"has rows of length 0\.\d+; expected 1"),
        ("class-mean", None, r"has rows of length 0\.\d+; expected 1"),
    ],
)
def test_an_average_for_many_classes_is_refused(kind: str, norms: str | None, fault: str) -> None:
    rng = np.random.default_rng(0)
    frames = [nearest_tight_frame(rng.standard_normal((4, 20)), method="svd").frame for _ in range(2)]
    average = np.sqrt(20 / 4) * (0.9 * frames[0] + 0.1 * frames[1]).T
    if norms != "tight":
        average = 0.9 * average / np.linalg.norm(average, axis=1, keepdims=True)
        average[3] /= np.linalg.norm(average[3])
    with pytest.raises(ExportError, match=rf"the {kind} head's classifier {fault}.*head.refresh\(\)"):
        require_kind(average, kind, norms, 2.0**-23)
    require_kind(average, "pinned", norms, 2.0**-23)  # other kinds of heads may have any W


def test_a_row_of_zeros_has_no_direction_and_passes() -> None:
    """The row of an unseen class, or of one whose mean is the global mean, is zero."""
    W = np.vstack([np.eye(3), [[0.6, 0.8, 0.0]], np.zeros((2, 3))])
    require_kind(W, "class-mean", None, 2.0**-23)
    require_kind(np.zeros((6, 3)), "class-mean", None, 2.0**-23)
    with pytest.raises(ExportError, match="is not a tight frame: tightness_error inf"):
        require_kind(np.zeros((6, 3)), "tight-frame", "tight", 2.0**-23)
