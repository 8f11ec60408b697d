"""A small classifier, trained for a second on real digits, and its exported files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nearest_etf.export import OnnxClassifier, convert, export_head_onnx, export_onnx
from nearest_etf.export.trial import TrialError, fault_of
from nearest_etf.torchport import Classifier, ImplicitETFHead

Model = Classifier[ImplicitETFHead]
DIGITS: dict[str, Any] = {"image_shape": (8, 8, 1), "mean": [0.3], "std": [0.37]}
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"precision": "fp16", "layout": "NCHW"},
    "int8": {"precision": "int8"},
    "float": {"float_input": True, "layout": "NCHW"},
}


class SomebodysNet(nn.Module):
    """A network from outside this project, with batch norm and a residual connection."""

    def __init__(self, channels: int = 1, features: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, features, 3, padding=1), nn.BatchNorm2d(features), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(features, features, 3, padding=1), nn.BatchNorm2d(features))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.stem(images), 2)
        return (x + self.block(x)).relu().mean(dim=(2, 3))


@pytest.fixture
def apart() -> None:
    """Open new files in a child process, as in use."""


@pytest.fixture(autouse=True)
def opened_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open new files in this process, which saves half the time.

    Exceptions are the files of session and module fixtures, and of tests with the fixture `apart`.
    """

    def open_here(data: bytes, precision: str) -> None:
        if fault := fault_of(data):
            raise TrialError(f"in {precision}: {fault}")

    if "apart" not in request.fixturenames:
        monkeypatch.setattr(convert, "open_apart", open_here)


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 8, 8, 1) uint8 and labels; the first 1400 are for training."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    return np.round(bundle.images * (255 / 16)).astype(np.uint8)[..., None], bundle.target.astype(np.int64)


@pytest.fixture(scope="session")
def model(digits: tuple[np.ndarray, np.ndarray]) -> Model:
    """About 92 % accurate on held-out digits."""
    images, labels = digits
    torch.manual_seed(0)
    classifier = Classifier(SomebodysNet(), ImplicitETFHead(24, 10))
    optimiser = torch.optim.Adam(classifier.backbone.parameters(), 1e-2)
    x = (torch.from_numpy(images[:1400]).permute(0, 3, 1, 2).float() / 255 - 0.3) / 0.37
    y = torch.from_numpy(labels[:1400])
    for rate in (1e-2, 1e-2, 1e-2, 3e-3, 1e-3):
        optimiser.param_groups[0]["lr"] = rate
        for chosen in torch.randperm(1400).split(70):
            loss = nn.functional.cross_entropy(classifier(x[chosen], y[chosen]), y[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return classifier.eval()


@pytest.fixture(scope="session")
def held_out(digits: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels outside the training split."""
    return digits[0][1400:], digits[1][1400:]


@pytest.fixture(scope="session")
def files(
    model: Model, digits: tuple[np.ndarray, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The exported files of all variants, by name."""
    folder = tmp_path_factory.mktemp("exported")
    images, labels = digits
    shown: dict[str, Any] = {"check_images": images[1400:], "check_labels": labels[1400:]}
    paths = {}
    for name, options in VARIANTS.items():
        paths[name] = folder / f"{name}.onnx"
        export_onnx(model, paths[name], **DIGITS, **shown, calibration_images=images[:256], **options)
    for precision in ("fp16", "fp32", "fp64"):
        paths[f"head-{precision}"] = folder / f"head-{precision}.onnx"
        export_head_onnx(
            model,
            paths[f"head-{precision}"],
            mean=[0.3],
            std=[0.37],
            precision=precision,  # type: ignore[arg-type]
            **shown,
        )
    return paths


@pytest.fixture(scope="session")
def classifier(files: dict[str, Path]) -> OnnxClassifier:
    """The classifier of the float32 file."""
    return OnnxClassifier(files["fp32"], threads=1)
