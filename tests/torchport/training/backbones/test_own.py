"""Backbones from a user's function, in a file or a package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nearest_etf.torchport.training.backbones.build import build_backbone, network_view
from nearest_etf.torchport.training.backbones.view import IMAGENET, View
from nearest_etf.torchport.training.run.settings import Settings, SettingsError

NETWORK = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn
from sizes_of_mine import D

@dataclass
class Size:
    d: int

def small():
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, Size(D).d))

def described():
    network = small()
    network.mean, network.std, network.input_size = [0.1, 0.2, 0.3], [0.5, 0.5, 0.5], (3, 40, 40)
    network.pretrained_cfg = {"crop_pct": 1.0, "interpolation": "bicubic", "mean": (9, 9, 9)}
    return network

def normalising():
    network = small()
    network.register_buffer("mean", torch.zeros(3))
    return network

def broken():
    raise KeyError("no weights")

def nothing():
    return 5

def maps():
    return nn.Conv2d(3, 4, 1)

value = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "sizes_of_mine.py").write_text("D = 7\n")
    (tmp_path / "net.py").write_text(NETWORK)
    return tmp_path / "net.py"


def test_a_function_in_a_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    settings = Settings(backbone="net.py:small")
    assert settings.backbone == f"{file}:small"  # whatever the working directory is later
    monkeypatch.chdir("/")
    backbone = build_backbone(settings, (9, 9, 3))
    assert backbone.num_features == 7
    assert backbone(torch.zeros(4, 3, 9, 9)).shape == (4, 7)


def test_a_function_in_a_package() -> None:
    settings = Settings(backbone="torch.nn:Flatten")
    assert build_backbone(settings, (2, 2, 3)).num_features == 12


def test_a_network_s_attributes_set_its_preprocessing(file: Path) -> None:
    before = torch.get_rng_state()
    view = network_view(Settings(backbone=f"{file}:described"))
    assert view == View(40, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5), "bicubic", 1.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert network_view(Settings(backbone=f"{file}:small")) == View()
    assert network_view(Settings(backbone=f"{file}:small", pretrained=True)) == View(None, *IMAGENET)
    assert network_view(Settings(backbone=f"{file}:normalising")) == View()  # inside, by tensors


def test_a_view_of_grey_images_averages_the_colours() -> None:
    grey = View(224, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5)).channels(1)
    assert grey.mean == pytest.approx((0.2,))
    assert grey.std == (0.5,)
    assert View(size=3).channels(1) == View(size=3)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("missing.py:small", "there is no file .*missing.py"),
        ("net.py:large", "net.py has no function large"),
        ("net.py:value", "net.py has no function value"),
        ("net.py:broken", r"broken\(\) failed \(KeyError: 'no weights'\)"),
        ("net.py:nothing", r"nothing\(\) returned a int, expected a torch.nn.Module"),
        ("net.py:maps", r"returns \(2, 4, 9, 9\) for two images: expected features"),
        ("bad.py:small", "bad.py cannot be imported .*NameError"),
        ("no.such.package:make", "no.such.package cannot be imported"),
        ("torch.nn:Nonsense", "torch.nn has no function Nonsense"),
    ],
)
def test_unusable_functions_are_refused_in_one_line(
    file: Path, monkeypatch: pytest.MonkeyPatch, spec: str, complaint: str
) -> None:
    (file.parent / "bad.py").write_text("nonsense\n")
    monkeypatch.chdir(file.parent)
    with pytest.raises(SettingsError, match=complaint) as refused:
        build_backbone(Settings(backbone=spec), (9, 9, 3))
    assert "\n" not in str(refused.value)


def test_settings_of_own_backbones(file: Path) -> None:
    for backbone in ("net.py", "small-cnnn", ":f", "net.py:"):
        with pytest.raises(SettingsError, match="unknown backbone"):
            Settings(backbone=backbone)
    with pytest.raises(SettingsError, match="features = 'signed' is for this project's own"):
        build_backbone(Settings(backbone=f"{file}:small", features="signed"), (9, 9, 3))
