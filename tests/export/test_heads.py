"""Every kind of head is exported under its kind, and refused if its W lacks the structure of that kind."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nearest_etf.export import ExportError, OnnxClassifier, check_onnx, export_head_onnx, export_onnx
from nearest_etf.export.etf_predict import main as predict
from nearest_etf.reference import FrameGeometry
from nearest_etf.torchport import (
    Classifier,
    ClassMeanHead,
    FixedETFHead,
    Head,
    ImplicitETFHead,
    LearnedHead,
    LinearHead,
    TightFrameHead,
)

Images = tuple[np.ndarray, np.ndarray]
DIGITS: dict[str, Any] = {"image_shape": (8, 8, 1), "mean": [0.3], "std": [0.37]}
GEOMETRY = set(FrameGeometry.__dataclass_fields__)


class Plain(nn.Module):
    """A backbone and an `nn.Linear`, without any class of this project."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.backbone(images))
        return logits


def normalised(images: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.3) / 0.37


@pytest.fixture(scope="module", params=["LinearHead", "nn.Linear"])
def linear(request: pytest.FixtureRequest, model: Classifier[ImplicitETFHead], digits: Images) -> nn.Module:
    """A linear head, fitted to the digits' raw features, on the trained backbone."""
    torch.manual_seed(0)
    head = LinearHead(24, 10) if request.param == "LinearHead" else nn.Linear(24, 10)
    labels = torch.from_numpy(digits[1][:1400])
    with torch.no_grad():
        features = model.backbone(normalised(digits[0][:1400]))
    optimizer = torch.optim.Adam(head.parameters(), 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features), labels).backward()
        optimizer.step()
    made = Classifier(model.backbone, head) if isinstance(head, Head) else Plain(model.backbone, head)
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_linear_head_is_exported_checked_and_predicts(
    linear: nn.Module,
    digits: Images,
    held_out: Images,
    precision: Literal["fp32", "fp16", "int8"],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "model.onnx"
    shown: dict[str, Any] = {"check_images": held_out[0], "check_labels": held_out[1]}
    export_onnx(linear, path, **DIGITS, **shown, precision=precision, calibration_images=digits[0][:256])
    report = check_onnx(linear, path, *held_out)
    assert report.passed
    assert report.accuracy_torch is not None
    assert report.accuracy_torch > 0.9
    found = OnnxClassifier(path, threads=1)
    assert (found.metadata["head"]["kind"], found.metadata["head"]["temperature"]) == ("linear", None)
    assert found.metadata["format"] == 1, "version 0.1.0 can read it"
    assert set(found.metadata["certificate"]) == {"etf_error", "row_norm_error", "etf_distance", *GEOMETRY}
    assert found.metadata["certificate"]["etf_error"] > 0.1

    answer = found.predict(held_out[0])
    features, weight = linear.get_submodule("backbone")(normalised(held_out[0])), linear.get_submodule("head").weight
    assert isinstance(weight, torch.Tensor)
    expected = torch.cosine_similarity(features, weight[answer.labels]).numpy()
    np.testing.assert_allclose(answer.cosines, expected, atol={"fp32": 1e-5, "fp16": 1e-2, "int8": 0.15}[precision])

    Image.fromarray(held_out[0][0, ..., 0]).save(tmp_path / "a.png")
    assert predict([str(path), str(tmp_path / "a.png"), "--format", "json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert row["label"] == answer.labels[0]
    assert row["cosine"] == pytest.approx(float(answer.cosines[0]), abs=1e-4)


def test_a_linear_graph_has_no_normalisation(linear: nn.Module, tmp_path: Path) -> None:
    export_onnx(linear, tmp_path / "model.onnx", **DIGITS)
    graph = onnx.load(tmp_path / "model.onnx").graph
    product = next(node for node in graph.node if node.name == "scores")
    assert list(product.input) == ["backbone/features", "weight"]
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert "temperature" not in constants
    head = linear.get_submodule("head")
    np.testing.assert_array_equal(constants["weight"].T, head.weight)  # type: ignore[arg-type]
    np.testing.assert_array_equal(constants["bias"], head.bias)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp16", "fp32", "fp64"])
def test_a_linear_head_alone(
    linear: nn.Module, held_out: Images, precision: Literal["fp16", "fp32", "fp64"], tmp_path: Path
) -> None:
    path = tmp_path / "head.onnx"
    export_head_onnx(linear, path, check_images=held_out[0], mean=[0.3], std=[0.37], precision=precision)
    assert check_onnx(linear, path, held_out[0]).passed


def test_the_bound_of_a_linear_head_grows_with_the_size_of_its_products(
    linear: nn.Module, held_out: Images, tmp_path: Path
) -> None:
    """Features a hundred times as long pass in float32, and a difference above its rounding fails."""
    longer = copy.deepcopy(linear)
    longer.backbone = nn.Sequential(longer.get_submodule("backbone"), Hundredfold())
    path = tmp_path / "model.onnx"
    export_onnx(longer, path, **DIGITS, check_images=held_out[0])
    head = longer.get_submodule("head")
    weight, bias = head.weight, head.bias
    assert isinstance(weight, torch.Tensor)
    assert isinstance(bias, torch.Tensor)
    features = longer.backbone(normalised(held_out[0]))
    allowed = 1e-5 * float(features.norm(dim=1).max() * weight.norm(dim=1).max()) / 5
    assert allowed > 1e-3
    bias[0] += 2 * allowed
    report = check_onnx(longer, path, held_out[0])
    assert not report.passed
    assert f"allowed is {allowed:.2e}" in report.failures[0]


class Hundredfold(nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return 100 * features


@pytest.mark.parametrize(
    "head",
    [
        *(FixedETFHead(24, 10, initial="random"), FixedETFHead(24, 10), FixedETFHead(24, 25)),
        *(ImplicitETFHead(24, 10, initial="random"), ImplicitETFHead(24, 2), ImplicitETFHead(24, 10).bfloat16()),
        *(ImplicitETFHead(24, 25, formulation="gauge-free"), LearnedHead(24, 10), LearnedHead(24, 60)),
        *(LearnedHead(24, 10, "learned"), LinearHead(24, 60), LinearHead(24, 10).half()),
        *(ClassMeanHead(24, 10), ClassMeanHead(24, 60), TightFrameHead(24, 10), TightFrameHead(24, 25, norms="tight")),
        *(TightFrameHead(24, 60, norms=norms, initial="random") for norms in ("unit", "tight", "equal")),
    ],
    ids=lambda head: f"{head.kind}-{head.num_classes}",
)
def test_every_head_exports_before_its_first_step(
    head: Head, model: Classifier[ImplicitETFHead], tmp_path: Path
) -> None:
    report = export_onnx(Classifier(model.backbone, head), tmp_path / "model.onnx", **DIGITS)
    assert report.passed
    found = OnnxClassifier(tmp_path / "model.onnx").metadata
    assert found["head"]["kind"] == head.kind
    assert "class_means_distance" not in found["certificate"], "there are no class means yet"
    if head.kind in ("fixed", "implicit") or (head.kind == "tight-frame" and head.num_classes <= 25):
        assert found["certificate"]["etf_error"] <= torch.finfo(head.weight.dtype).eps
        assert found["certificate"]["largest_cosine"] == pytest.approx(-1 / (head.num_classes - 1), abs=0.01)


def test_a_linear_layer_of_zeros_exports(model: Classifier[ImplicitETFHead], tmp_path: Path) -> None:
    head = nn.Linear(24, 10)
    nn.init.zeros_(head.weight)
    export_onnx(Plain(model.backbone, head), tmp_path / "model.onnx", **DIGITS)
    assert OnnxClassifier(tmp_path / "model.onnx").metadata["certificate"] == {"row_norm_error": 1.0}


@pytest.mark.parametrize("head", [LearnedHead(24, 10, "learned"), ImplicitETFHead(24, 10, "learned")])
def test_a_learned_temperature_is_a_constant_of_the_file(
    head: LearnedHead | ImplicitETFHead, model: Classifier[ImplicitETFHead], held_out: Images, tmp_path: Path
) -> None:
    assert head.log_temperature is not None
    with torch.no_grad():
        head.log_temperature.fill_(2.7)
    path = tmp_path / "model.onnx"
    changed = Classifier(model.backbone, head).eval()
    assert export_onnx(changed, path, **DIGITS, check_images=held_out[0]).passed
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    assert constants["temperature"] == np.float32(head.temperature)
    assert OnnxClassifier(path).metadata["head"]["temperature"] == head.temperature == pytest.approx(np.exp(2.7))
    with torch.no_grad():
        head.log_temperature.fill_(2.8)
    assert not check_onnx(changed, path, held_out[0]).passed, "the file has the value at the time of export"


def averaged(model: Classifier[Any]) -> AveragedModel:
    """An exponential moving average over a few steps, buffers included."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    torch.manual_seed(1)
    labels = torch.arange(60) % model.head.num_classes
    for _ in range(6):
        model.train()(torch.randn(60, 1, 8, 8), labels)
        average.update_parameters(model)
    return average


@pytest.mark.parametrize("num_classes", [2, 10])
def test_an_averaged_implicit_head_is_exported_after_refresh(
    num_classes: int, model: Classifier[ImplicitETFHead], held_out: Images, tmp_path: Path
) -> None:
    average = averaged(Classifier(copy.deepcopy(model.backbone), ImplicitETFHead(24, num_classes)))
    path = tmp_path / "model.onnx"
    message = r"the implicit head's classifier is not a simplex ETF: etf_error .*; expected at most 2.0e-04"
    with pytest.raises(ExportError, match=message + r".*head.refresh\(\)"):
        export_onnx(average, path, **DIGITS)
    with pytest.raises(ExportError, match=message):
        export_head_onnx(average, path, check_images=held_out[0], mean=[0.3], std=[0.37])
    assert not list(tmp_path.iterdir())
    head = average.module.get_submodule("head")
    assert isinstance(head, ImplicitETFHead)
    head.refresh()
    assert export_onnx(average, path, **DIGITS).passed
    certificate = OnnxClassifier(path).metadata["certificate"]
    assert certificate["etf_error"] < 1e-6
    assert certificate["row_norm_error"] < 1e-6
    assert certificate["certificate_gap"] < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_conversion_to_half_precision_is_refused_until_refresh(
    dtype: torch.dtype, model: Classifier[ImplicitETFHead], tmp_path: Path
) -> None:
    rounded = copy.deepcopy(model)
    rounded.head.to(dtype).float()
    with pytest.raises(ExportError, match="conversion to half precision"):
        export_onnx(rounded, tmp_path / "model.onnx", **DIGITS)
    rounded.head.refresh()
    assert export_onnx(rounded, tmp_path / "model.onnx", **DIGITS).passed


def test_an_averaged_fixed_head_is_still_an_etf(model: Classifier[ImplicitETFHead], tmp_path: Path) -> None:
    average = averaged(Classifier(copy.deepcopy(model.backbone), FixedETFHead(24, 10, initial="random")))
    assert export_onnx(average, tmp_path / "model.onnx", **DIGITS).passed


def test_an_average_of_two_fixed_heads_needs_the_weight_of_one(
    model: Classifier[ImplicitETFHead], tmp_path: Path
) -> None:
    own, other = FixedETFHead(24, 10, initial="canonical"), FixedETFHead(24, 10, initial="random")
    average = Classifier(model.backbone, copy.deepcopy(own))
    average.head.weight.lerp_(other.weight, 0.5)
    with pytest.raises(ExportError, match=r"the fixed head's classifier is not a simplex ETF.*load its weight from"):
        export_onnx(average, tmp_path / "model.onnx", **DIGITS)
    average.head.weight.copy_(own.weight)
    average.head.refresh()
    assert export_onnx(average, tmp_path / "model.onnx", **DIGITS).passed


class Tilted(FixedETFHead):
    """A head of another kind, whose W need not be an ETF."""

    kind = "tilted"


def test_a_head_of_another_kind_may_have_any_weight(model: Classifier[ImplicitETFHead], tmp_path: Path) -> None:
    head = Tilted(24, 10)
    head.weight[0] = head.weight[1]
    assert export_onnx(Classifier(model.backbone, head), tmp_path / "model.onnx", **DIGITS).passed
    found = OnnxClassifier(tmp_path / "model.onnx").metadata
    assert found["head"]["kind"] == "tilted"
    assert found["certificate"]["etf_error"] > 0.1
