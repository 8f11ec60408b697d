"""`etf-export` from a run folder: its files, its output and its errors."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nearest_etf.export import ExportError, OnnxClassifier
from nearest_etf.export.etf_export import main
from nearest_etf.export.etf_predict import main as predict
from nearest_etf.export.from_run import evenly, load_trained
from nearest_etf.torchport.training.run.checkpoint import save_checkpoint
from nearest_etf.torchport.training.run.reading import read_run
from nearest_etf.torchport.training.run.settings import load_recipe
from nearest_etf.torchport.training.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One epoch of the digits recipe."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    train(load_recipe("digits", {"head": "implicit", "epochs": 1, "num_features": 32}), folder)
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """The run's model, and twelve samples."""
    path = run.parent / "model.onnx"
    assert main([str(run), "--to", str(path), "--samples", "12", "--licence", "CC0-1.0"]) == 0
    return path


def test_the_metadata_name_the_run(run: Path, exported: Path) -> None:
    found = OnnxClassifier(exported).metadata
    assert (found["data"], found["recipe"], found["backbone"], found["licence"]) == (
        "digits",
        "digits",
        "small-cnn",
        "CC0-1.0",
    )
    assert found["head"]["kind"] == "implicit"
    assert len(found["checkpoint_sha256"]) == 64
    metrics = json.loads((run / "recalibrated.json").read_text())["exact"]  # better on training data: the result
    assert (found["checkpoint"], found["epoch"], found["val_accuracy"]) == ("recalibrated", 1, None)
    assert found["test_accuracy"] == metrics["test_accuracy"]
    check = json.loads(exported.with_suffix(".json").read_text(encoding="utf-8"))["check"]
    assert check["accuracy_onnx"] == pytest.approx(metrics["test_accuracy"])


def test_samples_are_unchanged_held_out_images(run: Path, exported: Path) -> None:
    test = load_trained(run).data.splits()["test"]
    files = sorted((exported.parent / "model-samples").iterdir())
    assert len(files) == 12
    for file in files:
        index, label = map(int, file.stem.split("-"))
        assert label == test.labels[index]
        np.testing.assert_array_equal(np.asarray(Image.open(file)), test.images[index : index + 1][0, ..., 0])


