"""Measured networks trained elsewhere: against the reference on features collected by hand; weights, layers, errors."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from nearest_etf.reference import neural_collapse
from nearest_etf.torchport import Classifier, FixedETFHead
from nearest_etf.torchport.any_model import OF_THE_WEIGHT
from nearest_etf.torchport.training import measure_model as module
from nearest_etf.torchport.training.backbones.view import View
from nearest_etf.torchport.training.data.load import load_data
from nearest_etf.torchport.training.etf_measure import main
from nearest_etf.torchport.training.measure_model import ImagesFor, ModelError, measure_model

NET = """
import torch
from torch import nn
from nearest_etf.torchport import Classifier, FixedETFHead


class Net(nn.Module):
    def __init__(self, channels, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(6, classes)

    def forward(self, x):
        return self.fc(self.body(x).flatten(1))


def seeded(make):
    torch.manual_seed(0)
    network = make()
    network(torch.randn(8, *([1, 8, 8] if network.body[0].in_channels == 1 else [3, 8, 8])))
    return network


def photos():
    return seeded(lambda: Net(3))


def digits():
    return seeded(lambda: Net(1, 10))


def ours():
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU()), FixedETFHead(12, 10))


def number():
    return 5
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of networks, and photos of three classes in a folder, flat and in splits."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "net.py").write_text(NET)
    rng = np.random.default_rng(0)
    for i in range(24):
        pixels = rng.integers(0, 60 * (i % 3) + 80, (12, 12, 3), np.uint8)
        for path in (folder / "flat", folder / "parts" / ("train" if i < 15 else "val")):
            (path / f"class{i % 3}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path / f"class{i % 3}" / f"{i:02}.png")
    return folder


def network(name: str, place: Path) -> Any:
    scope: dict[str, Any] = {}
    exec(compile((place / "net.py").read_text(), "net", "exec"), scope)
    return scope[name]().eval()


def images(split: Any, mean: float, std: float) -> Tensor:
    return ((torch.from_numpy(np.ascontiguousarray(split.images[:])) / 255 - mean) / std).permute(0, 3, 1, 2)


def assert_figures(found: dict[str, float], prefix: str, wanted: Any, skip: tuple[str, ...] = ()) -> None:
    for name, value in asdict(wanted).items():
        if isinstance(value, float) and name not in skip and not math.isnan(value):
            assert found[f"{prefix}_{name}"] == pytest.approx(value, rel=2e-3, abs=1e-5), name
    assert not {f"{prefix}_{name}" for name in skip} & set(found)


@torch.no_grad()
def test_the_classifier_s_input_of_photos(place: Path) -> None:
    wanted_of = network("photos", place)
    lines: list[str] = []
    for data, splits in (("flat", {"images": "train"}), ("parts", {"train": "train", "val": "val"})):
        given = ImagesFor(str(place / data), 10, (0.4,), (0.3, 0.3, 0.3))
        spec = f"{place / 'net.py'}:photos"
        measurement = measure_model(spec, given, classifier="fc", device="cpu", log=lines.append)
        for prefix, name in splits.items():
            split = getattr(load_data(str(place / data), image_size=10), name)
            x, y = images(split, 0.4, 0.3), torch.from_numpy(split.labels)
            h = wanted_of.body(x).flatten(1)
            logits = wanted_of(x)
            assert_figures(measurement.figures, prefix, neural_collapse(h, y, wanted_of.fc.weight, wanted_of.fc.bias))
            assert measurement.figures[f"{prefix}_loss"] == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-4)
            right = float((logits.argmax(1) == y).float().mean())
            assert measurement.figures[f"{prefix}_accuracy"] == pytest.approx(right)
        assert measurement.splits == tuple(splits)
    assert lines[0] == "images of 10×10 pixels, normalised by mean 0.4 0.4 0.4 and std 0.3 0.3 0.3"
    assert lines[1] == f"weights set by {place / 'net.py'}:photos"


