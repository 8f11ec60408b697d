"""The contents of the graph, and the head's arithmetic at the limits of each floating-point type."""

from __future__ import annotations

import getpass
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import nn

from nearest_etf.export import OnnxClassifier, Prediction
from nearest_etf.export.freeze import Frozen, freeze
from nearest_etf.export.graph import DTYPES, head_model, seal
from nearest_etf.torchport import Classifier, Head, ImplicitETFHead, LinearHead

Model = Classifier[ImplicitETFHead]
HEAD_METADATA = {
    "format": 1,
    "class_names": ["a", "b", "c", "d"],
    "precision": "fp32",
    "input": {"name": "features", "layout": "NF", "shape": [16]},
}


def small(backbone: nn.Module, head: Head | None = None) -> Frozen:
    return freeze(Classifier(backbone, ImplicitETFHead(16, 4, temperature=5.0) if head is None else head))


def answers(frozen: Frozen, features: np.ndarray) -> Prediction:
    """The prediction of a file with only the head, in the type of the features."""
    metadata = {**HEAD_METADATA, "input": {**HEAD_METADATA["input"], "dtype": features.dtype.name}}  # type: ignore[dict-item]
    graph = head_model(frozen, features.dtype.type)
    return OnnxClassifier.from_bytes(seal(graph, metadata), threads=1).predict(features)


@pytest.mark.parametrize(
    ("name", "opset", "ir_version"),
    [("fp32", 18, 8), ("fp16", 18, 8), ("int8", 18, 8), ("float", 18, 8), ("head-fp16", 13, 7), ("head-fp64", 13, 7)],
)
def test_versions_and_interface(files: dict[str, Path], name: str, opset: int, ir_version: int) -> None:
    model = onnx.load(files[name])
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == opset
    assert model.ir_version == ir_version
    batch = [model.graph.input[0], *model.graph.output]
    assert {value.type.tensor_type.shape.dim[0].dim_param for value in batch} == {"N"}
    assert [value.name for value in model.graph.output] == ["logits", "probabilities", "label", "cosine"]


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "float", "head-fp32"])
def test_no_path_of_the_exporting_machine_is_left(files: dict[str, Path], name: str) -> None:
    data = files[name].read_bytes()
    private = ["site-packages", ".py", "Traceback", "def forward", "pkg.torch", os.getcwd(), str(Path.home())]
    private += [getpass.getuser()] if len(getpass.getuser()) > 4 else []
    assert [text for text in private if text.encode() in data] == []
    model = onnx.load(files[name])
    assert all(not node.doc_string and not node.metadata_props for node in model.graph.node)
    assert [entry.key for entry in model.metadata_props] == ["nearest_etf"]


def test_batch_norm_is_folded_and_the_head_is_bit_exact(files: dict[str, Path], model: Model) -> None:
    graph = onnx.load(files["fp32"]).graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    np.testing.assert_array_equal(constants["weight"].T, model.head.weight.numpy())
    np.testing.assert_array_equal(constants["bias"], model.head.bias.numpy())


@pytest.mark.parametrize("precision", ["fp16", "fp32", "fp64"])
@pytest.mark.parametrize("scale", ["tiny", "one", "huge", "zero"])
def test_the_head_is_exact_at_the_limits_of_its_type(precision: str, scale: str) -> None:
    """Squares in float16 overflow above 255 and underflow below 2⁻¹²; in float32 they underflow below 1e-22."""
    dtype = DTYPES[precision]
    info = np.finfo(dtype)
    factor = {"tiny": 32 * float(info.tiny), "one": 1.0, "huge": float(info.max) / 8, "zero": 0.0}[scale]
    rng = np.random.default_rng(0)
    direction = rng.uniform(0.25, 1, (5, 16)) * rng.choice([-1, 1], (5, 16))
    frozen = small(nn.Flatten())
    frozen.bias[:] = [0.5, 0, -0.5, 0.25]
    answer = answers(frozen, (factor * direction).astype(dtype))

    h = 5 * direction / np.linalg.norm(direction, axis=1, keepdims=True) if factor else 0 * direction
    logits = h @ frozen.weight.T + frozen.bias
    tolerance = 40 * float(info.eps)
    np.testing.assert_allclose(answer.logits, logits, rtol=0, atol=tolerance)
    norms = np.linalg.norm(frozen.weight.astype(np.float64), axis=1)  # one, up to rounding
    cosines = ((logits - frozen.bias) / (5 * norms))[np.arange(5), answer.labels]
    np.testing.assert_allclose(answer.cosines, cosines, rtol=0, atol=tolerance)
    np.testing.assert_allclose(answer.probabilities.sum(1), 1, atol=tolerance)


