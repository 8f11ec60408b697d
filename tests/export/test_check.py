"""The check passes for a file of its model, and fails for another model or a damaged one."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from nearest_etf.export import (
    Bound,
    CheckError,
    ExportError,
    InputError,
    OnnxClassifier,
    check_onnx,
    export_head_onnx,
)
from nearest_etf.torchport import Classifier, FixedETFHead, ImplicitETFHead

Model = Classifier[ImplicitETFHead]
Images = tuple[np.ndarray, np.ndarray]


@pytest.mark.parametrize("name", ["fp32", "float", "head-fp32", "head-fp64"])
def test_exports_agree_with_pytorch(files: dict[str, Path], model: Model, held_out: Images, name: str) -> None:
    report = check_onnx(model, files[name], *held_out)
    assert report.passed
    assert report.disagreements == 0
    assert report.outputs["logits"].absolute <= 1e-5
    assert report.accuracy_onnx == report.accuracy_torch
    assert report.accuracy_torch is not None
    assert report.accuracy_torch > 0.9


@pytest.mark.parametrize("name", ["fp16", "head-fp16"])
def test_half_precision_agrees_up_to_ties(files: dict[str, Path], model: Model, held_out: Images, name: str) -> None:
    """The label may change if float16 cannot distinguish the two largest logits."""
    images, labels = held_out
    report = check_onnx(model, files[name], images, labels)
    assert report.passed
    assert report.outputs["logits"].absolute <= 2e-2
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.3) / 0.37
    largest = model(pixels).topk(2, dim=1).values
    ties = int((largest[:, 0] - largest[:, 1] <= 4e-2).sum())
    assert report.disagreements <= ties < 0.02 * len(images)


def test_int8_agrees_with_pytorch(files: dict[str, Path], model: Model, held_out: Images) -> None:
    report = check_onnx(model, files["int8"], *held_out)
    assert report.agreement >= 0.99
    assert report.accuracy_onnx is not None
    assert report.accuracy_torch is not None
    assert report.accuracy_torch - report.accuracy_onnx <= 0.005
    assert "same label" in str(report)


def test_the_live_model_is_compared(files: dict[str, Path], model: Model, held_out: Images) -> None:
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.head.bias[0] += 1e-3
    report = check_onnx(changed, files["fp32"], held_out[0])
    assert not report.passed
    assert report.outputs["logits"].absolute == pytest.approx(1e-3, rel=0.02)
    assert model.head.temperature == 12
    assert "allowed is 2.40e-05" in report.failures[0]  # 1e-5 at τ = 5, in proportion
    assert "FAILED" in str(report)


def test_another_normalisation_fails(files: dict[str, Path], model: Model, held_out: Images) -> None:
    assert not check_onnx(model, files["fp32"], held_out[0], mean=[0.31], std=[0.37]).passed


def test_lost_agreement_and_accuracy_fail(files: dict[str, Path], model: Model, held_out: Images) -> None:
    shuffled = copy.deepcopy(model)
    shuffled.head.weight[:2] = model.head.weight[[1, 0]]
    shuffled.head.bias[:2] = model.head.bias[[1, 0]]
    images, labels = held_out
    swapped = np.where(labels < 2, 1 - labels, labels)
    bound = Bound(logits=None, agreement=0.99, accuracy_loss=0.005)
    report = check_onnx(shuffled, files["fp32"], images, swapped, bound=bound)
    assert 0.15 < 1 - report.agreement < 0.25
    assert report.failures[0] == f"{report.disagreements} of 397 images get another label; allowed are 4"
    assert report.failures[1].startswith("accuracy falls by")
    assert report.failures[1].endswith("of 397 images; allowed are 2")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 8, 8, 1)), None, r"dtype float64: expected \(N, H, W, C\) uint8"),
        (np.zeros((2, 8, 8), np.uint8), None, r"shape \(2, 8, 8\)"),
        (np.zeros((0, 8, 8, 1), np.uint8), None, "N > 0"),
        (np.zeros((2, 8, 8, 1), np.uint8), [1], "expected one for each of the 2 images"),
        (np.zeros((2, 8, 8, 3), np.uint8), None, r"images are \(8, 8, 3\): expected \(8, 8, 1\)"),
    ],
)
def test_wrong_images_are_refused(
    files: dict[str, Path], model: Model, images: np.ndarray, labels: list[int] | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_onnx(model, files["fp32"], images, labels)


def test_another_number_of_classes_is_refused(files: dict[str, Path], model: Model, held_out: Images) -> None:
    other = Classifier(model.backbone, FixedETFHead(24, 7))
    with pytest.raises(ExportError, match="10 classes, the model 7"):
        check_onnx(other, files["fp32"], held_out[0])


def test_a_failing_prediction_fails_the_check(
    files: dict[str, Path], model: Model, held_out: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(self: OnnxClassifier, images: np.ndarray, *, batch_size: int) -> None:
        raise InputError("the network's answer is not finite")

    monkeypatch.setattr(OnnxClassifier, "predict", overflow)
    with pytest.raises(
        CheckError, match=r"in fp16, the exported model fails on a batch of 1, where PyTorch does not: .* not finite"
    ):
        check_onnx(model, files["fp16"], held_out[0])


def test_a_model_that_is_not_finite_in_pytorch_is_not_exported(model: Model, held_out: Images, tmp_path: Path) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(broken.backbone.parameters()).fill_(torch.nan)
    with pytest.raises(ExportError, match="PyTorch's own logits are not finite"):
        export_head_onnx(broken, tmp_path / "m.onnx", mean=[0.3], std=[0.37], check_images=held_out[0])
    assert not list(tmp_path.iterdir())
