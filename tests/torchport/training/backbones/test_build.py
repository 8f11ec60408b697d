"""Every backbone by its name: features of the stated size, negative only if `features` is "signed"."""

from __future__ import annotations

import pytest
import torch

from nearest_etf.torchport.training.backbones.build import build_backbone
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


def test_impossible_backbones_are_refused() -> None:
    with pytest.raises(SettingsError, match="needs 32 pixels"):
        build_backbone(Settings(backbone="vgg11"), (28, 28, 1))
    with pytest.raises(SettingsError, match="own backbones"):
        build_backbone(Settings(backbone="timm:x", features="signed"), (28, 28, 1))
