"""Writing of files and sidecars: contents, reproducible bytes, options, and no files after a failure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from nearest_etf.export import (
    Bound,
    CheckError,
    ExportError,
    ModelFileError,
    OnnxClassifier,
    export_head_onnx,
    export_onnx,
)
from nearest_etf.export.check import BOUNDS
from nearest_etf.torchport import Classifier, FixedETFHead, ImplicitETFHead, LearnedHead
from nearest_etf.torchport.training.backbones.resnet import ResNet
from nearest_etf.torchport.training.backbones.small import MLP, SmallCNN
from nearest_etf.torchport.training.backbones.vgg import VGG

Model = Classifier[ImplicitETFHead]
DIGITS: dict[str, Any] = {"image_shape": (8, 8, 1), "mean": [0.3], "std": [0.37]}


def test_same_model_gives_the_same_bytes(
    files: dict[str, Path], model: Model, held_out: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    again = tmp_path / "again.onnx"
    export_onnx(model, again, **DIGITS, check_images=held_out[0], check_labels=held_out[1])
    assert again.read_bytes() == files["fp32"].read_bytes()
    assert again.with_suffix(".json").read_bytes() == files["fp32"].with_suffix(".json").read_bytes()


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "float", "head-fp64"])
def test_the_sidecar_has_the_checksum_of_the_file(files: dict[str, Path], name: str) -> None:
    sidecar = json.loads(files[name].with_suffix(".json").read_text(encoding="utf-8"))
    assert sidecar["sha256"] == hashlib.sha256(files[name].read_bytes()).hexdigest()
    assert sidecar["check"]["passed"]
    classifier = OnnxClassifier(files[name])
    assert classifier.verified
    assert {key: sidecar[key] for key in classifier.metadata} == classifier.metadata
    leftovers = {path.suffix for path in files[name].parent.iterdir()} - {".onnx", ".json"}
    assert not leftovers


@pytest.mark.parametrize("name", ["fp16", "float"])
def test_layouts_and_input_types_agree(
    files: dict[str, Path], classifier: OnnxClassifier, held_out: tuple[np.ndarray, np.ndarray], name: str
) -> None:
    other = OnnxClassifier(files[name], threads=1)
    x = held_out[0].transpose(0, 3, 1, 2)
    if name == "float":
        x = ((x / 255 - 0.3) / 0.37).astype(np.float32)
    np.testing.assert_allclose(other.predict(x).logits, classifier.predict(held_out[0]).logits, atol=2e-2)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: SmallCNN(3, 16, signed=True), (8, 8, 3)),
        (lambda: MLP((6, 5, 1), 16), (6, 5, 1)),
        (lambda: ResNet("resnet18", 3, width=2), (16, 16, 3)),
        (lambda: VGG("vgg11", 3, width=2), (32, 32, 3)),
    ],
    ids=["small-cnn", "mlp", "resnet18", "vgg11"],
)
def test_every_family_exports(make: Callable[[], Any], shape: tuple[int, int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = make()
    kind = LearnedHead if shape[2] == 3 else FixedETFHead
    channels = shape[2]
    report = export_onnx(
        Classifier(backbone, kind(backbone.num_features, 5, temperature=5.0)),
        tmp_path / "model.onnx",
        image_shape=shape,
        mean=[0.4, 0.5, 0.6][:channels],
        std=[0.2, 0.25, 0.3][:channels],
    )
    assert report.passed
    assert report.outputs["logits"].absolute <= 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision is 'int4': expected one of fp32, fp16, int8"),
        ({"layout": "HWC"}, "layout is 'HWC'"),
        ({"image_shape": (8, 8)}, r"image_shape is \(8, 8\)"),
        ({"mean": [0.1, 0.2]}, r"mean is \[0.1, 0.2\]: expected 1"),
        ({"std": [0.0]}, r"std is \[0.0\]: expected positive"),
        ({"class_names": ["one"]}, "class_names has 1 names, but the model has 10 classes"),
        ({"precision": "int8", "float_input": True}, "cannot go with float_input"),
        ({"opset": 17}, "opset is 17: expected 18 to 25"),
        ({"opset": 26}, "opset is 26: expected 18 to 25"),
    ],
)
def test_contradictory_options_are_refused(model: Model, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_onnx(model, tmp_path / "model.onnx", **{**DIGITS, **options})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("taken.onnx", "taken.onnx exists"),
        ("sidecar.onnx", "sidecar.json exists"),
        ("folder.onnx", "is a folder"),
        ("nowhere/model.onnx", "nowhere is not a folder"),
        ("taken.onnx/model.onnx", "taken.onnx is not a folder"),
        ("model.pt", "does not end in .onnx"),
    ],
)
def test_unwritable_targets_are_refused(model: Model, tmp_path: Path, target: str, message: str) -> None:
    (tmp_path / "taken.onnx").write_text("mine")
    (tmp_path / "sidecar.json").write_text("mine")
    (tmp_path / "folder.onnx").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelFileError, match=message):
        export_onnx(model, tmp_path / target, **DIGITS)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "taken.onnx").read_text() == "mine"


@pytest.mark.parametrize(("opset", "precision"), [(21, "int8"), (23, "fp16"), (25, "fp32")])
def test_other_opsets(
    model: Model, digits: tuple[np.ndarray, np.ndarray], tmp_path: Path, opset: int, precision: Any
) -> None:
    path, images = tmp_path / "model.onnx", digits[0]
    shown: dict[str, Any] = {"check_images": images[1400:], "calibration_images": images[:256]}
    assert export_onnx(model, path, **DIGITS, **shown, precision=precision, opset=opset).passed
    assert {entry.version for entry in onnx.load(path).opset_import if not entry.domain} == {opset}


@pytest.mark.parametrize("opset", [17, 18, 25])
def test_heads_of_other_opsets(
    model: Model, held_out: tuple[np.ndarray, np.ndarray], tmp_path: Path, opset: int
) -> None:
    path = tmp_path / "head.onnx"
    options: dict[str, Any] = {"check_images": held_out[0], "mean": [0.3], "std": [0.37]}
    assert export_head_onnx(model, path, **options, opset=opset).passed
    assert [entry.version for entry in onnx.load(path).opset_import] == [opset]
    with pytest.raises(ExportError, match="opset is 12: expected 13 to 25"):
        export_head_onnx(model, path, **options, opset=12, overwrite=True)


def test_existing_files_are_replaced_only_with_overwrite(
    model: Model, held_out: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    options: dict[str, Any] = {"check_images": held_out[0], "mean": [0.3], "std": [0.37]}
    export_head_onnx(model, path, **options)
    with pytest.raises(ModelFileError, match="exists"):
        export_head_onnx(model, path, **options)
    export_head_onnx(model, path, **options, precision="fp16", overwrite=True)
    assert OnnxClassifier(path).metadata["precision"] == "fp16"


def test_an_exceeded_bound_leaves_no_file(
    model: Model, held_out: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BOUNDS, "fp16", Bound(logits=1e-9, agreement=1.0))
    allowed = 1e-9 * model.head.temperature / 5
    with pytest.raises(CheckError, match=rf"was not written: in fp16, a logit is off by .*; allowed is {allowed:.2e}"):
        export_head_onnx(
            model, tmp_path / "model.onnx", check_images=held_out[0], mean=[0.3], std=[0.37], precision="fp16"
        )
    assert not list(tmp_path.iterdir())


def test_a_failing_disk_leaves_no_file(
    model: Model, held_out: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ModelFileError, match="No space left"):
        export_head_onnx(model, tmp_path / "model.onnx", check_images=held_out[0], mean=[0.3], std=[0.37])
    assert not list(tmp_path.iterdir())
