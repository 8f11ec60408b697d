"""Heads for K > d+1 and heads with added classes are exported under their kind."""

from __future__ import annotations

import copy
import time
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nearest_etf.export import ExportError, OnnxClassifier, check_onnx, export_head_onnx, export_onnx
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
EIGHT = [str(digit) for digit in range(8)]


def normalised(images: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.3) / 0.37


@pytest.fixture(scope="module")
def narrow(model: Classifier[ImplicitETFHead], digits: Images) -> nn.Module:
    """The trained backbone, projected onto the four principal directions of its features: K = 10 > d + 1."""
    with torch.no_grad():
        features = model.backbone(normalised(digits[0][:1400]))
    projection = nn.Linear(24, 4, bias=False).requires_grad_(False)
    projection.weight.copy_(torch.linalg.svd(features, full_matrices=False)[2][:4])
    return nn.Sequential(model.backbone, projection).eval()


@pytest.mark.parametrize(
    ("head", "tight"),
    [
        (ClassMeanHead(4, 10), False),
        (TightFrameHead(4, 10), False),
        (TightFrameHead(4, 10, norms="tight"), True),
        (TightFrameHead(4, 10, norms="equal"), True),
    ],
    ids=["class-mean", "unit", "tight", "equal"],
)
def test_the_certificate_describes_the_frame_of_heads_for_any_number_of_classes(
    head: ClassMeanHead | TightFrameHead,
    tight: bool,
    narrow: nn.Module,
    digits: Images,
    held_out: Images,
    tmp_path: Path,
) -> None:
    head = copy.deepcopy(head)
    with torch.no_grad():
        head.fit(narrow(normalised(digits[0][:1400])), torch.from_numpy(digits[1][:1400]))
    model, path = Classifier(narrow, head).eval(), tmp_path / "model.onnx"
    export_onnx(model, path, **DIGITS, check_images=held_out[0], check_labels=held_out[1])
    assert check_onnx(model, path, *held_out).passed
    found = OnnxClassifier(path, threads=1)
    assert found.metadata["format"] == 1, "version 0.1.0 can read it"
    assert found.metadata["head"]["kind"] == head.kind
    assert found.metadata["head"]["norms"] == getattr(head, "norms", None)
    certificate = found.metadata["certificate"]
    assert (certificate["tightness_error"] < 1e-4) == tight
    assert (certificate["norm_spread"] < 1e-6) == (getattr(head, "norms", "unit") != "tight")
    assert certificate["cosine_bound"] == 0 < certificate["largest_cosine"] < 1
    assert certificate["welch_bound"] == pytest.approx(np.sqrt(6 / (4 * 9)))
    assert "etf_distance" not in certificate
    assert ("certificate_gap" in certificate) == tight
    if head.kind == "tight-frame" and head.norms == "tight":
        assert abs(certificate["certificate_gap"]) < 1e-6  # the first solve has no proximal term
        assert certificate["class_means_distance"] < 1e-6
    answer = found.predict(held_out[0])
    with torch.no_grad():
        cosines = torch.cosine_similarity(narrow(normalised(held_out[0])), head.weight[answer.labels])
    np.testing.assert_allclose(answer.cosines, cosines, atol=1e-5)


@pytest.mark.parametrize("norms", ["unit", "tight", "equal"])
def test_an_averaged_tight_frame_is_exported_after_refresh(
    norms: Literal["unit", "tight", "equal"], narrow: nn.Module, tmp_path: Path
) -> None:
    model = Classifier(copy.deepcopy(narrow), TightFrameHead(4, 10, norms=norms))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    torch.manual_seed(1)
    for _ in range(6):
        model.train()(torch.randn(60, 1, 8, 8), torch.arange(60) % 10)
        average.update_parameters(model)
    fault = "is not a tight frame: tightness_error" if norms == "tight" else "has rows of length"
    with pytest.raises(ExportError, match=rf"the tight-frame head's classifier {fault}.*call head.refresh\(\)"):
        export_onnx(average, tmp_path / "model.onnx", **DIGITS)
    assert not list(tmp_path.iterdir())
    head = average.module.get_submodule("head")
    assert isinstance(head, TightFrameHead)
    head.refresh()
    assert export_onnx(average, tmp_path / "model.onnx", **DIGITS).passed


