"""etf-measure on a run trained here: its figures are those of the reference on the same features, and are kept."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from nearest_etf.reference import neural_collapse
from nearest_etf.torchport.training.run.checkpoint import load_model
from nearest_etf.torchport.training.data import load_data
from nearest_etf.torchport.training.measure import main, measure, save_measurement, saved_measurement
from nearest_etf.torchport.training.run.settings import load_recipe
from nearest_etf.torchport.training.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of the implicit head on the digits."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    train(load_recipe("digits", {"head": "implicit", "epochs": 1}), folder, device="cpu")
    return folder


def test_figures_are_the_reference_on_the_run_s_features(run: Path) -> None:
    measured = measure(run, "last")
    data = load_data("digits")
    model, settings = load_model(run, "last")
    scale, shift = torch.tensor(data.std), torch.tensor(data.mean)
    images = ((torch.from_numpy(data.test.images) / 255 - shift) / scale).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = model.head.normalise(model.backbone(images))
        predicted = model(images).argmax(1).numpy()
    expected = neural_collapse(features, data.test.labels, model.head.weight, model.head.bias)
    for name, value in asdict(expected).items():
        if name != "margin_histogram":
            assert measured.figures[f"test_{name}"] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    assert measured.figures["test_accuracy"] == pytest.approx(np.mean(predicted == data.test.labels))
    assert measured.figures["test_top5"] >= measured.figures["test_accuracy"]
    assert measured.epoch == settings.epochs == 1
    assert measured.arrays["train_means"].shape == measured.arrays["weight"].shape
    assert measured.arrays["test_margins"].sum() == len(data.test)
    assert np.all(np.diff(measured.arrays["singular_values"]) <= 0)


def test_a_measurement_is_kept_until_the_checkpoint_changes(run: Path) -> None:
    measured = measure(run, "last")
    save_measurement(run, "last", measured)
    kept = saved_measurement(run, "last")
    assert kept is not None
    assert kept.figures == measured.figures
    np.testing.assert_array_equal(kept.arrays["train_means"], measured.arrays["train_means"])
    later = (run / "measured-last.npz").stat().st_mtime + 10
    os.utime(run / "last.pt", (later, later))
    assert saved_measurement(run, "last") is None


def test_command(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(run), "--json", str(tmp_path / "figures.json")]) == 0
    table = capsys.readouterr().out
    assert "best (epoch 1)" in table
    assert "last (epoch 1)" in table
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["best"]["train_nc1"] > 0
    assert not any(math.isnan(value) for value in figures["last"].values())


@pytest.mark.parametrize("arguments", [["no/such/run"], ["."], ["run", "--checkpoint", "first"]])
def test_bad_use_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("etf-measure: ")