def test_predict_reads_what_export_wrote(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict([str(exported), str(exported.parent / "model-samples"), "--score"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 12
    assert "of 12 right" in err


def test_a_check_is_repeated(run: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(exported), "--run", str(run), "--check-images", "100"]) == 0
    assert "100 images" in capsys.readouterr().out


def test_check_of_another_run_s_file_fails_with_code_1(
    run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    train(load_recipe("digits", {"head": "fixed", "epochs": 1, "num_features": 32, "seed": 1}), other)
    capsys.readouterr()
    assert main(["check", str(exported), "--run", str(other)]) == 1
    out, err = capsys.readouterr()
    assert "FAILED: a logit is off by" in out
    assert err.startswith("etf-export: ")
    assert "differs from" in err
    assert err.count("\n") == 1
    assert main(["check", str(exported), "--run", str(other), "--quiet"]) == 1
    assert capsys.readouterr() == ("", err)


@pytest.mark.parametrize("precision", ["fp16", "fp64"])
def test_head_only(run: Path, tmp_path: Path, precision: str) -> None:
    path = tmp_path / "head.onnx"
    assert main([str(run), "--to", str(path), "--head-only", "--precision", precision]) == 0
    classifier = OnnxClassifier(path)
    assert classifier.metadata["kind"] == "head"
    assert classifier.input_shape == (32,)
    assert classifier.input_dtype == {"fp16": np.float16, "fp64": np.float64}[precision]


def test_a_run_with_a_linear_head(tmp_path: Path) -> None:
    train(load_recipe("digits", {"head": "linear", "epochs": 1, "num_features": 16}), tmp_path / "run")
    path = tmp_path / "model.onnx"
    assert main([str(tmp_path / "run"), "--to", str(path)]) == 0
    head = OnnxClassifier(path).metadata["head"]
    assert (head["kind"], head["temperature"], head["num_features"]) == ("linear", None, 16)
    assert main(["check", str(path), "--run", str(tmp_path / "run"), "--quiet"]) == 0


@pytest.mark.parametrize(("folder", "split"), [("run", "test"), ("validated", "val")])
def test_calibrated_probabilities_are_what_predict_prints(
    request: pytest.FixtureRequest, folder: str, split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, path = request.getfixturevalue(folder), tmp_path / "model.onnx"
    capsys.readouterr()
    assert main([str(source), "--to", str(path), "--calibrate", "--samples", "5", "--opset", "20"]) == 0
    out = capsys.readouterr().out
    found = OnnxClassifier(path)
    entry = found.metadata["calibration"]
    assert f"logits × {entry['factor']:.4g}, fitted on {entry['images']} {split} images" in out
    assert f"error {100 * entry['ece_before']:.2f} % before, {100 * entry['ece_after']:.2f} % after" in out
    assert entry["nll_after"] < entry["nll_before"]
    assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["calibration"]["split"] == split
    held_out = load_trained(source).data.splits()[split]
    answer = found.predict(held_out.images[np.arange(len(held_out))])
    nll = -np.log(answer.probabilities[np.arange(len(held_out)), held_out.labels]).mean()
    assert nll == pytest.approx(entry["nll_after"], abs=1e-4)
    pictures = sorted((tmp_path / "model-samples").iterdir())
    assert predict([str(path), str(pictures[0])]) == 0
    p = found.predict(found.read_photo(pictures[0])[None]).probabilities.max()
    assert f"{100 * p:.2f} %" in capsys.readouterr().out
    assert main(["check", str(path), "--run", str(source), "--quiet"]) == 0


def test_a_calibration_needs_images_outside_the_training_split(run: Path) -> None:
    trained = load_trained(run)
    bare = dataclasses.replace(trained, data=dataclasses.replace(trained.data, val=None, test=None))
    with pytest.raises(ExportError, match="no validation or test images: train with --val-fraction"):
        bare.calibration()


def test_quiet_prints_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "head.onnx"
    assert main([str(run), "--to", str(path), "--head-only", "--quiet", "--samples", "3"]) == 0
    assert main(["check", str(path), "--run", str(run), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert len(list((tmp_path / "head-samples").iterdir())) == 3


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs with validation images held out."""
    folder = tmp_path_factory.mktemp("runs") / "validated"
    options = {"head": "implicit", "epochs": 3, "num_features": 16, "val_fraction": 0.1}
    train(load_recipe("digits", options), folder)
    return folder


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_file_is_checked_against_its_own_checkpoint(
    checkpoint: str, validated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "model.onnx")
    assert main([str(validated), "--to", path, "--checkpoint", checkpoint, "--quiet"]) == 0
    assert main(["check", path, "--run", str(validated)]) == 0
    assert f"{checkpoint}.pt" in capsys.readouterr().out


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_metrics_are_those_of_the_checkpoint_s_epoch(validated: Path, checkpoint: str) -> None:
    trained = load_trained(validated, checkpoint)
    rows = [json.loads(line) for line in (validated / "metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: row["val_accuracy"])
    row = rows[-1] if checkpoint == "last" else best
    found = trained.metadata
    assert (found["checkpoint"], found["epoch"]) == (checkpoint, row["epoch"])
    assert (found["val_accuracy"], found["test_accuracy"]) == (row["val_accuracy"], row["test_accuracy"])
    assert trained.split == "test"
    assert trained.name == f"{validated / checkpoint}.pt, epoch {row['epoch']}"
    assert trained.reason == ""


def test_the_run_s_result_is_exported_and_the_reason_printed(
    validated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(validated, tmp_path / "run")
    figures = json.loads((run / "recalibrated.json").read_text())
    del figures["seal"]
    best = max(row["val_accuracy"] for row in read_run(run).rows)
    for exact, checkpoint in ((best + 0.01, "recalibrated"), (best, "best")):
        figures["exact"]["val_accuracy"] = exact
        (run / "recalibrated.json").write_text(json.dumps(figures))
        assert main([str(run), "--to", str(tmp_path / "model.onnx"), "--overwrite"]) == 0
        out = capsys.readouterr().out
        assert OnnxClassifier(tmp_path / "model.onnx").metadata["checkpoint"] == checkpoint
        assert f"{checkpoint}.pt, epoch 3 ({read_run(run).reason}); checked on test images" in out
        assert f"{100 * exact:.2f} %" in out
        assert f"{100 * best:.2f} %" in out


def test_an_epoch_without_its_evaluation_is_finished(validated: Path, tmp_path: Path) -> None:
    run = shutil.copytree(validated, tmp_path / "run")
    contents = torch.load(run / "last.pt", weights_only=True)
    steps = contents["steps_per_epoch"]
    save_checkpoint(run / "last.pt", {**contents, "epoch": 3, "step": steps, "evaluated": False})
    (run / "metrics.jsonl").write_text("".join((run / "metrics.jsonl").read_text().splitlines(keepends=True)[:2]))
    trained = load_trained(run, "last")
    assert (trained.metadata["epoch"], trained.metadata["test_accuracy"]) == (3, None)
    assert trained.name.endswith("last.pt, epoch 3")


def test_an_unfinished_epoch_has_no_metrics(validated: Path, tmp_path: Path) -> None:
    run = shutil.copytree(validated, tmp_path / "run")
    contents = torch.load(run / "last.pt", weights_only=True)
    save_checkpoint(run / "last.pt", {**contents, "epoch": 3, "step": 2})
    trained = load_trained(run, "last")
    assert (trained.metadata["epoch"], trained.metadata["test_accuracy"]) == (2, None)
    assert trained.name.endswith("last.pt, epoch 3 (unfinished)")


@pytest.mark.parametrize(
    ("folders", "split", "size"),
    [(("train", "val", "test"), "test", 6), (("train", "val"), "val", 4), (("train",), "train", 20)],
)
def test_the_check_uses_held_out_images_if_there_are_any(
    folders: tuple[str, ...], split: str, size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for folder, count in zip(folders, (10, 2, 3), strict=False):
        for name in ("cat", "dog"):
            (tmp_path / "data" / folder / name).mkdir(parents=True)
            for k in range(count):
                pixels = rng.integers(0, 256, (12, 12, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / folder / name / f"{k}.png")
    settings = {
        **{"data": str(tmp_path / "data"), "image_size": 8, "backbone": "small-cnn", "crop_padding": 0, "workers": 0},
        **{"num_features": 8, "head": "fixed", "epochs": 1, "batch_size": 4, "val_fraction": 0.0},
    }
    train(load_recipe("digits", settings), tmp_path / "run")
    capsys.readouterr()
    assert main([str(tmp_path / "run"), "--to", str(tmp_path / "model.onnx")]) == 0
    out, err = capsys.readouterr()
    assert f"checked on {split} images" in out
    assert f", {size} images at batch" in out
    assert ("checked on training images" in err) == (split == "train")
    classifier = OnnxClassifier(tmp_path / "model.onnx")
    assert classifier.class_names == ("cat", "dog")
    expected = ("best" if split != "train" else "last") if "val" in folders else "last"
    assert classifier.metadata["checkpoint"] == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "--to", "{file}"], "model.onnx exists: choose another name"),
        (["{run}", "--to", "{folder}/x/model.onnx"], "is not a folder"),
        (["{run}", "--to", "{folder}/model.pt"], "does not end in .onnx"),
        (["{folder}/nothing", "--to", "{folder}/a.onnx"], "nothing is not a run folder: it has no config.json"),
        (["{broken}", "--to", "{folder}/a.onnx"], "last.pt is damaged"),
        (["{run}", "--to", "{folder}/a.onnx", "--checkpoint", "best"], "has no checkpoint 'best': choose one of last"),
        (["{run}", "--to", "{folder}/a.onnx", "--head-only", "--float-input"], "leave out --float-input and"),
        (["{run}", "--to", "{folder}/a.onnx", "--head-only", "--precision", "int8"], "--head-only exports a head"),
        (["{run}", "--to", "{folder}/a.onnx", "--precision", "fp64"], "--precision fp64 needs --head-only"),
        (["{run}", "--to", "{folder}/a.onnx", "--check-images", "0"], "--check-images is 0: expected at least 1"),
        (["{run}", "--to", "{folder}/a.onnx", "--samples", "-1"], "--samples is -1"),
        (["{run}", "--to", "{folder}/a.onnx", "--opset", "17"], "opset is 17: expected 18 to 25"),
        (["{run}", "--to", "{folder}/b.onnx", "--samples", "3"], "b-samples exists"),
        (["{run}", "--to", "{folder}/b.onnx", "--samples", "3", "--overwrite"], "contains more than sample images"),
        (["check", "{folder}/nothing.onnx", "--run", "{run}"], "nothing.onnx is missing"),
        (["check", "{file}", "--run", "{run}", "--check-images", "0"], "--check-images is 0"),
    ],
)
def test_errors_are_one_line_and_leave_no_files(
    run: Path, exported: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((run / "config.json").read_bytes())
    (broken / "last.pt").write_bytes((run / "last.pt").read_bytes()[:2000])
    (tmp_path / "b-samples").mkdir()
    (tmp_path / "b-samples" / "thesis.tex").touch()
    before = sorted(tmp_path.rglob("*"))
    paths = {"run": run, "file": exported, "folder": tmp_path, "broken": broken}
    assert main([word.format(**paths) for word in words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("words", [[], ["run"], ["run", "--to", "a.onnx", "--precision", "int4"], ["check", "a.onnx"]])
def test_bad_flags_end_with_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("total", "count"), [(10, 3), (10, 10), (3, 10), (7, 1), (5, 0)])
def test_evenly_spread_indices_are_valid_and_distinct(total: int, count: int) -> None:
    chosen = evenly(total, count)
    assert len(set(chosen.tolist())) == min(total, count)
    assert all(0 <= index < total for index in chosen)