@pytest.mark.parametrize("pin", [False, True])
@pytest.mark.parametrize(
    "head",
    [
        *(ImplicitETFHead(24, 8), FixedETFHead(24, 8), LearnedHead(24, 8), LinearHead(24, 8), ClassMeanHead(24, 8)),
        *(TightFrameHead(24, 8), TightFrameHead(24, 8, norms="tight")),
    ],
    ids=lambda head: head.kind,
)
def test_a_grown_head_is_exported_with_the_names_of_all_its_classes(
    head: Head, pin: bool, model: Classifier[ImplicitETFHead], digits: Images, held_out: Images, tmp_path: Path
) -> None:
    """From eight to ten digits: a head without pinned rows keeps its kind; with pinned rows its kind is "pinned"."""
    head, path = copy.deepcopy(head), tmp_path / "model.onnx"
    images, labels = normalised(digits[0][:1400]), torch.from_numpy(digits[1][:1400])
    with torch.no_grad():
        features = model.backbone(images)
    few = labels < 8
    head.train()(features[few], labels[few])
    before = head.weight.detach().clone()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*new Parameter objects")
        head.add_classes(2, pin=pin)
    head(features, labels)
    grown = Classifier(model.backbone, head).eval().requires_grad_(False)
    with pytest.raises(ExportError, match="class_names has 8 names, but the model has 10 classes"):
        export_onnx(grown, path, **DIGITS, class_names=EIGHT)
    export_onnx(grown, path, **DIGITS, class_names=[*EIGHT, "eight", "nine"], check_images=held_out[0])
    assert check_onnx(grown, path, *held_out).passed
    found = OnnxClassifier(path, threads=1)
    assert found.class_names == (*EIGHT, "eight", "nine")
    assert found.metadata["head"]["kind"] == ("pinned" if pin else type(head).kind)
    assert found.metadata["head"]["num_classes"] == 10
    weight = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}["weight"]
    assert np.array_equal(weight.T[:8], before) == (pin or head.kind in ("learned", "linear"))
    certificate = found.metadata["certificate"]
    is_etf = not pin and head.kind in ("implicit", "fixed", "tight-frame")
    assert (certificate["etf_error"] < 1e-6) == is_etf
    answer = found.predict(held_out[0])
    assert set(answer.names) <= set(found.class_names)
    np.testing.assert_array_equal(answer.labels, grown(normalised(held_out[0])).argmax(1))


def test_the_state_of_a_grown_head_is_exported_from_a_new_head(
    model: Classifier[ImplicitETFHead], tmp_path: Path
) -> None:
    """The state dict contains the pinned rows."""
    head = ImplicitETFHead(24, 8, 12.0)
    head.train()(torch.randn(40, 24), torch.arange(40) % 8)
    head.add_classes(2, pin=True)
    anew = ImplicitETFHead(24, 10, 12.0)
    anew.load_state_dict(head.state_dict())
    export_onnx(Classifier(model.backbone, anew), tmp_path / "model.onnx", **DIGITS)
    assert OnnxClassifier(tmp_path / "model.onnx").metadata["head"]["kind"] == "pinned"


def test_three_thousand_classes_in_sixty_four_dimensions(tmp_path: Path) -> None:
    """The file contains W once, and the export takes seconds."""
    torch.manual_seed(0)
    d, K = 64, 3000
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, d))
    head = TightFrameHead(d, K)
    features = torch.randn(2 * K, d)
    head.fit(features, torch.arange(2 * K) % K)
    model, path = Classifier(backbone, head).eval(), tmp_path / "head.onnx"
    images = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), np.uint8)
    began = time.process_time()
    report = export_head_onnx(model, path, check_images=images, mean=[0.3], std=[0.37])
    assert time.process_time() - began < 30
    assert report.passed
    assert path.stat().st_size < 1.15 * 4 * K * (d + 2) + 1e5
    found = OnnxClassifier(path, threads=1)
    answer = found.predict(features.numpy()[:200])
    expected = torch.cosine_similarity(features[:200], head.weight[answer.labels])
    np.testing.assert_allclose(answer.cosines, expected, atol=1e-5)
    certificate = found.metadata["certificate"]
    assert certificate["row_norm_error"] < 1e-6
    assert 0 < certificate["welch_bound"] < certificate["largest_absolute_cosine"] < 1
