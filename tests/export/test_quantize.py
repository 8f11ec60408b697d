"""Lower precision applies to the backbone only."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from torch import nn

from nearest_etf.export import ExportError, export_onnx
from nearest_etf.export.freeze import freeze
from nearest_etf.export.graph import head_model
from nearest_etf.export.quantize import to_int8
from nearest_etf.torchport import Classifier, ImplicitETFHead, LearnedHead

Model = Classifier[ImplicitETFHead]


def test_only_the_backbone_is_float16(files: dict[str, Path]) -> None:
    graph = onnx.load(files["fp16"]).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {kinds[name] for name in kinds if name.startswith("backbone/") and "weight" in name} == {TensorProto.FLOAT16}
    assert {kinds[name] for name in ("weight", "bias", "scale", "shift")} == {TensorProto.FLOAT}
    assert {value.type.tensor_type.elem_type for value in graph.output} == {TensorProto.FLOAT, TensorProto.INT64}
    assert files["fp16"].stat().st_size < 0.75 * files["fp32"].stat().st_size


def test_only_convolutions_are_int8(files: dict[str, Path]) -> None:
    graph = onnx.load(files["int8"]).graph
    made_by = {node.output[0]: node for node in graph.node}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    counts = Counter(node.op_type for node in graph.node)
    assert counts["Conv"] == 2
    for node in graph.node:
        sources = [made_by[name].op_type for name in node.input if name in made_by]
        if node.op_type == "Conv":
            assert sources == ["DequantizeLinear"] * 3
            weight, scales, _ = made_by[node.input[1]].input
            assert constants[weight].dtype == np.int8
            assert constants[scales].shape == constants[weight].shape[:1], "one scale per output channel"
        elif node.op_type == "MatMul":
            assert "DequantizeLinear" not in sources
    zero_points = [constants[node.input[2]].dtype for node in graph.node if node.op_type == "QuantizeLinear"]
    assert set(zero_points) == {np.dtype(np.uint8)}


def test_int8_needs_convolutions() -> None:
    model = Classifier(nn.Flatten(), LearnedHead(8, 3))
    with pytest.raises(ExportError, match="this backbone has none"):
        to_int8(head_model(freeze(model), np.float32), np.zeros((4, 8), np.uint8))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "pass calibration_images"),
        (np.zeros((4, 9, 9, 1), np.uint8), r"calibration_images are \(4, 9, 9, 1\)"),
        (np.zeros((0, 8, 8, 1), np.uint8), "N > 0"),
    ],
)
def test_int8_needs_calibration_images(model: Model, tmp_path: Path, images: np.ndarray | None, message: str) -> None:
    digits: dict[str, Any] = {"image_shape": (8, 8, 1), "mean": [0.3], "std": [0.37]}
    with pytest.raises(ExportError, match=message):
        export_onnx(model, tmp_path / "model.onnx", **digits, precision="int8", calibration_images=images)
    assert not list(tmp_path.iterdir())
