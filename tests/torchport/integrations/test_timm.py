"""Networks of timm and torchvision: training, evaluation with the preprocessing of timm, and export.

`make test-integrations` runs this in a separate environment, since neither library can be imported with the build of
torch in constraints.txt. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nearest_etf.common.photo import PhotoTransform, evaluation_view
from nearest_etf.export import OnnxClassifier
from nearest_etf.export.etf_export import main as etf_export
from nearest_etf.torchport.integrations.hub import from_pretrained, save_pretrained
from nearest_etf.torchport.training.backbones.build import build_backbone, network_view
from nearest_etf.torchport.training.backbones.view import View
from nearest_etf.torchport.training.etf_measure import main as etf_measure
from nearest_etf.torchport.training.etf_train import main as etf_train
from nearest_etf.torchport.training.model import load_model
from nearest_etf.torchport.training.run.settings import Settings
from nearest_etf.torchport.training.weights import start_weights

try:
    import timm
    import torchvision
    from timm.data import create_transform, resolve_data_config
except (ImportError, RuntimeError) as error:
    pytest.skip(f"needs timm and torchvision (make test-integrations): {error}", allow_module_level=True)

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "from-timm.md").read_text(encoding="utf-8")
# timm's networks for tests: four kinds of convolutions, four kinds of attention, at 160 pixels.
SMALL = "test_byobnet test_convnext test_efficientnet test_mambaout test_nfnet test_resnet test_vit test_vit_relpos"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve photos of each of three classes, which differ in colour."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(("cat", "dog", "emu")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            smooth(rng, 90 + 7 * i, 120, k).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def smooth(rng: np.random.Generator, height: int, width: int, channel: int) -> Image.Image:
    coarse = rng.integers(0, 130, (7, 7, 3))
    coarse[..., channel] += 110
    return Image.fromarray(coarse.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "backbone",
    ["timm:test_resnet", "timm:test_vit.r160_in1k", "torchvision:resnet18", "torchvision:mobilenet_v3_small"],
)
def test_a_network_is_trained_measured_and_exported(photos: Path, backbone: str) -> None:
    size = ["--image-size", "64"] if backbone.startswith("torchvision") else []
    flags = ["--backbone", backbone, *size, "--head", "implicit", "--epochs", "2", "--batch-size", "12"]
    assert etf_train(["--data", str(photos), *flags, "--workers", "0", "--output", "run", "--quiet"]) == 0
    assert etf_measure(["run", "--quiet"]) == 0
    assert etf_export(["run", "--to", "model.onnx", "--quiet"]) == 0
    model, _ = load_model("run")
    classifier = OnnxClassifier("model.onnx", threads=1)
    side = 160 if backbone.startswith("timm") else 64
    assert classifier.image_shape == (side, side, 3)
    save_pretrained("run", "hub")
    images = torch.randn(3, 3, side, side)
    with torch.no_grad():
        assert torch.equal(from_pretrained("hub").eval()(images), model.eval()(images))


@pytest.mark.parametrize("backbone", ["timm:test_vit", "torchvision:resnet18"])
def test_unavailable_weights_are_a_one_line_error(
    photos: Path, backbone: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    flags = ["--data", str(photos), "--backbone", backbone, "--pretrained", "--batch-size", "12", "--output", "run"]
    assert etf_train(flags) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith(f"etf-train: the weights of {backbone} cannot be loaded")
    assert said.endswith("give a file of them by --weights FILE in place of --pretrained")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_weights_from_a_file_of_the_library(library: str) -> None:
    torch.manual_seed(3)
    theirs = timm.create_model("resnet18") if library == "timm" else torchvision.models.resnet18()
    torch.save(theirs.state_dict(), "theirs.pth")
    settings = Settings(backbone=f"{library}:resnet18", weights="theirs.pth")
    backbone = build_backbone(settings, (32, 32, 3))
    assert start_weights(backbone, settings, channels=3)[0].endswith("not used: fc.weight, fc.bias")
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])


def test_the_command_compared_with_that_of_timm_runs(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the page, except for the size of the network, the epochs, and weights from a file instead of the hub."""
    (command,) = re.findall(r"^(etf-train --data .*?)\n```", PAGE, re.DOTALL | re.MULTILINE)
    torch.save(timm.create_model("test_resnet").state_dict(), "theirs.pth")
    for old, new in (
        ("--data photos", f"--data {photos}"),
        ("timm:resnet50", "timm:test_resnet"),
        ("--pretrained", "--weights theirs.pth"),
        ("--epochs 20", "--epochs 2"),
        ("--batch-size 32", "--batch-size 12"),
    ):
        assert old in command
        command = command.replace(old, new)
    words = shlex.split(command.replace("\\\n", " "))
    assert etf_train([*words[1:], "--output", "run", "--workers", "0", "--quiet"]) == 0
    assert load_model("run")[0].head.num_classes == 3


