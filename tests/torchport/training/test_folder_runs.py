"""Runs on a folder of images, which is moved, renamed and reduced in between; and signals to their processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nearest_etf.export import OnnxClassifier
from nearest_etf.export.etf_export import main as etf_export
from nearest_etf.torchport.training.etf_measure import main as etf_measure
from nearest_etf.torchport.training.etf_train import main as etf_train
from nearest_etf.torchport.training.run.checkpoint import load_checkpoint
from nearest_etf.torchport.training.run.reading import read_rows, read_run

Command = Callable[[list[str]], int]
CLASSES = ("cat", "dog", "emu")
FLAGS = ["--backbone", "small-cnn", "--image-size", "16", "--batch-size", "8", "--num-features", "8", "--lr", "0.01"]
FLAGS += ["--workers", "0", "--epochs", "2", "--head", "implicit", "--schedule", "none", "--warmup-epochs", "0"]
TIMES = ("seconds", "images_per_second", "solver_milliseconds")


def make_photos(folder: Path, count: int = 10) -> Path:
    """Photos of three classes that differ in colour."""
    rng = np.random.default_rng(0)
    for k, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 120, (20, 24, 3))
            pixels[..., k] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten photos of each class."""
    return make_photos(tmp_path / "photos")


@pytest.fixture
def run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two epochs on them, started with a relative path; one is resumed from another directory."""
    monkeypatch.chdir(tmp_path)
    assert etf_train(["--data", "photos", *FLAGS, "--quiet"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "runs" / "photos-implicit-seed0"


def each_command(run: Path, *words: str) -> list[tuple[Command, list[str]]]:
    """Resuming, measuring and exporting a run."""
    return [
        (etf_train, ["--resume", "--output", str(run), *words]),
        (etf_measure, [str(run), *words]),
        (etf_export, [str(run), "--to", "model.onnx", "--overwrite", *words]),
    ]


def test_the_default_output_names_the_data_and_the_run_keeps_its_location(run: Path, photos: Path) -> None:
    found, kept = read_run(run), load_checkpoint(run / "last.pt")["data"]
    assert found.settings["data"] == found.config["data"]["path"] == kept["path"] == str(photos)
    assert found.data_name == "photos"
    assert tuple(kept["class_names"]) == found.class_names == CLASSES
    assert kept["train_sha256"] == found.config["data"]["train_sha256"]
    assert kept["transform"]["crop"] <= 1


def test_a_run_resumes_from_any_working_directory(run: Path) -> None:
    for command, words in each_command(run):
        assert command(words) == 0


def test_a_run_resumes_after_its_data_have_moved(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = shutil.move(photos, photos.with_name("renamed"))
    for command, words in each_command(run):
        assert command(words) == 2
        error = capsys.readouterr().err
        assert f"no such folder: {photos}: name the folder of images, or its new location, with --data FOLDER" in error
    for command, words in each_command(run, "--data", str(moved)):
        assert command(words) == 0
        assert "has changed since" not in capsys.readouterr().err
    assert read_run(run).settings["data"] == str(moved)
    for command, words in each_command(run):
        assert command(words) == 0  # the resumed run has kept the new place


def test_the_exported_file_names_the_data_and_never_its_path(run: Path, tmp_path: Path) -> None:
    assert etf_export([str(run), "--to", str(tmp_path / "model.onnx"), "--quiet"]) == 0
    classifier = OnnxClassifier(tmp_path / "model.onnx")
    assert (classifier.metadata["data"], classifier.class_names) == ("photos", CLASSES)
    for file in (tmp_path / "model.onnx", tmp_path / "model.json"):
        assert str(tmp_path).encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda photos: (photos / "cat").rename(photos / "zebra-cat"), "'cat' is missing, 'zebra-cat' is new"),
        (lambda photos: shutil.copytree(photos / "cat", photos / "fox"), "'fox' is new"),
        (lambda photos: shutil.rmtree(photos / "cat"), "'cat' is missing"),
    ],
)
def test_a_changed_class_list_is_refused_with_the_differences(
    run: Path, photos: Path, change: Callable[[Path], object], found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(photos)
    before = {file: file.read_bytes() for file in run.iterdir() if file.is_file()}
    for command, words in each_command(run):
        assert command(words) == 2
        error = capsys.readouterr().err
        assert f"photos has other classes than the run was trained on: {found}" in error
        assert error.count("\n") == 1
    assert {file: file.read_bytes() for file in run.iterdir() if file.is_file()} == before
    assert not Path("model.onnx").exists()


def test_changed_images_are_reported(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in CLASSES:
        (photos / name / "3.png").unlink()
    for command, words in reversed(each_command(run)):  # a resumed run takes the images as they are by then
        assert command(words) == 0
        error = capsys.readouterr().err
        assert "photos has changed since the run was trained: other training images (21, 24 then)" in error
        assert "held-out images may include images that it was trained on" in error
    assert read_run(run).config["data"]["train_size"] == 21


def test_a_resumed_run_may_change_only_settings_without_effect_on_results(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--resume", "--output", str(run)]
    assert etf_train([*words, "--workers", "1"]) == 0
    assert read_run(run).settings["workers"] == 1
    assert etf_train([*words, "--epochs", "3"]) == 0
    assert [row["epoch"] for row in read_rows(run)] == [1, 2, 3]
    assert etf_train([*words]) == 0  # without a flag the run's own epochs
    capsys.readouterr()
    for flag, value in (("--epochs", "2"), ("--batch-size", "6"), ("--head", "fixed"), ("--data", "digits")):
        assert etf_train([*words, flag, value]) == 2
        name = flag.removeprefix("--").replace("-", "_")
        assert f"was trained with {name} = " in capsys.readouterr().err


def test_config_json_repeats_a_run(run: Path, tmp_path: Path) -> None:
    assert etf_train([str(run / "config.json"), "--output", str(tmp_path / "again"), "--quiet"]) == 0
    assert read_run(tmp_path / "again").settings == read_run(run).settings
    rows = [
        [{k: v for k, v in row.items() if k not in TIMES} for row in read_rows(r)] for r in (run, tmp_path / "again")
    ]
    assert rows[0] == rows[1]


def test_other_json_files_are_refused_as_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert etf_train([str(tmp_path / "config.json"), "--output", str(tmp_path / "run")]) == 2
    assert "expected the config.json of a run of etf-train" in capsys.readouterr().err


def test_without_git_runs_start_and_are_replaced(run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(photos))
    command = ["--data", str(photos), *FLAGS, "--epochs", "1", "--output", str(run), "--overwrite", "--quiet"]
    assert etf_train(command) == 0
    assert read_run(run).config["provenance"]["commit"] is None
    assert len(read_rows(run)) == 1


@pytest.mark.parametrize("flags", [["--batch-size", "1000"], ["--data", "./nowhere"], ["--device", "abacus"]])
def test_a_run_that_cannot_begin_replaces_nothing(run: Path, photos: Path, flags: list[str]) -> None:
    before = {file: file.read_bytes() for file in run.iterdir() if file.is_file()}
    assert etf_train(["--data", str(photos), *FLAGS, "--output", str(run), "--overwrite", *flags]) == 2
    assert {file: file.read_bytes() for file in run.iterdir() if file.is_file()} == before
    assert [path.name for path in run.parent.iterdir()] == [run.name]


def test_the_recalibrated_checkpoint_is_measured_and_exported_as_announced(run: Path, tmp_path: Path) -> None:
    exact = json.loads((run / "recalibrated.json").read_text())["exact"]
    figures = tmp_path / "figures.json"
    assert etf_measure([str(run), "--checkpoint", "recalibrated", "--quiet", "--json", str(figures)]) == 0
    measured = json.loads(figures.read_text())["recalibrated"]
    assert {name: measured[name] for name in exact} == pytest.approx(exact, rel=1e-5, abs=1e-8)
    words = ["--checkpoint", "recalibrated", "--to", str(tmp_path / "model.onnx"), "--quiet"]
    assert etf_export([str(run), *words]) == 0
    found = OnnxClassifier(tmp_path / "model.onnx").metadata
    assert (found["checkpoint"], found["epoch"], found["val_accuracy"]) == ("recalibrated", 2, exact["val_accuracy"])


def test_a_broken_image_ends_a_run_only_with_strict_images(
    photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in CLASSES:
        (photos / name / "3.png").write_bytes(b"no picture")
    command = ["--data", str(photos), *FLAGS, "--output"]
    assert etf_train([*command, str(tmp_path / "strict"), "--strict-images"]) == 2
    assert "3.png cannot be read" in capfd.readouterr().err.splitlines()[-1]
    assert etf_train([*command, str(tmp_path / "run")]) == 0
    assert len(read_rows(tmp_path / "run")) == 2


def test_warnings_about_files_are_logged(photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "3.png").write_bytes(b"no image")
    (photos / "cat" / "notes.txt").touch()
    with pytest.warns(UserWarning, match="cannot be read") as shown:
        assert etf_train(["--data", str(photos), *FLAGS, "--quiet", "--output", str(tmp_path / "run")]) == 0
    log = (tmp_path / "run" / "log.txt").read_text().splitlines()
    warned = [line for line in log if line.startswith("warning: ")]
    assert warned == [f"warning: {warning.message}" for warning in shown]
    assert warned[0].endswith("1 file has no known image suffix: 1 .txt")
    assert any("3.png cannot be read" in line for line in warned[1:])


WAITS = 120  # seconds


def started(photos: Path, output: Path, *flags: str) -> subprocess.Popen[str]:
    """A run in its own process group."""
    module = [sys.executable, "-m", "nearest_etf.torchport.training.etf_train"]
    command = [*module, "--data", str(photos), *FLAGS, "--output", str(output), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # which last bits depend on
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait until the condition holds, while the process lives."""
    for _ in range(100 * WAITS):
        if condition():
            return
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    raise TimeoutError


