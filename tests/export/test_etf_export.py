"""`etf-export` from a run folder: what it writes, what it says, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nearest_etf.export import OnnxClassifier
from nearest_etf.export.etf_export import main
from nearest_etf.export.from_run import evenly, load_run
from nearest_etf.export.predict import main as predict
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


def test_the_file_tells_where_it_comes_from(run: Path, exported: Path) -> None:
    said = OnnxClassifier(exported).metadata
    assert (said["data"], said["recipe"], said["backbone"], said["licence"]) == (
        "digits",
        "digits",
        "small-cnn",
        "CC0-1.0",
    )
    assert said["head"]["kind"] == "implicit"
    assert len(said["checkpoint_sha256"]) == 64
    metrics = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert said["test_accuracy"] == metrics["test_accuracy"]
    check = json.loads(exported.with_suffix(".json").read_text(encoding="utf-8"))["check"]
    assert check["accuracy_onnx"] == pytest.approx(metrics["test_accuracy"])


def test_samples_are_held_out_images_as_they_are(run: Path, exported: Path) -> None:
    data = load_run(run).data
    files = sorted((exported.parent / "model-samples").iterdir())
    assert len(files) == 12
    for file in files:
        index, label = map(int, file.stem.split("-"))
        assert label == data.test.labels[index]
        np.testing.assert_array_equal(np.asarray(Image.open(file)), data.test.images[index : index + 1][0, ..., 0])


def test_predict_reads_what_export_wrote(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict([str(exported), str(exported.parent / "model-samples"), "--score"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 12
    assert "of 12 right" in err


def test_check_on_demand(run: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(exported), "--run", str(run), "--check-images", "100"]) == 0
    assert "100 images" in capsys.readouterr().out


def test_check_of_another_run_s_file_fails_with_code_1(
    run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    train(load_recipe("digits", {"head": "fixed", "epochs": 1, "num_features": 32, "seed": 1}), other)
    assert main(["check", str(exported), "--run", str(other)]) == 1
    assert "FAILED: a logit is off by" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["fp16", "fp64"])
def test_head_only(run: Path, tmp_path: Path, precision: str) -> None:
    path = tmp_path / "head.onnx"
    assert main([str(run), "--to", str(path), "--head-only", "--precision", precision]) == 0
    classifier = OnnxClassifier(path)
    assert classifier.metadata["kind"] == "head"
    assert classifier.input_shape == (32,)
    assert classifier.input_dtype == {"fp16": np.float16, "fp64": np.float64}[precision]


def test_the_last_checkpoint(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "head.onnx"
    assert main([str(run), "--to", str(path), "--head-only", "--checkpoint", "last"]) == 0
    assert OnnxClassifier(path).metadata["test_accuracy"] is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "--to", "{file}"], "model.onnx exists: choose another name"),
        (["{run}", "--to", "{folder}/x/model.onnx"], "is no folder"),
        (["{run}", "--to", "{folder}/model.pt"], "does not end in .onnx"),
        (["{folder}/nothing", "--to", "{folder}/a.onnx"], "best.pt is missing"),
        (["{broken}", "--to", "{folder}/a.onnx"], "damaged"),
        (["{run}", "--to", "{folder}/a.onnx", "--head-only", "--float-input"], "neither --float-input nor"),
        (["{run}", "--to", "{folder}/a.onnx", "--head-only", "--precision", "int8"], "--head-only takes features"),
        (["{run}", "--to", "{folder}/a.onnx", "--precision", "fp64"], "--precision fp64 is for --head-only"),
        (["{run}", "--to", "{folder}/a.onnx", "--check-images", "0"], "--check-images is 0: expected at least 1"),
        (["{run}", "--to", "{folder}/a.onnx", "--samples", "-1"], "--samples is -1"),
        (["{run}", "--to", "{folder}/b.onnx", "--samples", "3"], "b-samples exists"),
        (["{run}", "--to", "{folder}/b.onnx", "--samples", "3", "--overwrite"], "holds more than sample images"),
        (["check", "{folder}/nothing.onnx", "--run", "{run}"], "cannot read"),
        (["check", "{file}", "--run", "{run}", "--check-images", "0"], "--check-images is 0"),
    ],
)
def test_refuses_in_one_line_and_leaves_nothing(
    run: Path, exported: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "best.pt").write_bytes((run / "best.pt").read_bytes()[:2000])
    (tmp_path / "b-samples").mkdir()
    (tmp_path / "b-samples" / "thesis.tex").touch()
    before = sorted(tmp_path.rglob("*"))
    places = {"run": run, "file": exported, "folder": tmp_path, "broken": broken}
    assert main([word.format(**places) for word in words]) == 2
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