def test_the_lines_for_the_loop_of_timm_run() -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {"NAME": "test_resnet", "K": 5}
    exec(lines.replace("images, labels", "torch.randn(10, 3, 64, 64), torch.arange(10) % 5"), {"torch": torch}, names)
    assert names["logits"].shape == (10, 5)
    assert names["model"].head.running.steps == 1


def test_every_pretrained_configuration_agrees_with_timm() -> None:
    """Size, normalisation, interpolation and crop of all pretrained configurations."""
    known, unlike = 0, []
    for name in timm.list_models():
        config = timm.get_pretrained_cfg(name)
        theirs = resolve_data_config({}, pretrained_cfg=config.to_dict())
        known += 1
        wanted = View(
            theirs["input_size"][-1],
            tuple(theirs["mean"]),
            tuple(theirs["std"]),
            theirs["interpolation"],
            min(theirs["crop_pct"], 1.0),
            theirs["crop_mode"],
        )
        if network_view(Settings(backbone=f"timm:{name}", pretrained=True)) != wanted:
            unlike.append(name)
    assert known > 1000
    assert len(unlike) <= 3  # those that pad the image
    assert all(timm.get_pretrained_cfg(name).crop_mode == "border" for name in unlike)


@pytest.mark.parametrize(
    "name", ["convnext_atto", "vit_tiny_patch16_224", "resnet50.a1_in1k", "test_resnet.r160_in1k", "crossvit_tiny_240"]
)
def test_preprocessing_agrees_with_timm(tmp_path: Path, name: str) -> None:
    """Up to half a pixel: timm resizes to whole pixels and then crops; here it is one step."""
    config = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    theirs, view = create_transform(**config), network_view(Settings(backbone=f"timm:{name}", pretrained=True))
    assert view.size is not None
    assert view.crop is not None
    ours = PhotoTransform(view.size, view.size, 3, view.crop, str(view.crop_mode), str(view.interpolation))
    rng, scale = np.random.default_rng(1), 255 * np.array(config["std"])[:, None, None]
    for height, width in ((300, 400), (480, 321), (224, 224), (700, 333), (150, 600)):
        path = tmp_path / "photo.png"
        smooth(rng, height, width, 0).save(path)
        wanted = theirs(Image.open(path)).numpy() * scale + 255 * np.array(config["mean"])[:, None, None]
        found = evaluation_view(path, ours).transpose(2, 0, 1)
        assert np.abs(wanted - found).mean() < 0.9  # grey levels of 255
        assert np.abs(wanted - found).max() < 6
        if name == "convnext_atto" and (height, width) in ((224, 224), (150, 600)):  # 224 of 256, from an even number
            assert np.abs(wanted - found).max() < 1e-3


@pytest.mark.parametrize("name", SMALL.split())
def test_families_export(name: str) -> None:
    spec = importlib.util.spec_from_file_location("export_families", ROOT / "benchmarks" / "export_families.py")
    assert spec is not None
    assert spec.loader is not None
    families = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(families)
    assert families.tried(name, "fp32") == "exported"


def test_a_foreign_network_of_torchvision_is_measured(photos: Path, capsys: Any) -> None:
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), "theirs.pth")
    make = "import torchvision\ndef make(): return torchvision.models.resnet18(num_classes=3)\n"
    Path("mine.py").write_text(make)
    arguments = ["--model", "mine.py:make", "--weights", "theirs.pth", "--layer", "fc", "--data", str(photos)]
    assert etf_measure([*arguments, "--image-size", "32"]) == 0
    assert "nc1" in capsys.readouterr().out.lower()


@pytest.mark.parametrize("backbone", ["timm:test_convnext", "torchvision:resnet18"])
def test_the_example_runs(monkeypatch: pytest.MonkeyPatch, backbone: str) -> None:
    script = ROOT / "examples" / "your_own_backbone.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--backbone", backbone, "--epochs", "2"])
    assert runpy.run_path(str(script))["accuracy"] > 0.2
