"""OOD scores: those of files against NumPy's and torch's, their thresholds, those of runs, and `etf-predict`."""

from __future__ import annotations

import csv
import io
import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from nearest_etf import torchport
from nearest_etf.export import (
    CheckError,
    ExportError,
    InputError,
    OnnxClassifier,
    OodScore,
    check_onnx,
    export_head_onnx,
    export_onnx,
    fit_ood,
)
from nearest_etf.export.etf_export import fitted_ood
from nearest_etf.export.etf_export import main as export
from nearest_etf.export.etf_predict import main as predict
from nearest_etf.export.freeze import freeze
from nearest_etf.export.from_run import load_trained
from nearest_etf.export.graph import head_model
from nearest_etf.export.model_file import OOD_SCORE
from nearest_etf.export.ood import SCORES, ood_of_run, recorded_ood
from nearest_etf.reference import mahalanobis_score, nci_score, neco_score
from nearest_etf.torchport import Classifier, FixedETFHead, Head, LinearHead
from nearest_etf.torchport.training.data.split import Split
from nearest_etf.torchport.training.run.settings import load_recipe
from nearest_etf.torchport.training.train import train

K, D = 4, 9
HEADS: dict[str, Callable[[], Head]] = {
    "raw": lambda: LinearHead(D, K),
    "sphere": lambda: FixedETFHead(D, K, temperature=7.0),
}
Images = tuple[np.ndarray, np.ndarray]


def problem(seed: int, head: Head) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of four classes (200, d), labels, and OOD features (50, d), before normalisation."""
    rng = np.random.default_rng(seed)
    labels = np.arange(200) % K
    means, mixing = 3 * rng.standard_normal((K, D)), rng.standard_normal((D, D))
    features = np.maximum(means[labels] + rng.standard_normal((200, D)) @ mixing / 3, 0)
    features[:, -1] = 0  # a dead unit
    return features, labels, 3 * rng.standard_normal((50, D))


def seen(head: Head, features: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return head.normalise(torch.from_numpy(features)).double().numpy()


def constants(head: Head) -> tuple[np.ndarray, np.ndarray]:
    return head.weight.detach().double().numpy(), head.bias.detach().double().numpy()


def fitted(name: str, head: Head, seed: int = 0, **options: Any) -> OodScore:
    features, labels, _ = problem(seed, head)
    h = seen(head, features)
    return fit_ood(name, h[:160], labels[:160], h[160:], *constants(head), **options)


def run_head(head: Head, score: OodScore, features: np.ndarray, dtype: Any, opset: int) -> np.ndarray:
    frozen = replace(freeze(Classifier(nn.Flatten(), head)), ood=score)
    data = head_model(frozen, dtype, opset).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run([OOD_SCORE], {"features": features.astype(dtype)})[0]
    assert found.dtype == dtype
    return found


def by_formula(score: OodScore, h: np.ndarray, W: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The score of the reference, after comparison with torch's."""
    known = score.constants
    tensors = {key: torch.from_numpy(value) for key, value in known.items()}
    x, w, v = (torch.from_numpy(value) for value in (h, W, b))
    if score.name == "neco":
        both = neco_score(h, known["subspace"], known["centre"]), torchport.neco_score(x, **tensors)
    elif score.name == "nci":
        both = (
            nci_score(h, W, b, global_mean=known["global_mean"]),
            torchport.nci_score(x, w, v, global_mean=tensors["global_mean"]),
        )
    else:
        both = (
            mahalanobis_score(h, known["class_mean_rows"], known["covariance"]),
            torchport.mahalanobis_score(x, **tensors),
        )
    np.testing.assert_allclose(both[1].numpy(), both[0], rtol=1e-9, atol=1e-12)
    return both[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", SCORES)
def test_the_scores_of_file_numpy_and_torch_agree(name: str, kind: str, dtype: Any, seed: int) -> None:
    torch.manual_seed(seed)
    head = HEADS[kind]()
    score = fitted(name, head, seed)
    features, _, foreign = problem(seed, head)
    x = np.concatenate([features[160:], foreign, np.zeros((1, D))]).astype(dtype)
    expected = by_formula(score, seen(head, x), *constants(head))
    tolerance = 1e-5 if dtype == np.float32 else 1e-9
    for opset in (13, 18):
        found = run_head(head, score, x, dtype, opset)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * max(1.0, np.abs(expected[0])))


@pytest.mark.parametrize("name", ["neco", "nci"])
def test_the_score_in_half_precision_and_of_extreme_features(name: str) -> None:
    head = HEADS["sphere"]()
    score = fitted(name, head)
    features = problem(0, head)[0][160:]
    expected = score(seen(head, features), *constants(head))
    np.testing.assert_allclose(run_head(head, score, features, np.float16, 13), expected, atol=5e-3)
    for scale in (1e-30, 1e30):
        np.testing.assert_allclose(run_head(head, score, scale * features, np.float32, 18), expected, atol=1e-5)
    raw = HEADS["raw"]()
    at_centre = np.repeat(fitted(name, raw).constants["centre" if name == "neco" else "global_mean"][None], 2, axis=0)
    assert np.abs(run_head(raw, fitted(name, raw), at_centre, np.float64, 18)).max() == 0.0
    with pytest.raises(ExportError, match="mahalanobis exceeds float16"):
        run_head(head, fitted("mahalanobis", head), features, np.float16, 13)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("share", [0.5, 0.95, 1.0])
