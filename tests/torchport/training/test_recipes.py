"""Every recipe builds with every head that fits, and names the remedy for the others."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nearest_etf.torchport.training.etf_train import main
from nearest_etf.torchport.training.model import build_model
from nearest_etf.torchport.training.run.reading import read_rows
from nearest_etf.torchport.training.run.settings import Settings, SettingsError, load_recipe, recipe_names

HEADS = Settings.__dataclass_fields__["head"].metadata["choices"]
SHAPES = {  # height, width, channels; and K
    "digits": ((8, 8, 1), 10),
    "mnist": ((28, 28, 1), 10),
    "fashion-mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
    "stl10": ((96, 96, 3), 10),
    "imagenet": ((224, 224, 3), 1000),
    "photos": ((224, 224, 3), 5),
}
UNFIT = {("imagenet-resnet18", head) for head in ("fixed", "implicit")}  # d = 512 < K−1 = 999


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("head", HEADS)
def test_every_recipe_builds_with_every_head_or_names_one_that_fits(name: str, head: str) -> None:
    """On the meta device, so that the largest networks take no memory; what comes out has one logit per class."""
    settings = load_recipe(name, {"head": head})
    shape, K = ((1, 1, 1), settings.num_classes) if settings.data == "ufm" else SHAPES[settings.data]
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.filterwarnings("ignore", message="temperature = 5 lets no probability exceed")  # the paper's τ
        if (name, head) in UNFIT:
            with pytest.raises(SettingsError, match=rf"head {head}: 1000 classes with 512 features") as caught:
                build_model(settings, shape, K)
            for remedy in ("tight-frame", "class-mean", "learned", "linear"):
                assert remedy in str(caught.value)
            assert "\n" not in str(caught.value)
            return
        model = build_model(settings, shape, K).eval()
        images = torch.arange(2) if settings.data == "ufm" else torch.empty(2, shape[2], *shape[:2])
        assert model(images).shape == (2, K)
    assert model.head.kind == head
    assert model.head.weight.shape == (K, model.head.num_features)
    assert {parameter.device.type for parameter in model.parameters()} <= {"meta"}


def test_the_default_head_of_every_recipe_fits() -> None:
    """`etf-train NAME` alone starts, for every recipe."""
    for name in recipe_names():
        assert (name, load_recipe(name).head) not in UNFIT


def test_imagenet_with_fewer_features_than_classes_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A made-up folder of 1000 classes with one tiny image each, a step, an evaluation and exact means."""
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 8, 8, 3), np.uint8)
    for split in ("train", "val"):
        for k in range(1000):
            folder = tmp_path / "imagenet" / split / f"n{k:04d}"
            folder.mkdir(parents=True)
            Image.fromarray(pixels[k]).save(folder / "0.JPEG")
    small = ["--image-size", "8", "--width", "2", "--precision", "float32", "--batch-size", "1000", "--epochs", "1"]
    where = ["--data-dir", str(tmp_path), "--output", str(tmp_path / "run"), "--device", "cpu", "--workers", "0"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="temperature = 5 lets no probability exceed")
        assert main(["imagenet-resnet18", *small, *where]) == 0
    assert "K = 1000; resnet18, d = 16, tight-frame head" in capsys.readouterr().err
    row = read_rows(tmp_path / "run")[-1]
    assert math.isfinite(row["train_nc2"])
    assert math.isfinite(row["solver_gap"])
    assert not any("etf_distance" in name for name in row), "there is no simplex ETF to be distant from"
    assert {file.name for file in (tmp_path / "run").glob("*.pt")} == {"last.pt", "recalibrated.pt"}
