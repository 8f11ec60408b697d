"""A new file is opened in a child process, and a crash of the child becomes an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from nearest_etf.export import OnnxClassifier, convert, export_head_onnx, export_onnx
from nearest_etf.export.quantize import KEPT
from nearest_etf.export.trial import TrialError, open_apart
from nearest_etf.torchport import Classifier, ImplicitETFHead, LearnedHead

OPTIONS: dict[str, Any] = {"image_shape": (8, 8, 3), "mean": [0.5] * 3, "std": [0.25] * 3}
OPEN_WITH_DEFAULTS = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(None, {session.get_inputs()[0].name: numpy.zeros((3, 8, 8, 3), numpy.uint8)})
"""


class Transformer(nn.Module):
    """Patches and a class token through one layer of attention, as in a ViT."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 4, 4)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, dim))
        layer = nn.TransformerEncoderLayer(dim, 4, 2 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)  # (N, 4, dim)
        return self.encoder(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1))[:, 0]


@pytest.fixture(scope="module")
def transformer() -> Classifier[LearnedHead]:
    torch.manual_seed(0)
    return Classifier(Transformer(), LearnedHead(16, 3, temperature=5.0)).eval()


def killing_python(tmp_path: Path) -> Path:
    """An interpreter that crashes at once."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -SEGV $$\n")
    python.chmod(0o755)
    return python


@pytest.mark.usefixtures("apart")
def test_attention_in_fp16_opens_with_default_options(transformer: Classifier[LearnedHead], tmp_path: Path) -> None:
    """onnxruntime 1.32 crashes on it unless a part stays in float32."""
    path = tmp_path / "model.onnx"
    report = export_onnx(transformer, path, **OPTIONS, precision="fp16")
    assert report.passed
    subprocess.run([sys.executable, "-c", OPEN_WITH_DEFAULTS, str(path)], check=True)
    assert OnnxClassifier(path).metadata["kept_in_fp32"] in (None, KEPT[1])
    weights = [tensor for tensor in onnx.load(path).graph.initializer if tensor.name.startswith("backbone/")]
    half = [tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in weights if len(tensor.dims) > 1]
    assert len(half) >= 5
    assert all(half)


@pytest.mark.parametrize("failing", [1, 2])
def test_as_little_as_possible_stays_in_float32(
    transformer: Classifier[LearnedHead], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    seen = []

    def open_here(data: bytes, precision: str) -> None:
        seen.append(precision)
        if 1 < len(seen) <= 1 + failing:
            raise TrialError("dies")

    monkeypatch.setattr(convert, "open_apart", open_here)
    path = tmp_path / "model.onnx"
    report = export_onnx(transformer, path, **OPTIONS, precision="fp16")
    assert report.passed
    assert f"note: {KEPT[failing]} stays in float32" in str(report)
    assert seen == ["fp32"] + ["fp16"] * (1 + failing)
    assert OnnxClassifier(path).metadata["kept_in_fp32"] == KEPT[failing]
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert {"Cast", "Softmax", "MatMul"} <= kinds


def test_a_crash_with_every_part_in_float32_is_refused_and_leaves_no_file(
    transformer: Classifier[LearnedHead], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_here(data: bytes, precision: str) -> None:
        if precision == "fp16":
            raise TrialError("onnxruntime crashes on this model in fp16")

    monkeypatch.setattr(convert, "open_apart", open_here)
    with pytest.raises(TrialError, match="crashes on this model in fp16"):
        export_onnx(transformer, tmp_path / "model.onnx", **OPTIONS, precision="fp16")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("apart")
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_crash_is_named_and_leaves_no_file(
    model: Classifier[ImplicitETFHead], held_out: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(killing_python(tmp_path)))
    (tmp_path / "folder").mkdir()
    how: dict[str, Any] = {"check_images": held_out[0], "mean": [0.3], "std": [0.37]}
    with pytest.raises(TrialError, match=r"onnxruntime 1\.\S+ crashes on this model in fp32.*\(SIGSEGV\)") as raised:
        export_head_onnx(model, tmp_path / "folder" / "model.onnx", **how)
    assert raised.value.exit_status == 2
    assert not list((tmp_path / "folder").iterdir())


def test_a_missing_interpreter_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(Exception, match="Python cannot be started to test the file"):
        open_apart(b"", "fp32")


def test_a_damaged_model_is_refused_without_codes_of_onnxruntime(files: dict[str, Path]) -> None:
    with pytest.raises(TrialError, match=r"the model in fp32 does not run in onnxruntime \S+: \w") as raised:
        open_apart(files["fp32"].read_bytes()[:1000], "fp32")
    assert "ONNXRuntimeError" not in str(raised.value)


def test_the_child_imports_what_this_process_imports(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working folder and PYTHONPATH do not matter."""
    (tmp_path / "numpy.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    open_apart(files["fp32"].read_bytes(), "fp32")


def test_an_output_that_is_not_finite_is_not_an_error_here(files: dict[str, Path]) -> None:
    graph = onnx.load(files["fp32"])
    bias = next(tensor for tensor in graph.graph.initializer if tensor.name == "bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(10, np.nan, np.float32), "bias"))
    open_apart(graph.SerializeToString(), "fp32")