@pytest.mark.parametrize(
    ("number", "where"),
    [(signal.SIGTERM, "training"), (signal.SIGTERM, "evaluation"), (signal.SIGINT, "training")],
)
def test_a_signal_to_the_whole_group_loses_nothing_but_the_unfinished_step(
    tmp_path: Path, number: signal.Signals, where: str
) -> None:
    photos = make_photos(tmp_path / "photos", 40)
    output, flags = tmp_path / "run", ["--workers", "2", "--epochs", "300"]
    process = started(photos, output, *flags)
    try:
        # last.pt comes before the evaluation of epoch 1; the row of epoch 2 before the training of epoch 3.
        wait_for(lambda: (output / "last.pt").exists() if where == "evaluation" else len(rows(output)) > 1, process)
        if number == signal.SIGTERM:
            process.terminate()  # `timeout` sends one to the process, and another one to its group
        os.killpg(process.pid, number)
        _, error = process.communicate(timeout=WAITS)
    finally:
        process.kill()
    assert process.returncode == 128 + number, error
    assert "Traceback" not in error
    assert error.rstrip().endswith(f"{number.name}: saved; resume with: etf-train --resume --output {output}")
    saved = load_checkpoint(output / "last.pt")
    epochs = len(rows(output)) + 2
    shorter = [str(output / "config.json"), "--workers", "0", "--quiet", "--no-recalibrate", "--epochs"]
    assert etf_train([*shorter, str(epochs), "--output", str(tmp_path / "whole")]) == 0
    config = json.loads((output / "config.json").read_text())
    config["settings"]["epochs"] = saved["settings"]["epochs"] = epochs  # of three hundred, the first ones
    del config["seal"]
    (output / "config.json").write_text(json.dumps(config))
    assert etf_train(["--resume", "--workers", "0", "--quiet", "--no-recalibrate", "--output", str(output)]) == 0
    timeless = [
        [{k: v for k, v in row.items() if k not in TIMES} for row in rows(r)] for r in (output, tmp_path / "whole")
    ]
    assert timeless[0] == timeless[1]


def rows(run: Path) -> list[dict[str, float]]:
    """A run's metrics, if it has started."""
    return read_rows(run) if run.exists() else []


def test_a_run_whose_process_was_killed_in_an_evaluation_loses_no_row(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 40)
    process = started(photos, tmp_path / "run", "--workers", "2")
    try:
        wait_for((tmp_path / "run" / "last.pt").exists, process)
        process.kill()
        process.communicate(timeout=WAITS)
    finally:
        process.kill()
    assert etf_train(["--resume", "--quiet", "--output", str(tmp_path / "run")]) == 0
    found = rows(tmp_path / "run")
    assert [row["epoch"] for row in found] == [1, 2]
    assert all("val_accuracy" in row and row["images_per_second"] > 0 for row in found)
