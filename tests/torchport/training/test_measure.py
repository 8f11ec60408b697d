"""etf-measure: the metrics of training and of the reference, on every split, stored in the run folder."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nearest_etf
from nearest_etf.reference import neural_collapse
from nearest_etf.torchport.training.data.load import load_data
from nearest_etf.torchport.training.etf_measure import main
from nearest_etf.torchport.training.etf_report import main as report
from nearest_etf.torchport.training.measure import measure
from nearest_etf.torchport.training.measurement import (
    MeasurementError,
    read_measurement,
    save_measurement,
    saved_measurement,
)
from nearest_etf.torchport.training.model import load_model
from nearest_etf.torchport.training.run.reading import read_run
from nearest_etf.torchport.training.run.settings import Settings, load_recipe
from nearest_etf.torchport.training.train import train

OLD_RUNS = Path(__file__).parents[2] / "fixtures" / "written-by-0.1.0"


def trained(folder: Path, **settings: Any) -> Path:
    train(load_recipe("digits", {"head": "implicit", "epochs": 1, **settings}), folder, device="cpu")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of the implicit head on the digits: training and test data."""
    return trained(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="module")
def run_with_val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with validation data."""
    return trained(tmp_path_factory.mktemp("runs") / "digits", val_fraction=0.1)


def test_figures_are_the_reference_on_the_run_s_features(run: Path) -> None:
    measured = measure(run, "last", device="cpu")
    data = load_data("digits")
    assert data.test is not None
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
    assert measured.arrays["train_class_mean_rows"].shape == measured.arrays["weight"].shape
    assert measured.arrays["test_margins"].sum() == len(data.test)
    assert np.all(np.diff(measured.arrays["singular_values"]) <= 0)


@pytest.mark.parametrize("name", ["run", "run_with_val"])
def test_training_and_measuring_give_the_same_figures(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    row, splits = read_run(folder).rows[-1], ("train", "val", "test") if name == "run_with_val" else ("train", "test")
    measured = measure(folder, "last", device="cpu")
    assert measured.splits == splits
    in_training = {key: value for key, value in row.items() if key.startswith(tuple(f"{split}_" for split in splits))}
    only_measured = {f"{split}_numerical_rank" for split in splits}
    assert measured.figures.keys() - in_training.keys() == only_measured
    for key, value in in_training.items():
        assert measured.figures[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key
    assert {key.removesuffix("_margins") for key in measured.arrays if key.endswith("_margins")} == set(splits)


def test_a_run_without_held_out_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(data="ufm", num_classes=3, num_features=4, samples_per_class=5, batch_size=15, epochs=2)
    train(settings, tmp_path / "ufm", device="cpu")
    measured = measure(tmp_path / "ufm", device="cpu")
    assert measured.splits == ("train",)
    assert "train_top5" not in measured.figures  # three classes
    assert main([str(tmp_path / "ufm"), "--device", "cpu"]) == 0
    table = capsys.readouterr().out
    assert "last (epoch 2)" in table
    assert "test" not in table


@pytest.mark.parametrize("head", ["learned", "class-mean", "tight-frame"])
def test_more_classes_than_a_simplex_has_vertices(
    head: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """K = 10, d = 4: metrics of the nearest simplex ETF are absent, the others are measured and reported as usual."""
    trained(tmp_path / "run", head=head, num_features=4, samples_per_class=40)
    measured = measure(tmp_path / "run", "last", device="cpu")
    assert not [name for name in measured.figures if "etf_distance" in name]
    assert {"train_nc1", "train_nc2", "train_nc3", "train_cosine_margin", "test_nc4"} <= measured.figures.keys()
    assert all(math.isfinite(value) for value in measured.figures.values())
    assert ("singular_values" in measured.arrays) == (head == "tight-frame")
    assert main([str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert "etf_distance" not in capsys.readouterr().out
    assert report([str(tmp_path / "run"), "--to", str(tmp_path / "report.html")]) == 0
    assert "No simplex ETF exists for so many classes in so few dimensions" in capsys.readouterr().out
    assert "geometry not drawn" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_measurement_is_reused_until_the_checkpoint_changes(run: Path) -> None:
    measured = measure(run, "last", device="cpu")
    save_measurement(run, "last", measured)
    kept = saved_measurement(run, "last")
    assert kept is not None
    assert kept.figures == measured.figures
    assert kept.arrays.keys() == measured.arrays.keys()
    confusion = kept.confusion(kept.held_out)
    assert confusion is not None
    assert kept.held_out == "test"
    assert kept.confusion("train") is None
    assert confusion.matrix().trace() / confusion.images.sum() == pytest.approx(kept.figures["test_accuracy"])
    rows = "train_class_mean_rows"
    np.testing.assert_array_equal(kept.arrays[rows], measured.arrays[rows])
    before = (run / "measured-last.npz").stat().st_mtime - 10
    last = (run / "last.pt").read_bytes()
    try:
        (run / "last.pt").write_bytes((run / "recalibrated.pt").read_bytes())
        os.utime(run / "last.pt", (before, before))  # a clock that was set back does not make it older
        assert saved_measurement(run, "last") is None
    finally:
        (run / "last.pt").write_bytes(last)
    assert saved_measurement(run, "last") is not None
    save_measurement(run, "last", replace(measured, source=""))  # of an earlier version: by the time
    assert saved_measurement(run, "last") is not None
    os.utime(run / "measured-last.npz", (before - 10, before - 10))
    assert saved_measurement(run, "last") is None


def test_a_damaged_or_old_measurement_is_noted(tmp_path: Path) -> None:
    shutil.copytree(OLD_RUNS / "implicit-run", tmp_path / "run")
    (tmp_path / "run" / "measured-best.npz").write_bytes(b"PK nonsense")
    for checkpoint, found in (("last", "has format 1: expected 2"), ("best", "is damaged or of another kind")):
        os.utime(tmp_path / "run" / f"{checkpoint}.pt", (0, 0))
        notes: list[str] = []
        assert saved_measurement(tmp_path / "run", checkpoint, notes.append) is None
        (note,) = notes
        assert found in note
        assert note.endswith("; measured again")
        with pytest.raises(MeasurementError, match=found):
            read_measurement(tmp_path / "run" / f"measured-{checkpoint}.npz")


@pytest.mark.parametrize("head", ["implicit", "fixed", "learned"])
def test_a_run_of_version_0_1_0_is_measured(head: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(OLD_RUNS / f"{head}-run", folder)
    assert main([str(folder), "--quiet", "--device", "cpu"]) == 0
    kept = read_measurement(folder / "measured-last.npz")
    row = read_run(folder).rows[-1]
    assert kept.epoch == row["epoch"]
    for key in ("train_nc1", "test_accuracy", "test_cosine_margin"):
        assert kept.figures[key] == pytest.approx(row[key], rel=1e-4), key


def test_command(run: Path, run_with_val: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(run_with_val), "--json", str(tmp_path / "figures.json")]) == 0
    table = capsys.readouterr().out
    assert "best (epoch 1)" in table
    assert "last (epoch 1)" in table
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["best"]["train_nc1"] > 0
    by_class = figures["last"].pop("class_accuracy")
    assert not any(math.isnan(value) for value in figures["last"].values())
    assert by_class.keys() == {"val", "test"}
    assert list(by_class["test"]) == [str(k) for k in range(10)]
    assert f"\n{read_run(run_with_val).result}.pt, test images:\n  least accurate classes: " in table
    assert main([str(run)]) == 0  # without validation data there is no best checkpoint
    table = capsys.readouterr().out
    assert "best" not in table
    assert table.splitlines()[0].split() == ["last", "(epoch", "1)", "recalibrated", "(epoch", "1)"]
    assert table.splitlines()[1].split() == ["train", "test"] * 2
    assert main([str(run), "--checkpoint", "recalibrated", "--quiet", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["recalibrated"]["epoch"] == 1


def test_quiet(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--checkpoint", "last", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("module", ["etf_measure", "etf_report"])
@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_load_no_library(module: str, flag: str) -> None:
    script = f"""
import sys
from nearest_etf.torchport.training.{module} import main
try:
    main([{flag!r}])
except SystemExit as stopped:
    assert stopped.code == 0
assert not {{"numpy", "scipy", "torch", "matplotlib", "jinja2"}} & set(sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    name = module.replace("_", "-")
    assert told == f"{name} {nearest_etf.__version__}\n" if flag == "--version" else f"usage: {name}" in told


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["no/such/run"], "no/such/run is not a run folder"),
        (["."], "is not a run folder"),
        (["run", "--checkpoint", "first"], "invalid choice: 'first'"),
        (["run", "--check", "last"], "did you mean '--checkpoint'?"),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], found: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(arguments)
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    assert status == 2
    error = capsys.readouterr().err
    assert error.startswith("etf-measure: ")
    assert found in error
    assert error.count("\n") == 1


def test_a_missing_checkpoint_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--checkpoint", "best"]) == 2
    assert "has no best.pt: it has last, recalibrated" in capsys.readouterr().err
