"""The factor against scipy's minimiser, derivatives against finite differences, and calibrated files and reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from nearest_etf.export import (
    Calibration,
    ExportError,
    InputError,
    OnnxClassifier,
    check_onnx,
    export_head_onnx,
    export_onnx,
    fit_calibration,
)
from nearest_etf.export.calibration import _derivatives, calibration_error
from nearest_etf.torchport import Classifier, ImplicitETFHead

DIGITS: dict[str, Any] = {"mean": [0.3], "std": [0.37]}
Images = tuple[np.ndarray, np.ndarray]


def sampled(N: int, K: int, scale: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from softmax(scale · logits): the best factor is near `scale`."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.standard_normal((N, K)) / scale
    gumbel = rng.gumbel(size=(N, K))
    return logits, np.argmax(scale * logits + gumbel, axis=1)


def nll(logits: np.ndarray, labels: np.ndarray, factor: float) -> float:
    return float(-log_softmax(factor * logits, axis=1)[np.arange(len(labels)), labels].mean())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("K", [2, 10, 200])
@pytest.mark.parametrize("scale", [1e-4, 0.3, 1.0, 7.0, 1e5])
def test_the_factor_minimises_the_loss(scale: float, K: int, seed: int) -> None:
    logits, labels = sampled(300, K, scale, seed)
    found = fit_calibration(logits, labels)
    expected = minimize_scalar(
        lambda s: nll(logits, labels, s), (0.5 * scale, scale), method="brent", options={"xtol": 1e-10}
    )
    assert found.factor == pytest.approx(expected.x, rel=1e-5)
    assert found.nll_after == pytest.approx(expected.fun, rel=1e-12)
    assert found.nll_before == pytest.approx(nll(logits, labels, 1.0), rel=1e-12)
    assert found.nll_after <= found.nll_before
    assert found.factor == pytest.approx(scale, rel=0.25)
    assert not found.bounded


def test_many_images_recover_the_factor_of_their_labels() -> None:
    found = fit_calibration(*sampled(40_000, 5, 2.5, 0))
    assert found.factor == pytest.approx(2.5, rel=0.02)
    assert found.ece_after < 0.01 < 0.1 < found.ece_before


@pytest.mark.parametrize("s", [0.01, 1.0, 20.0])
def test_derivatives_agree_with_finite_differences(s: float) -> None:
    z, labels = sampled(50, 4, 1.0, 1)
    z -= z[np.arange(50), labels][:, None]
    step = 1e-5 * s
    below, above = _derivatives(z, s - step), _derivatives(z, s + step)
    _, slope, curvature = _derivatives(z, s)
    assert slope == pytest.approx((above[0] - below[0]) / (2 * step), rel=1e-6, abs=1e-9)
    assert curvature == pytest.approx((above[1] - below[1]) / (2 * step), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_units_and_shifts_of_logits_do_not_matter(dtype: type) -> None:
    logits, labels = sampled(200, 6, 1.0, 2)
    found = fit_calibration(logits.astype(dtype), labels)
    shifted: np.ndarray = (4 * logits + np.linspace(-3, 3, 200)[:, None]).astype(dtype)
    assert fit_calibration(shifted, labels).factor == pytest.approx(found.factor / 4, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize(("N", "K"), [(1, 2), (1, 10), (40, 3)])
def test_the_factor_is_bounded_if_all_labels_are_correct(N: int, K: int, scale: float) -> None:
    """The loss is that of one guess among N+1 images, log(K)/(N+1)."""
    labels = np.arange(N) % K
    rng = np.random.default_rng(0)
    logits = scale * (rng.random((N, K)) + 2 * np.eye(K)[labels])
    found = fit_calibration(logits, labels)
    assert found.bounded
    assert found.nll_after == pytest.approx(np.log(K) / (N + 1), rel=1e-9)
    assert "factor is bounded" in str(found)
    assert found.ece_after == pytest.approx(1 - softmax(found.factor * logits, axis=1).max(axis=1).mean(), abs=1e-9)


def test_ties_with_the_true_class_give_a_finite_factor() -> None:
    found = fit_calibration([[1.0, 1.0, 0.0], [0.0, 2.0, 0.0]], [0, 1])
    assert found.bounded
    assert 0 < found.factor < 10


def test_one_tiny_error_gives_a_finite_factor() -> None:
    logits = np.array([[9.0, 0.0]] * 50 + [[0.0, 1e-12]])
    found = fit_calibration(logits, np.zeros(51, int))
    assert not found.bounded
    assert found.factor == pytest.approx(np.log(2 * 50 * 9 / 1e-12) / 9, rel=1e-2)


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], [1, 0], ExportError, "on 2 images it is no better than guessing"),
        (np.zeros((3, 4)), [0, 1, 2], ExportError, "no better than guessing"),
        ([[1.0, 0.0]], [2], InputError, r"labels go from 2 to 2: expected 0…1"),
        ([[1.0, 0.0]], [0.0], InputError, "dtype float64: expected .* integers"),
        ([[1.0, 0.0]], [0, 1], InputError, r"shape \(2,\)"),
        ([[1.0]], [0], InputError, r"shape \(1, 1\): expected \(N, K\)"),
        ([[np.nan, 0.0]], [0], InputError, "finite"),
        (np.zeros((0, 3)), np.zeros(0, int), InputError, "N > 0"),
    ],
)
def test_unusable_logits_and_labels_are_refused(
    logits: np.ndarray, labels: np.ndarray, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fit_calibration(logits, labels)


@pytest.mark.parametrize("N", [1, 7, 500])
def test_calibration_error_is_the_formula_of_the_paper(N: int) -> None:
    rng = np.random.default_rng(N)
    p, right = rng.random(N), rng.random(N) < 0.6
    p[:3] = [1.0, 1 / 15, 0.0][: len(p[:3])]
    expected = 0.0
    for m in range(1, 16):
        inside = [n for n in range(N) if (m - 1) / 15 < p[n] <= m / 15 or (m == 1 and p[n] == 0)]
        if inside:
            expected += len(inside) / N * abs(float(np.mean(right[inside]) - np.mean(p[inside])))
    assert calibration_error(p, right) == pytest.approx(expected, abs=1e-12)


@pytest.fixture(scope="module")
def calibration(model: Classifier[ImplicitETFHead], held_out: Images) -> Calibration:
    """Fitted on the held-out digits, in PyTorch."""
    x = (torch.from_numpy(held_out[0]).permute(0, 3, 1, 2).float() / 255 - 0.3) / 0.37
    return fit_calibration(model(x).detach().numpy(), held_out[1])


def test_a_calibrated_file_differs_in_logits_and_probabilities_only(
    model: Classifier[ImplicitETFHead],
    held_out: Images,
    classifier: OnnxClassifier,
    calibration: Calibration,
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.onnx"
    shown: dict[str, Any] = {"check_images": held_out[0], "check_labels": held_out[1]}
    report = export_onnx(model, path, image_shape=(8, 8, 1), **DIGITS, **shown, calibration=calibration)
    assert report.passed
    before, after = classifier.predict(held_out[0]), OnnxClassifier(path).predict(held_out[0])
    np.testing.assert_array_equal(after.labels, before.labels)
    np.testing.assert_array_equal(after.class_cosines, before.class_cosines)
    np.testing.assert_allclose(after.logits, calibration.factor * before.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(after.probabilities, softmax(after.logits, axis=1), atol=1e-6)
    right = before.labels == held_out[1]
    for answer, error in ((before, calibration.ece_before), (after, calibration.ece_after)):
        assert calibration_error(answer.probabilities.max(axis=1), right) == pytest.approx(error, abs=1e-4)
    sidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert sidecar["calibration"] == calibration.to_dict()
    assert sidecar["calibration"]["factor"] == calibration.factor
    assert check_onnx(model, path, *held_out).passed


def test_the_check_fails_for_another_factor(
    model: Classifier[ImplicitETFHead], held_out: Images, calibration: Calibration, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    export_head_onnx(model, path, **DIGITS, check_images=held_out[0], calibration=calibration)
    graph = onnx.load(path)
    entry = next(tensor for tensor in graph.graph.initializer if tensor.name == "factor")
    entry.CopyFrom(onnx.numpy_helper.from_array(np.float32(1.01 * calibration.factor), "factor"))
    onnx.save(graph, path)
    path.with_suffix(".json").unlink()
    with pytest.warns(UserWarning, match="no sidecar"):
        report = check_onnx(model, path, *held_out)
    assert "a logit is off by" in report.failures[0]


@pytest.mark.parametrize("precision", ["fp16", "fp64"])
def test_heads_in_other_precisions_accept_a_plain_number(
    model: Classifier[ImplicitETFHead], held_out: Images, tmp_path: Path, precision: Any
) -> None:
    path = tmp_path / "head.onnx"
    how: dict[str, Any] = {**DIGITS, "check_images": held_out[0], "precision": precision}
    assert export_head_onnx(model, path, **how, calibration=0.5).passed
    found = OnnxClassifier(path)
    assert found.metadata["calibration"] == {"factor": 0.5}
    assert found.predict(np.ones((2, 24), found.input_dtype)).logits.dtype == found.input_dtype


@pytest.mark.parametrize("factor", [0.0, -1.0, np.inf, np.nan, True, "2"])
def test_a_factor_is_a_positive_number(
    model: Classifier[ImplicitETFHead], held_out: Images, tmp_path: Path, factor: Any
) -> None:
    with pytest.raises(ExportError, match=r"calibration is .*: expected a positive number, or what fit_calibration"):
        export_head_onnx(model, tmp_path / "m.onnx", **DIGITS, check_images=held_out[0], calibration=factor)
    assert not list(tmp_path.iterdir())
