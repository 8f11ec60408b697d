"""Files and runs of version 0.1.0 still load and predict, and can be checked and exported again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nearest_etf.common.photo import exact_pixels
from nearest_etf.common.photo_files import find_images
from nearest_etf.export import OnnxClassifier
from nearest_etf.export.etf_export import main as export
from nearest_etf.export.etf_predict import main as predict
from nearest_etf.export.from_run import load_trained

WRITTEN = Path(__file__).parents[1] / "fixtures" / "written-by-0.1.0"
RUNS = ("implicit-run", "learned-run", "fixed-run")


def test_a_model_predicts_as_in_0_1_0(capsys: pytest.CaptureFixture[str]) -> None:
    classifier = OnnxClassifier(WRITTEN / "model.onnx")
    assert classifier.verified
    assert classifier.metadata["versions"]["nearest-etf"] == "0.1.0"
    paths = find_images([WRITTEN / "model-samples"]).paths
    images = np.stack([exact_pixels(path, (8, 8, 1)) for path in paths])
    assert [path.name for path in paths] == ["0-0.png", "180-6.png", "270-2.png", "90-2.png"]
    assert classifier.predict(images).labels.tolist() == [0, 1, 1, 8]  # the labels of 0.1.0
    assert predict([str(WRITTEN / "model.onnx"), str(WRITTEN / "model-samples"), "--format", "json", "--score"]) == 0
    out, err = capsys.readouterr()
    assert [row["label"] for row in json.loads(out)] == [0, 1, 1, 8]
    assert "1 of 4 right" in err


def test_a_head_predicts() -> None:
    classifier = OnnxClassifier(WRITTEN / "head.onnx")
    assert classifier.image_shape is None
    assert classifier.predict(np.eye(16, dtype=np.float32)).logits.shape == (16, 10)


@pytest.mark.parametrize("name", ["model.onnx", "head.onnx"])
def test_a_file_is_checked_against_its_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", str(WRITTEN / name), "--run", str(WRITTEN / "implicit-run"), "--check-images", "50"]
    assert export(words) == 0
    assert "all bounds hold" in capsys.readouterr().out


@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_exported_again(run: str, tmp_path: Path) -> None:
    path = tmp_path / "head.onnx"
    assert export([str(WRITTEN / run), "--to", str(path), "--head-only", "--check-images", "50"]) == 0
    found = OnnxClassifier(path).metadata
    assert found["head"]["kind"] == run.removesuffix("-run")
    assert ("certificate_gap" in found["certificate"]) == (run != "learned-run"), (
        "class means are found under their earlier name"
    )
    if run == "implicit-run":
        before = json.loads((WRITTEN / "head.json").read_text(encoding="utf-8"))["certificate"]
        shared = {
            name: found["certificate"][name] for name in before
        }  # without the entries of FrameGeometry, which are newer
        assert shared == pytest.approx(before, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize(
    ("run", "checkpoint", "epoch", "test_accuracy"),
    [
        ("learned-run", "best", 1, 0.15555555555555556),
        ("learned-run", "last", 2, 0.14444444444444443),
        ("implicit-run", "best", 2, 0.5527777777777778),
        ("implicit-run", "recalibrated", 2, 0.6805555555555556),
    ],
)
def test_figures_are_those_of_the_checkpoint(run: str, checkpoint: str, epoch: int, test_accuracy: float) -> None:
    trained = load_trained(WRITTEN / run, checkpoint)
    assert (trained.metadata["epoch"], trained.metadata["test_accuracy"]) == (epoch, test_accuracy)
    assert trained.metadata["val_accuracy"] is None
