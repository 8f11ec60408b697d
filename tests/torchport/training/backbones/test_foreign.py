"""Networks of torchvision and timm: without their classifiers, tried before use, refused where they do not fit."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nearest_etf.torchport.training.backbones.build import build_backbone
from nearest_etf.torchport.training.run.settings import Settings, SettingsError


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SettingsError, match="needs timm, which cannot be imported"):
        build_backbone(Settings(backbone="timm:resnet18"), (32, 32, 3))


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    """Stands in for torchvision; to be filled with networks by name."""
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
        ("maps", (2, 2, 3), r"makes \(2, 4, 2, 2\) of two images: expected features"),
        ("none", (2, 2, 3), "no linear classifier"),
    ):
        with pytest.raises(SettingsError, match=complaint):
            build_backbone(Settings(backbone=f"torchvision:{name}"), shape)
