"""The certificate is zero for what it certifies, and agrees with the solver elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from nearest_etf.export.certificate import etf_certificate
from nearest_etf.reference import nearest_etf


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