@torch.no_grad()
def test_another_layer_with_and_without_the_classifier(place: Path) -> None:
    wanted_of, val = network("photos", place), load_data(str(place / "parts"), image_size=10).val
    assert val is not None
    h = wanted_of.body(images(val, 0.4, 0.3)).flatten(1)
    wanted = neural_collapse(h, val.labels, wanted_of.fc.weight, wanted_of.fc.bias)
    given, spec = ImagesFor(str(place / "parts"), 10, (0.4,), (0.3,)), f"{place / 'net.py'}:photos"
    alone = measure_model(spec, given, layer="body", device="cpu")
    assert_figures(alone.figures, "val", wanted, (*OF_THE_WEIGHT, "numerical_rank"))
    assert "val_loss" not in alone.figures
    both = measure_model(spec, given, layer="body", classifier="fc", device="cpu")
    assert_figures(both.figures, "val", wanted, ("numerical_rank",))
    inner = measure_model(spec, given, layer="body.3", classifier="fc", device="cpu")
    assert inner.figures == both.figures


@torch.no_grad()
def test_a_head_is_measured_on_normalised_features(place: Path) -> None:
    data, model = load_data("digits"), network("ours", place)
    assert data.test is not None
    assert isinstance(model, Classifier)
    assert isinstance(model.head, FixedETFHead)
    h = model.head.normalise(model.backbone(images(data.test, 0.3, 0.2)))
    found = measure_model(
        f"{place / 'net.py'}:ours", ImagesFor("digits", mean=[0.3], std=[0.2]), classifier="head", device="cpu"
    )
    wanted = neural_collapse(h, data.test.labels, model.head.weight, model.head.bias)
    assert_figures(found.figures, "test", wanted)