def test_the_threshold_accepts_the_share_and_ood_features_score_less(name: str, share: float) -> None:
    head = HEADS["sphere"]()
    score = fitted(name, head, share=share)
    features, _, foreign = problem(0, head)
    inside, outside = (score(seen(head, x), *constants(head)) for x in (features[160:], foreign))
    assert share <= np.mean(inside >= score.threshold) <= share + 1 / 40
    assert (score.images, score.share, score.split) == (40, share, "val")
    if name != "nci":  # depends on W, which is not trained here
        assert inside.mean() > outside.mean()
    assert score.describe()["larger"] == "more like the training images"


def digits_score(model: Any, digits: Images, name: str) -> OodScore:
    x = (torch.from_numpy(digits[0]).permute(0, 3, 1, 2).float() / 255 - 0.3) / 0.37
    with torch.no_grad():
        h = model.head.normalise(model.backbone(x)).double().numpy()
    return fit_ood(name, h[:1200], digits[1][:1200], h[1200:1400], *constants(model.head))


@pytest.mark.parametrize(("precision", "name"), [("fp32", "mahalanobis"), ("int8", "neco")])
def test_exported_with_its_score(model: Any, digits: Images, tmp_path: Path, precision: Any, name: str) -> None:
    score = digits_score(model, digits, name)
    held_out = digits[0][1400:]
    shown: dict[str, Any] = {"mean": [0.3], "std": [0.37], "ood": score, "check_images": held_out}
    path = tmp_path / "model.onnx"
    report = export_onnx(
        model, path, image_shape=(8, 8, 1), precision=precision, calibration_images=digits[0][:256], **shown
    )
    assert report.outputs[OOD_SCORE].relative < {"fp32": 1e-5, "int8": 0.2}[precision]
    assert OOD_SCORE in str(report)
    classifier = OnnxClassifier(path)
    assert classifier.ood == {**score.describe()}
    assert classifier.metadata["format"] == 2
    found = classifier.predict(held_out, batch_size=50)
    assert found.ood_scores is not None
    assert found.accepted is not None
    assert found.ood_scores.shape == found.accepted.shape == (397,)
    np.testing.assert_array_equal(found.accepted, found.ood_scores >= score.threshold)
    assert 0.85 < found.accepted.mean() < 1.0
    nothing = classifier.predict(held_out[:0]).ood_scores
    assert nothing is not None
    assert nothing.shape == (0,)
    if precision == "fp32":
        assert check_onnx(model, path, held_out, ood=score).passed
        moved = {**score.constants, "class_mean_rows": 1.1 * score.constants["class_mean_rows"]}
        report = check_onnx(model, path, held_out, ood=replace(score, constants=moved))
        assert any("OOD score is off" in failure for failure in report.failures)


def test_a_head_alone_and_a_file_without_a_score(
    model: Any, digits: Images, files: dict[str, Path], tmp_path: Path
) -> None:
    score = digits_score(model, digits, "neco")
    path = tmp_path / "head.onnx"
    export_head_onnx(model, path, mean=[0.3], std=[0.37], ood=score, check_images=digits[0][1400:])
    h = np.random.default_rng(0).standard_normal((5, 24)).astype(np.float32)
    found = OnnxClassifier(path).predict(h).ood_scores
    assert found is not None
    np.testing.assert_allclose(found, score(seen(model.head, h), *constants(model.head)), atol=1e-5)
    plain = OnnxClassifier(files["head-fp32"])
    assert plain.ood is None
    assert plain.metadata["format"] == 1
    assert plain.predict(h).ood_scores is None
    with pytest.raises(CheckError, match="no output ood_score"):
        check_onnx(model, files["fp32"], digits[0][1400:], ood=score)


