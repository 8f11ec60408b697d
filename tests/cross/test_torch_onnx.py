"""Exported heads against the formulas: NumPy solves, torch exports, onnxruntime evaluates."""

import numpy as np
import pytest
import torch

import nearest_etf.reference as reference
import nearest_etf.torchport as torchport
from nearest_etf.export import OnnxClassifier, export_head_onnx
from nearest_etf.reference.problems import class_means_of_condition

TAU = 5.0


@pytest.mark.parametrize(("precision", "name"), [("fp32", "logits, ONNX float32"), ("fp64", "logits, ONNX float64")])
def test_frozen_head_agrees_with_the_reference(precision, name, tolerance, tmp_path):
    rng = np.random.default_rng(0)
    d, K = 12, 5
    means = class_means_of_condition(d, K, 10, rng)
    global_mean = rng.standard_normal(d)
    head = torchport.ImplicitETFHead(d, K, TAU)
    head.set_means(torch.tensor(means.T + global_mean).float(), global_mean=torch.tensor(global_mean).float())
    model = torchport.Classifier(torch.nn.Flatten(), head).eval()

    images = rng.integers(0, 256, size=(70, 1, d, 1), dtype=np.uint8)  # the backbone returns the pixels
    path = tmp_path / "head.onnx"
    export_head_onnx(model, path, check_images=images, mean=[0.5], std=[0.25], precision=precision)

    W = reference.nearest_etf(means).classifier
    b = -W @ global_mean
    if precision == "fp64":  # in float64, with the constants of the float32 head
        assert head.weight.numpy() == pytest.approx(W, abs=1e-6)
        W, b = head.weight.double().numpy(), head.bias.double().numpy()
    for batch in (1, 7, 64):
        features = rng.standard_normal((batch, d)).astype(np.float64 if precision == "fp64" else np.float32)
        h = TAU * features / np.linalg.norm(features, axis=1, keepdims=True)
        expected = h.astype(np.float64) @ W.T + b
        prediction = OnnxClassifier(path).predict(features)
        assert np.linalg.norm(prediction.logits - expected) < tolerance(name) * np.linalg.norm(expected)
        assert np.array_equal(prediction.labels, expected.argmax(axis=1))
        cosines = (h @ W.T)[np.arange(batch), prediction.labels] / TAU
        assert prediction.cosines == pytest.approx(cosines, abs=1e-6)


@pytest.mark.parametrize(("precision", "name"), [("fp32", "logits, ONNX float32"), ("fp64", "logits, ONNX float64")])
def test_linear_head_agrees_with_numpy(precision, name, tolerance, tmp_path):
    rng = np.random.default_rng(0)
    d, K = 12, 5
    head = torchport.LinearHead(d, K)
    model = torchport.Classifier(torch.nn.Flatten(), head).eval()
    images = rng.integers(0, 256, size=(70, 1, d, 1), dtype=np.uint8)
    path = tmp_path / "head.onnx"
    export_head_onnx(model, path, check_images=images, mean=[0.5], std=[0.25], precision=precision)

    W, b = (values.detach().double().numpy() for values in (head.weight, head.bias))
    for batch in (1, 7, 64):
        features = 9 * rng.standard_normal((batch, d)).astype(np.float64 if precision == "fp64" else np.float32)
        products = features.astype(np.float64) @ W.T
        prediction = OnnxClassifier(path).predict(features)
        assert np.linalg.norm(prediction.logits - products - b) < tolerance(name) * np.linalg.norm(products + b)
        assert np.array_equal(prediction.labels, (products + b).argmax(axis=1))
        cosines = products / np.outer(np.linalg.norm(features, axis=1), np.linalg.norm(W, axis=1))
        assert prediction.cosines == pytest.approx(cosines[np.arange(batch), prediction.labels], abs=1e-6)
