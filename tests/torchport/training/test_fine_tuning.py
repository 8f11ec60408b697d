"""Runs that start from weights: frozen parts, an aligned head, averaged weights, augmentation; what they leave behind.

The backbone is a small network of this project, which a first run has trained on the digits 0 to 9.
"""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nearest_etf.torchport import FixedETFHead, LearnedHead
from nearest_etf.torchport.training import progress as progress_module
from nearest_etf.torchport.training import records
from nearest_etf.torchport.training.data.load import training_data
from nearest_etf.torchport.training.etf_report import main as report
from nearest_etf.torchport.training.etf_train import gather_settings
from nearest_etf.torchport.training.etf_train import main as etf_train
from nearest_etf.torchport.training.measure import measure
from nearest_etf.torchport.training.model import load_model
from nearest_etf.torchport.training.progress import Progress, Stopped
from nearest_etf.torchport.training.run.checkpoint import load_checkpoint
from nearest_etf.torchport.training.run.reading import read_rows, read_run
from nearest_etf.torchport.training.run.settings import Settings, SettingsError
from nearest_etf.torchport.training.train import train

SMALL = Settings(
    val_fraction=0.2, samples_per_class=20, batch_size=40, epochs=2, num_features=32, lr=0.02, temperature=5.0
)  # five steps an epoch


@pytest.fixture(autouse=True)
def without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without curves.png, which takes longer than all the rest, but for a test that looks at it."""
    if "aligned_head_starts" not in request.node.name:
        monkeypatch.setattr(progress_module, "draw_curves", lambda rows, path: "")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A backbone that knows the digits, as the checkpoint of a run."""
    folder = tmp_path_factory.mktemp("weights") / "run"
    train(replace(SMALL, head="learned", samples_per_class=0, batch_size=50, lr=0.1), folder, device="cpu", quiet=True)
    return str(folder / "last.pt")


def without_times(run: Path) -> list[dict[str, float]]:
    times = ("seconds", "images_per_second", "solver_milliseconds")
    return [{k: v for k, v in row.items() if k not in times} for row in read_rows(run)]