FEATURES, LABELS, _ = problem(0, HEADS["raw"]())
W, B = np.eye(K, D), np.zeros(K)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_ood("knn", FEATURES, LABELS, FEATURES, W, B), "'knn': expected one of neco, nci, mahalanobis"),
        (lambda: fit_ood("neco", FEATURES, LABELS, FEATURES, W, B, share=0.0), r"share is 0.0: .* \(0, 1\]"),
        (lambda: fit_ood("nci", FEATURES, LABELS, FEATURES, np.eye(5, D), np.zeros(5)), "class 4 has no sample"),
        (lambda: fit_ood("neco", 0 * FEATURES, LABELS, FEATURES, W, B), "neco: all rows coincide"),
        (lambda: fit_ood("neco", FEATURES, LABELS, FEATURES[:0], W, B), "expected a non-empty matrix"),
        (lambda: fit_ood("neco", FEATURES[:, :3], LABELS, FEATURES[:, :3], W[:, :3], B), "span all 3 dimensions"),
        (lambda: fit_ood("mahalanobis", FEATURES[:4], LABELS[:4], FEATURES, W, B), "covariance is zero"),
    ],
)
def test_unusable_scores_are_refused(call: Callable[[], OodScore], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        call()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of the digits recipe, with validation images."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    settings = {"head": "implicit", "epochs": 2, "num_features": 32, "val_fraction": 0.2}
    train(load_recipe("digits", settings), folder, device="cpu")
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    path = run.parent / "model.onnx"
    assert export([str(run), "--to", str(path), "--ood", "--samples", "8"]) == 0
    return path


def test_the_threshold_of_a_run_comes_from_validation_images(run: Path, exported: Path) -> None:
    classifier, trained = OnnxClassifier(exported), load_trained(run)
    val = trained.data.val
    assert isinstance(val, Split)
    found = classifier.predict(val.images).accepted
    assert found is not None
    assert 0.95 <= found.mean() < 0.97
    assert classifier.ood is not None
    assert (classifier.ood["score"], classifier.ood["images"], classifier.ood["split"]) == ("neco", len(val), "val")
    noise = classifier.predict(np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), np.uint8)).accepted
    assert noise is not None
    assert noise.mean() < 0.95


def test_a_repeated_check_computes_the_score_again(
    run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(["check", str(exported), "--run", str(run)]) == 0
    assert "ood_score" in capsys.readouterr().out
    path = tmp_path / "wide.onnx"
    words = [str(run), "--to", str(path), "--head-only", "--quiet"]
    assert export([*words, "--ood", "--ood-score", "nci", "--ood-share", "0.8"]) == 0
    trained = load_trained(run)
    wide = OnnxClassifier(path).ood
    assert wide is not None
    assert wide == ood_of_run(trained, "nci", 0.8).describe()
    with pytest.raises(CheckError, match=r"OOD threshold 0.25, but the run's val images give 0\."):
        recorded_ood(trained, {**wide, "threshold": 0.25})
    assert recorded_ood(trained, None) is None


def test_missing_validation_images_are_noted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = load_trained(run)
    without = replace(trained, data=replace(trained.data, val=None))
    found = fitted_ood(without, Namespace(ood_score=None, ood_share=None, quiet=False))
    assert "note: the OOD threshold comes from training images" in capsys.readouterr().err
    assert (found.split, found.images, found.name) == ("train", len(trained.data.train), "neco")
    assert found.constants["subspace"].shape == (32, 9)
    assert fitted_ood(trained, Namespace(ood_score=None, ood_share=0.9, quiet=False)).share == 0.9
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ood-score", "nci"], "--ood-score needs --ood"),
        (["--ood-share", "0.9"], "--ood-share needs --ood"),
        (["--ood", "--ood-share", "0"], "--ood-share is 0.0: expected a number above 0"),
    ],
)
def test_contradictory_flags_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(["runs/none", "--to", "m.onnx", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def pictures(exported: Path) -> Path:
    """The exported samples, and noise."""
    folder = exported.parent / "model-samples"
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(folder / "noise-0.png")
    return folder


@pytest.mark.parametrize("style", ["table", "csv", "json", "jsonl"])
def test_the_command_prints_scores_and_verdicts(
    exported: Path, pictures: Path, style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict([str(exported), str(pictures), "--ood", "--format", style]) == 0
    out, err = capsys.readouterr()
    images = np.stack([np.asarray(Image.open(path))[..., None] for path in sorted(pictures.iterdir())])
    expected = OnnxClassifier(exported).predict(images)
    assert expected.ood_scores is not None
    assert expected.accepted is not None
    verdicts = ["accepted" if accepted else "unfamiliar" for accepted in expected.accepted]
    assert f"{verdicts.count('unfamiliar')} of 9 unfamiliar (neco below 0." in err
    if style == "table":
        ends = [f"  ood score {s:.3f}  {v}" for s, v in zip(expected.ood_scores, verdicts, strict=True)]
        assert all(line.endswith(end) for line, end in zip(out.splitlines(), ends, strict=True))
        return
    rows: Any
    if style == "csv":
        rows = list(csv.DictReader(io.StringIO(out)))
    else:
        rows = json.loads(out) if style == "json" else [json.loads(line) for line in out.splitlines()]
    assert [row["verdict"] for row in rows] == verdicts
    np.testing.assert_allclose([float(row["ood_score"]) for row in rows], expected.ood_scores, atol=1e-6)


def test_a_file_without_a_score_is_refused_with_a_remedy(
    files: dict[str, Path], pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict([str(files["fp32"]), str(pictures), "--ood"]) == 2
    assert "has no OOD score: export it with etf-export RUN --ood" in capsys.readouterr().err


def test_a_file_with_a_score_refuses_other_dtypes(exported: Path) -> None:
    with pytest.raises(InputError, match="has dtype float64"):
        OnnxClassifier(exported).predict(np.zeros((2, 8, 8, 1)))
