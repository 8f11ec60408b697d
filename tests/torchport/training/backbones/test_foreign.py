"""Networks of torchvision and timm: without their classifiers, tried before use, refused where they do not fit.

Neither library can be imported beside a torch of another build, so stand-ins with their calls take their places.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from nearest_etf.torchport.training.backbones.build import build_backbone, network_view
from nearest_etf.torchport.training.backbones.view import IMAGENET, View
from nearest_etf.torchport.training.run.settings import Settings, SettingsError
from nearest_etf.torchport.training.weights import start_weights


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SettingsError, match="needs timm, which cannot be imported"):
        build_backbone(Settings(backbone="timm:resnet18"), (32, 32, 3))


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    """A stand-in for torchvision, to be filled with networks by name."""
    networks: dict[str, nn.Module] = {}
    models = SimpleNamespace(list_models=lambda module: list(networks), get_model=networks.__getitem__)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return networks


def test_a_foreign_network_loses_its_last_linear_layer(torchvision: dict[str, nn.Module]) -> None:
    layers = nn.Flatten(), nn.Linear(12, 7), nn.BatchNorm1d(7), nn.Dropout(), nn.Sequential(nn.Linear(7, 1000))
    torchvision["tiny"] = nn.Sequential(*layers)
    before = torch.get_rng_state()
    backbone = build_backbone(Settings(backbone="torchvision:tiny"), (2, 2, 3))
    assert torch.equal(torch.get_rng_state(), before)  # finding out d draws no random numbers
    assert backbone.get_submodule("2").num_batches_tracked == 0
    assert backbone.num_features == 7
    assert backbone(torch.randn(5, 3, 2, 2)).shape == (5, 7)


def test_foreign_networks_that_do_not_fit_are_refused(torchvision: dict[str, nn.Module]) -> None:
    torchvision["tiny"] = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Linear(7, 3))
    torchvision["maps"] = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(2, 2))
    torchvision["none"] = nn.Conv2d(3, 4, 1)
    for name, shape, complaint in (
        ("tinny", (2, 2, 3), "did you mean 'tiny'"),
        ("tiny", (2, 2, 1), "3 channels, not 1"),
        ("tiny", (4, 2, 3), "does not take images of 4×2 pixels: mat1 and mat2"),
        ("maps", (2, 2, 3), r"returns \(2, 4, 2, 2\) for two images: expected features"),
        ("none", (2, 2, 3), "no linear classifier"),
    ):
        with pytest.raises(SettingsError, match=complaint):
            build_backbone(Settings(backbone=f"torchvision:{name}"), shape)


def tiny() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.BatchNorm1d(7), nn.Linear(7, 10))


@pytest.fixture
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, torch.Tensor]]:
    """A stand-in for timm and torchvision, whose weights come from a file, or with `offline` are not available."""
    torch.manual_seed(5)
    stored = tiny().state_dict()
    torch.save(stored, tmp_path / "cache.pth")

    def fetched(network: nn.Module) -> nn.Module:
        if not (tmp_path / "cache.pth").exists():
            raise OSError("[Errno -2] Name or service not known\nwhile fetching")
        network.load_state_dict(torch.load(tmp_path / "cache.pth", weights_only=True))
        return network

    def create_model(name: str, pretrained: bool = False, num_classes: int = 10, in_chans: int = 3) -> nn.Module:
        if name.endswith(".nonsense"):
            raise RuntimeError("Invalid pretrained tag (nonsense) for tiny.")
        network = fetched(tiny()) if pretrained else tiny()
        return nn.Sequential(*list(network.children())[:3]) if num_classes == 0 else network

    cfg = SimpleNamespace(
        input_size=(3, 288, 288), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="bicubic", crop_pct=0.95
    )

    def get_pretrained_cfg(name: str) -> SimpleNamespace:
        if name.endswith(".nonsense"):
            raise RuntimeError("Invalid pretrained tag (nonsense) for tiny.")
        return cfg

    timm = SimpleNamespace(
        list_models=lambda: ["tiny"], create_model=create_model, get_pretrained_cfg=get_pretrained_cfg
    )
    preset = SimpleNamespace(
        crop_size=[224], resize_size=[256], mean=[0.4, 0.5, 0.6], std=[0.2, 0.2, 0.2],
        interpolation=SimpleNamespace(value="bilinear"),
    )  # fmt: skip

    class Weights(Enum):
        V1 = SimpleNamespace(transforms=lambda: preset)
        DEFAULT = V1

        def transforms(self) -> Any:
            return self.value.transforms()

    def get_model(name: str, weights: Any = None) -> nn.Module:
        return fetched(tiny()) if weights else tiny()

    models = SimpleNamespace(
        list_models=lambda module: ["tiny"], get_model=get_model, get_model_weights=lambda name: Weights
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)

    def state(kind: str) -> dict[str, torch.Tensor]:
        if kind == "offline":
            (tmp_path / "cache.pth").unlink()
        return stored

    return state


@pytest.mark.parametrize("name", ["timm:tiny", "timm:tiny.a1_in1k", "torchvision:tiny", "torchvision:tiny.V1"])
def test_pretrained_weights_of_a_library(name: str, pretrained: Callable[[str], dict[str, torch.Tensor]]) -> None:
    settings = Settings(backbone=name, pretrained=True)
    backbone = build_backbone(settings, (2, 2, 3))
    stored = pretrained("online")
    assert not torch.equal(backbone.state_dict()["1.weight"], stored["1.weight"])  # a checkpoint brings its own
    before = torch.get_rng_state()
    assert start_weights(backbone, settings, channels=3) == [f"pretrained weights of {name}"]
    assert torch.equal(torch.get_rng_state(), before)
    for key in ("1.weight", "2.running_mean"):
        assert torch.equal(backbone.state_dict()[key], stored[key])
    pretrained("offline")
    with pytest.raises(
        SettingsError, match=r"cannot be loaded \(\[Errno -2\] Name or service not known\): .*--weights FILE"
    ):
        start_weights(backbone, settings, channels=3)


def test_wrong_tags_and_networks_are_named(pretrained: Callable[[str], dict[str, torch.Tensor]]) -> None:
    for name, complaint in (
        ("timm:tinny.a1", "unknown timm model 'tinny': did you mean 'tiny'"),
        ("timm:tiny.nonsense", "Invalid pretrained tag"),
        ("torchvision:tiny.V3", "unknown weights of torchvision:tiny 'V3': did you mean 'V1'"),
    ):
        settings = Settings(backbone=name, pretrained=True)
        with pytest.raises(SettingsError, match=complaint):
            start_weights(build_backbone(settings, (2, 2, 3)), settings, channels=3)
        with pytest.raises(SettingsError, match=complaint):
            network_view(settings)


def test_pretrained_weights_bring_their_preprocessing(
    pretrained: Callable[[str], dict[str, torch.Tensor]],
) -> None:
    of_timm = View(288, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bicubic", 0.95)
    assert network_view(Settings(backbone="timm:tiny", pretrained=True)) == of_timm
    assert network_view(Settings(backbone="timm:tiny")) == View(288)
    of_torchvision = View(224, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2), "bilinear", 0.875)
    assert network_view(Settings(backbone="torchvision:tiny.V1", pretrained=True)) == of_torchvision
    assert network_view(Settings(backbone="resnet18", weights="w.pth")) == View(None, *IMAGENET)
    assert network_view(Settings(backbone="resnet18")) == View()