@pytest.mark.parametrize("head", ["learned", "fixed", "implicit", "class-mean", "tight-frame"])
def test_an_aligned_head_starts_at_the_backbone_s_accuracy(tmp_path: Path, weights: str, head: str) -> None:
    settings = replace(SMALL, head=head, weights=weights)
    train(
        settings,
        tmp_path / "run",
        device="cpu",
        quiet=True,
        recalibrate=None if head in ("learned", "fixed") else False,
    )
    rows = read_rows(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[0]["val_accuracy"] > 0.8  # ten classes
    assert not any(name.startswith(("running", "lr")) for name in rows[0])
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"weights of {weights}: 15 of 15 tensors, by the prefix 'backbone.'; not used: head." in log
    assert f"epoch 0/2  train {100 * rows[0]['train_accuracy']:.2f} %" in log
    assert (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1].startswith("0,")
    assert (tmp_path / "run" / "curves.png").exists()
    assert "could not be drawn" not in log


def test_the_aligned_start_is_the_class_means_of_the_training_images(tmp_path: Path, weights: str) -> None:
    for head in ("learned", "fixed"):
        settings = replace(SMALL, head=head, weights=weights, lr=0.0, epochs=1, freeze_bn=True)
        train(settings, tmp_path / head, device="cpu", quiet=True)
        model, _ = load_model(tmp_path / head, "last")
        data = training_data(settings)
        images = torch.from_numpy(data.train.images[:]).permute(0, 3, 1, 2).float() / 255
        images = (images - torch.tensor(data.mean).view(1, -1, 1, 1)) / torch.tensor(data.std).view(1, -1, 1, 1)
        with torch.no_grad():
            h = model.head.normalise(model.backbone(images))
        labels = torch.from_numpy(data.train.labels)
        means = torch.stack([h[labels == k].mean(0) for k in range(10)])
        centred = means - means.mean(0)  # as many images of each class
        if head == "learned":
            assert isinstance(model.head, LearnedHead)
            expected = centred / centred.norm(dim=1, keepdim=True)
        else:
            assert isinstance(model.head, FixedETFHead)
            U, _, Vt = torch.linalg.svd(centred.T.double(), full_matrices=False)
            expected = ((10 / 9) ** 0.5 * (U[:, :9] @ Vt[:9]).T).float()
        torch.testing.assert_close(model.head.weight, expected, rtol=0, atol=2e-4)


def test_epoch_0_can_be_the_best_epoch(tmp_path: Path, weights: str) -> None:
    settings = replace(SMALL, head="learned", weights=weights, lr=50.0, optimizer="adamw", epochs=1)
    train(settings, tmp_path / "run", device="cpu", quiet=True)
    run = read_run(tmp_path / "run")
    assert (run.result, run.result_row["epoch"]) == ("best", 0)
    assert load_checkpoint(tmp_path / "run" / "best.pt")["epoch"] == 1
    measured = measure(tmp_path / "run", device="cpu")
    assert measured.epoch == 0
    assert measured.figures["val_accuracy"] == run.rows[0]["val_accuracy"]
    assert report([str(tmp_path / "run"), "--to", str(tmp_path / "report.html"), "--quiet"]) == 0
    assert (tmp_path / "report.html").exists()


def test_a_linear_head_has_no_means_to_start_from(tmp_path: Path, weights: str) -> None:
    with pytest.raises(SettingsError, match="start aligned needs class means"):
        replace(SMALL, head="linear", start="aligned")
    for name, settings in (("linear", replace(SMALL, head="linear")), ("none", replace(SMALL, start="none"))):
        train(replace(settings, weights=weights), tmp_path / name, device="cpu", quiet=True)
        first = read_rows(tmp_path / name)[0]
        assert first["epoch"] == 0
        assert first["val_accuracy"] < 0.5


EVERYTHING = {
    "flip": True,
    "mixup": 0.2,
    "cutmix": 1.0,
    "color_jitter": 0.3,
    "smoothing": 0.1,
    "class_weights": "balanced",
    "model_ema": True,
    "warmup_epochs": 1.0,
    "schedule": "cosine",
    "head_lr": 2.0,
    "layer_decay": 0.8,
    "freeze": "layers.3",
    "optimizer": "adam",
    "lr": 1e-3,
}


@pytest.mark.parametrize("head", ["learned", "implicit"])
def test_a_resumed_run_ends_with_the_same_bits(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    settings = replace(SMALL, head=head, weights=weights, **EVERYTHING)  # type: ignore[arg-type]
    train(settings, tmp_path / "whole", device="cpu", quiet=True)
    advance, steps = Progress.advance, iter(range(1, 1000))

    def interrupting(self: Progress) -> None:
        advance(self)
        if next(steps) in (3, 5, 8):  # in the first epoch, at its end, in the second one
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "advance", interrupting)
    for resume in (False, True, True):
        with pytest.raises(Stopped):
            train(settings, tmp_path / "run", device="cpu", quiet=True, resume=resume)
    train(settings, tmp_path / "run", device="cpu", quiet=True, resume=True)
    assert without_times(tmp_path / "run") == without_times(tmp_path / "whole")
    assert [row["epoch"] for row in read_rows(tmp_path / "run")] == [0, 1, 2]
    for name in ("last", "best"):
        ours, theirs = (load_checkpoint(tmp_path / folder / f"{name}.pt") for folder in ("run", "whole"))
        for part in (("model",), ("ema", "model")):
            for key in part:
                ours, theirs = ours[key], theirs[key]
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                assert torch.equal(ours[key], value), f"{name}: {part} {key}"
            ours, theirs = (load_checkpoint(tmp_path / folder / f"{name}.pt") for folder in ("run", "whole"))


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SMALL, head="learned", weights=weights)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(records, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            train(settings, tmp_path / "run", device="cpu", quiet=True)
    assert [row["epoch"] for row in read_rows(tmp_path / "run")] == [0]
    train(settings, tmp_path / "run", device="cpu", quiet=True, resume=True)
    assert [row["epoch"] for row in read_rows(tmp_path / "run")] == [0, 1, 2]


def test_averaged_weights_are_evaluated_measured_and_loaded(tmp_path: Path, weights: str) -> None:
    settings = replace(SMALL, head="implicit", weights=weights, model_ema=True, epochs=1)
    train(settings, tmp_path / "run", device="cpu", quiet=True, recalibrate=False)
    contents = load_checkpoint(tmp_path / "run" / "last.pt")
    assert contents["ema"]["steps"] == 5
    model, _ = load_model(tmp_path / "run", "last")
    key = "backbone.layers.0.weight"
    assert torch.equal(model.state_dict()[key], contents["ema"]["model"][key])
    assert not torch.equal(model.state_dict()[key], contents["model"][key])
    measured = measure(tmp_path / "run", "last", device="cpu")
    assert measured.figures["test_accuracy"] == read_rows(tmp_path / "run")[-1]["test_accuracy"]
    assert measured.figures["train_loss"] == pytest.approx(read_rows(tmp_path / "run")[-1]["train_loss"], rel=1e-5)


def test_averaged_weights_in_half_precision(tmp_path: Path, weights: str) -> None:
    settings = replace(SMALL, head="learned", weights=weights, model_ema=True, epochs=1, precision="bfloat16")
    train(settings, tmp_path / "run", device="cpu", quiet=True)
    measured = measure(tmp_path / "run", "last", device="cpu")
    assert measured.figures["train_loss"] == pytest.approx(read_rows(tmp_path / "run")[-1]["train_loss"], rel=1e-5)


def test_frozen_weights_in_the_checkpoint_equal_those_of_the_file(tmp_path: Path, weights: str) -> None:
    settings = replace(SMALL, head="learned", weights=weights, freeze="all")
    train(settings, tmp_path / "run", device="cpu", quiet=True)
    before, after = (load_checkpoint(path)["model"] for path in (weights, tmp_path / "run" / "last.pt"))
    for name, tensor in after.items():
        if name.startswith("backbone."):
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(after["head.rows"], before["head.rows"])
    with pytest.raises(SettingsError, match="leaves nothing to learn"):
        train(replace(settings, head="implicit"), tmp_path / "nothing", device="cpu", quiet=True)
    assert not (tmp_path / "nothing").exists()


def test_the_head_s_own_learning_rate(tmp_path: Path, weights: str) -> None:
    settings = replace(SMALL, head="learned", weights=weights, epochs=1, head_lr=0.0, momentum=0.0)
    train(settings, tmp_path / "run", device="cpu", quiet=True)
    row = read_rows(tmp_path / "run")[-1]
    assert row["lr"] == 0.02
    start = load_checkpoint(tmp_path / "run" / "best.pt")["model"]["head.rows"]
    assert torch.equal(load_checkpoint(tmp_path / "run" / "last.pt")["model"]["head.rows"], start)


NETWORK = """
from torch import nn

def small():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    network.mean, network.std, network.input_size = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), 20
    network.crop_pct, network.interpolation = 1.0, "bicubic"
    return network
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for label, name in enumerate(("cat", "dog", "emu")):
            if (split, name) == ("val", "emu"):
                continue
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 80, (30 + i, 40, 3)) + np.eye(3, dtype=int)[label] * 150
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_a_network_s_preprocessing_is_stored_in_the_run(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "net.py"
    file.write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    settings = Settings(
        data=str(photos), backbone="net.py:small", head="learned", epochs=1, batch_size=8, workers=0, lr=0.05
    )
    train(settings, tmp_path / "run", device="cpu", quiet=True)
    contents = load_checkpoint(tmp_path / "run" / "last.pt")["data"]
    assert (contents["mean"], contents["std"]) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert tuple(contents["image_shape"]) == (20, 20, 3)
    assert {name: contents["transform"][name] for name in ("crop", "interpolation")} == {
        "crop": 1.0,
        "interpolation": "bicubic",
    }
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["mean"] == [0.1, 0.2, 0.3]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "validation data have no images of 1 of 3 classes: 'emu'" in log
    # What the run recorded decides, even where the network says something else by now.
    file.write_text(NETWORK.replace("0.1, 0.2", "0.9, 0.9"))
    monkeypatch.chdir("/")
    measured = measure(tmp_path / "run", device="cpu")
    run = read_run(tmp_path / "run")
    for name in ("val_accuracy", "val_loss"):
        assert measured.figures[name] == pytest.approx(run.result_row[name], rel=1e-6)


def test_a_given_image_size_takes_precedence(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    settings = Settings(data=str(photos), backbone=f"{tmp_path / 'net.py'}:small", image_size=24)
    data = training_data(settings)
    assert data.image_shape == (24, 24, 3)
    assert data.mean == (0.1, 0.2, 0.3)
    assert training_data(replace(settings, backbone="resnet18")).image_shape == (24, 24, 3)
    assert training_data(replace(settings, backbone="resnet18", image_size=None)).image_shape == (224, 224, 3)


def test_an_image_folder_has_its_own_defaults(
    tmp_path: Path, photos: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, output = gather_settings(None, {"data": str(photos), "epochs": 3})
    assert (settings.recipe, settings.stem, settings.schedule, settings.flip) == ("photos", "imagenet", "cosine", True)
    assert (settings.epochs, settings.batch_size, settings.aligned) == (3, 64, False)
    assert output == "runs/photos-implicit-seed0"
    for changes in ({"weights": weights}, {"backbone": "timm:x", "pretrained": True}):
        settings, output = gather_settings(None, {"data": str(photos), **changes})
        assert (settings.recipe, settings.freeze_bn, settings.aligned) == ("fine-tune", True, True)
        assert output == "runs/fine-tune-photos-implicit-seed0"
    assert gather_settings(None, {"data": "digits", "weights": weights})[0].recipe == "custom"
    assert gather_settings("digits", {"data": str(photos)})[0].recipe == "digits"

    # The command line alone, and a second call that goes on with what the first one has recorded.
    words = ["--data", str(photos), "--backbone", "small-cnn", "--num-features", "16", "--image-size", "16", "--quiet"]
    words += ["--batch-size", "8", "--workers", "0", "--output", str(tmp_path / "run"), "--device", "cpu"]
    assert etf_train([*words, "--epochs", "1"]) == 0
    assert (
        etf_train(["--resume", "--output", str(tmp_path / "run"), "--epochs", "2", "--device", "cpu", "--quiet"]) == 0
    )
    assert [row["epoch"] for row in read_rows(tmp_path / "run")] == [1, 2]
    assert read_run(tmp_path / "run").settings["schedule"] == "cosine"