def test_weights_from_a_file(place: Path, tmp_path: Path) -> None:
    other = network("photos", place)
    nn.init.normal_(other.fc.weight)
    spec, given = f"{place / 'net.py'}:photos", ImagesFor(str(place / "flat"), 10)
    torch.save({"epoch": 3, "model": {f"module.{k}": v for k, v in other.state_dict().items()}}, tmp_path / "whole.pt")
    lines: list[str] = []
    found = measure_model(
        spec, given, weights=str(tmp_path / "whole.pt"), classifier="fc", device="cpu", log=lines.append
    )
    assert lines[-1].endswith("whole.pt: 8 of 8 tensors, by the prefix 'module.'")
    plain = measure_model(spec, given, classifier="fc", device="cpu")
    assert found.figures["images_nc1"] == pytest.approx(plain.figures["images_nc1"], rel=1e-5)
    assert found.figures["images_nc2"] != pytest.approx(plain.figures["images_nc2"], rel=0.01)
    torch.save({k: v for k, v in other.state_dict().items() if "fc" not in k}, tmp_path / "body.pt")
    with pytest.raises(ModelError, match=r"body.pt lacks values for fc.weight, .* not in the file: fc.weight, fc.bias"):
        measure_model(spec, given, weights=str(tmp_path / "body.pt"), classifier="fc", device="cpu")
    layer = measure_model(spec, given, weights=str(tmp_path / "body.pt"), layer="body", device="cpu")
    assert layer.figures["images_nc1"] == pytest.approx(plain.figures["images_nc1"], rel=1e-5)
    torch.save({k: v for k, v in other.state_dict().items() if k != "body.0.weight"}, tmp_path / "holes.pt")
    with pytest.raises(ModelError, match=r"holes.pt lacks values for body.0.weight"):
        measure_model(spec, given, weights=str(tmp_path / "holes.pt"), layer="body", device="cpu")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_networks_of_libraries_keep_their_classifier(
    library: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins for the libraries: the requested number of classes and weights."""
    asked: list[tuple[Any, ...]] = []

    def make(name: str, num_classes: int = 3, **options: Any) -> nn.Module:
        asked.append((name, num_classes, *(options[key] for key in ("pretrained", "weights") if key in options)))
        made = network("photos", place)
        made.fc = nn.Linear(6, num_classes)
        return made  # type: ignore[no-any-return]

    stand_in = SimpleNamespace(create_model=make, get_model=make)
    monkeypatch.setattr(module, "library_models", lambda *_: stand_in)
    monkeypatch.setattr("nearest_etf.torchport.training.backbones.build.foreign_view", lambda *_: View(size=10))
    given, spec = ImagesFor(str(place / "flat")), f"{library}:netlet.v2"
    measure_model(spec, given, classifier="fc", device="cpu")
    torch.save(network("photos", place).state_dict(), tmp_path / "w.pt")
    measure_model(spec, given, classifier="fc", weights=str(tmp_path / "w.pt"), device="cpu")
    wanted: dict[str, Any] = {
        "timm": [("netlet.v2", 3, True), ("netlet.v2", 3, False)],
        "torchvision": [("netlet", 3, "v2"), ("netlet", 3, None)],
    }
    assert asked == wanted[library]
    monkeypatch.setattr(stand_in, "create_model", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(stand_in, "get_model", lambda *_, **__: 1 / 0)
    with pytest.raises(ModelError, match=r"netlet.v2 cannot be made: division by zero: .*--weights FILE"):
        measure_model(spec, given, classifier="fc", device="cpu")


def test_the_command(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = f"{place / 'net.py'}:photos"
    words = ["--model", model, "--data", str(place / "parts"), "--image-size", "10", "--device", "cpu"]
    assert main([*words, "--classifier", "fc", "--json", str(tmp_path / "out.json")]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split() == ["train", "val"]
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["loss", "accuracy", "nc1"]
    assert err.count("etf-measure: note: ") == 2
    figures = json.loads((tmp_path / "out.json").read_text())[model]
    assert {"classifier": "fc", "layer": None, "weights": None}.items() <= figures.items()
    assert main([*words, "--layer", "body", "--mean", "0.5", "--std", "0.2", "--json", "-", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)[model]["val_nc1"] > 0
    assert err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "name a run folder, or a network with --model"),
        ("runs/x --layer fc", "--layer is for --model"),
        ("runs/x --model NET:photos", "excludes a run folder and --checkpoint"),
        ("--model NET:photos --checkpoint best", "excludes a run folder and --checkpoint"),
        ("--model NET:photos --classifier fc", "--model needs --data"),
        ("--model photos --classifier fc --data FLAT", "expected PACKAGE.MODULE:FUNCTION, FILE.py:FUNCTION, timm:"),
        ("--model NET:nothing --classifier fc --data FLAT", "has no function nothing"),
        ("--model NET:number --classifier fc --data FLAT", "returned a int, expected a torch.nn.Module"),
        (
            "--model NET:photos --data FLAT",
            "name the layer that outputs the logits (--classifier) .* linear layers: fc",
        ),
        ("--model NET:photos --classifier f --data FLAT", "no such layer.* Its linear layers: 'fc'"),
        ("--model NET:photos --layer bodi --data FLAT", "layer = 'bodi': Net has no such layer: did you mean 'body'"),
        ("--model NET:photos --classifier body --data FLAT", "is a Sequential; expected an nn.Linear"),
        ("--model NET:photos --layer body.0 --data FLAT", "expected (B, d), one feature vector per sample"),
        (
            "--model NET:digits --classifier fc --data FLAT",
            "fc outputs 10 logits, but .*flat has 3 classes: use images",
        ),
        ("--model NET:photos --layer body --data digits", "does not take images of 8×8 pixels and 1 channels"),
        ("--model NET:photos --layer body --data FLAT --mean 1 2", "mean has 2 numbers, .* have 3 channels"),
        ("--model NET:photos --layer body --data FLAT --std -1", "std is -1.0: expected positive numbers"),
        ("--model NET:photos --layer body --data FLAT --weights NET", "net.py is damaged or of another kind"),
    ],
)
def test_what_is_refused(words: str, message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled = words.replace("NET", str(place / "net.py")).replace("FLAT", str(place / "flat")).split()
    size = ["--image-size", "10"] if "--model" in words else []
    assert main([*filled, *size]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    *notes, last = err.splitlines()
    assert all(note.startswith("etf-measure: note: ") for note in notes)
    parts = [part.strip() for part in message.split(".*")]
    assert all(part in last for part in parts), last


def test_weights_of_a_lazy_network_are_loaded(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make = "import torch\n\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3))\n"
    (place / "lazy.py").write_text(make)
    (place / "zip.pt").write_bytes(b"PK")
    words = ["--model", f"{place / 'lazy.py'}:make", "--classifier", "1", "--data", str(place / "flat")]
    assert main([*words, "--image-size", "10", "--weights", str(place / "zip.pt")]) == 2
    assert "zip.pt is damaged or of another kind" in capsys.readouterr().err
    torch.save({"1.weight": torch.ones(3, 300), "1.bias": torch.zeros(3)}, place / "lazy.pt")
    assert main([*words, "--image-size", "10", "--weights", str(place / "lazy.pt")]) == 0
