"""Every backbone by its name: features of the size it states, negative where that was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nearest_etf.torchport.training.backbones import build_backbone
from nearest_etf.torchport.training.backbones.resnet import Block
from nearest_etf.torchport.training.run.settings import BACKBONES, Settings, SettingsError

PARAMETERS = {  # of the networks as published, without their classifiers
    "resnet18": 11_176_512,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
}


@pytest.mark.parametrize("name", BACKBONES)
def test_signed_features_lack_the_last_relu(name: str) -> None:
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    out = {}
    for features in ("relu", "signed"):
        torch.manual_seed(0)
        settings = Settings(backbone=name, features=features, width=2, num_features=16)
        backbone = build_backbone(settings, (32, 32, 3))
        out[features] = backbone(images)
        assert out[features].shape == (16, backbone.num_features)
    assert (out["relu"] >= 0).all()
    assert (out["relu"] >= out["signed"] - 1e-6).all()
    assert (out["relu"] > out["signed"] + 1e-3).any()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(Settings(backbone=name, stem="imagenet"), (224, 224, 3))
    assert sum(p.numel() for p in backbone.parameters()) == PARAMETERS[name]


def test_stems_halve_the_image_or_keep_it() -> None:
    sizes = {}
    for stem in ("imagenet", "cifar"):
        backbone = build_backbone(Settings(backbone="resnet18", stem=stem, width=4), (64, 64, 1))
        stages = backbone.get_submodule("stages")
        stages.register_forward_hook(lambda module, inputs, output, stem=stem: sizes.update({stem: output.shape}))
        backbone(torch.randn(2, 1, 64, 64))
    assert sizes == {"imagenet": (2, 32, 2, 2), "cifar": (2, 32, 8, 8)}


@pytest.mark.parametrize("wide", [8, 16])
def test_a_narrow_shortcut_is_a_strided_convolution(wide: int) -> None:
    block = Block(wide, 2 * wide, stride=2, bottleneck=False)
    images = torch.randn(4, wide, 9, 9).to(memory_format=torch.channels_last)
    shortcuts: list[torch.Tensor] = []
    block.downsample.register_forward_hook(lambda module, inputs, output: shortcuts.append(output))
    block(images)
    weight, norm = block.get_parameter("downsample.0.weight"), block.get_submodule("downsample.1")
    expected = norm(nn.functional.conv2d(images.contiguous(), weight, stride=2))
    torch.testing.assert_close(shortcuts[0], expected, rtol=1e-4, atol=1e-5)


def test_narrow_networks_train_in_channels_last_memory() -> None:
    """oneDNN wrote out of bounds here, which killed the process, so this test needs one of its own."""
    script = (
        "import torch; from nearest_etf.torchport.training.backbones import ResNet; net = ResNet('resnet18', width=8);"
        "x = torch.randn(16, 3, 64, 64).to(memory_format=torch.channels_last); [net(x).sum().backward() for _ in 'abc']"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "MALLOC_CHECK_": "3"})


def test_impossible_backbones_are_refused() -> None:
    with pytest.raises(SettingsError, match="needs 32 pixels"):
        build_backbone(Settings(backbone="vgg11"), (28, 28, 1))
    with pytest.raises(SettingsError, match="own backbones"):
        build_backbone(Settings(backbone="timm:x", features="signed"), (28, 28, 1))


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