@pytest.mark.parametrize("precision", ["fp16", "fp32", "fp64"])
@pytest.mark.parametrize("scale", ["tiny", "one", "huge", "zero"])
def test_the_linear_head_is_exact_at_the_limits_of_its_type(precision: str, scale: str) -> None:
    """Logits of features without normalisation, and the cosine without overflow or underflow of squares."""
    dtype = DTYPES[precision]
    info = np.finfo(dtype)
    factor = {"tiny": 32 * float(info.tiny), "one": 1.0, "huge": float(info.max) / 16, "zero": 0.0}[scale]
    rng = np.random.default_rng(0)
    direction = (rng.uniform(0.25, 1, (5, 16)) * rng.choice([-1, 1], (5, 16))).astype(dtype)
    frozen = small(nn.Flatten(), LinearHead(16, 4))
    frozen.weight[:] = rng.uniform(-0.5, 0.5, (4, 16)).astype(dtype)
    frozen.bias[:] = [0.5, 0, -0.5, 0.25] if factor in (0.0, 1.0) else 0
    answer = answers(frozen, (factor * direction).astype(dtype))

    x, W = direction.astype(np.float64), frozen.weight.astype(np.float64)
    logits = (x @ W.T if factor else 0) + frozen.bias  # over the factor
    tolerance = 40 * float(info.eps)
    np.testing.assert_allclose(answer.logits / (factor or 1), np.broadcast_to(logits, (5, 4)), rtol=0, atol=tolerance)
    lengths = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(W, axis=1)
    cosines = (x @ W.T / lengths)[np.arange(5), answer.labels] if factor else np.zeros(5)
    np.testing.assert_allclose(answer.cosines, cosines, rtol=0, atol=tolerance)


@pytest.mark.parametrize("precision", ["fp16", "fp32", "fp64"])
def test_a_row_of_zeros_has_the_cosine_zero(precision: str) -> None:
    frozen = small(nn.Flatten(), LinearHead(16, 4))
    frozen.weight[2] = 0
    frozen.bias[:] = [0, 0, 100, 0]
    answer = answers(frozen, np.ones((3, 16), DTYPES[precision]))
    assert answer.labels.tolist() == [2, 2, 2]
    assert answer.cosines.tolist() == [0, 0, 0]


def test_metadata_is_complete(files: dict[str, Path]) -> None:
    properties = onnx.load(files["int8"]).metadata_props
    found = json.loads(properties[0].value)
    assert found["input"] == {"name": "images", "dtype": "uint8", "layout": "NHWC", "shape": [8, 8, 1]}
    assert found["preprocessing"]["mean"] == [0.3]
    assert found["precision"] == "int8"
    assert found["head"]["temperature"] == 12.0
    assert found["head"]["kind"] == "implicit"
    assert found["certificate"]["etf_error"] < 1e-6
    assert found["certificate"]["row_norm_error"] < 1e-6
    assert found["certificate"]["certificate_gap"] < 1e-4
    assert set(found["versions"]) == {"nearest-etf", "torch", "onnx", "onnxscript", "onnxruntime"}
