"""Classifying: right answers for good input, an error of our own for everything else."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nearest_etf.export import InputError, ModelFileError, OnnxClassifier

Images = tuple[np.ndarray, np.ndarray]


def test_answers_hang_together(classifier: OnnxClassifier, held_out: Images) -> None:
    images, labels = held_out
    answer = classifier.predict(images)
    assert (answer.labels == labels).mean() > 0.9
    assert len(answer) == len(images)
    assert answer.names == tuple(str(label) for label in answer.labels)
    np.testing.assert_array_equal(answer.labels, answer.probabilities.argmax(1))
    np.testing.assert_array_equal(answer.top(3)[:, 0], answer.labels)
    np.testing.assert_allclose(answer.probabilities.sum(1), 1, rtol=1e-5)
    assert np.abs(answer.cosines).max() <= 1
    assert answer.cosines[answer.labels == labels].mean() > answer.cosines[answer.labels != labels].mean()


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size_changes_nothing(classifier: OnnxClassifier, held_out: Images, batch_size: int) -> None:
    images = held_out[0][:50]
    expected = classifier.predict(images)
    answer = classifier.predict(images, batch_size=batch_size)
    np.testing.assert_array_equal(answer.labels, expected.labels)
    np.testing.assert_allclose(answer.logits, expected.logits, atol=1e-5)


def test_memory_order_changes_nothing(classifier: OnnxClassifier, held_out: Images) -> None:
    images = held_out[0][:40]
    strided = np.asfortranarray(images)[::2]
    np.testing.assert_array_equal(classifier.predict(strided).logits, classifier.predict(images[::2].copy()).logits)


@pytest.mark.parametrize(("name", "shape"), [("fp32", (0, 8, 8, 1)), ("float", (0, 1, 8, 8)), ("head-fp64", (0, 24))])
def test_an_empty_batch_has_an_empty_answer(files: dict[str, Path], name: str, shape: tuple[int, ...]) -> None:
    classifier = OnnxClassifier(files[name], threads=1)
    answer = classifier.predict(np.empty(shape, classifier.input_dtype))
    assert (answer.labels.shape, answer.names, answer.cosines.shape) == ((0,), (), (0,))
    assert answer.probabilities.shape == answer.logits.shape == (*answer.top(2).shape[:1], 10)


ONE = np.zeros((1, 8, 8, 1), np.uint8)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (ONE[0], r"shape \(8, 8, 1\): expected \(N, 8, 8, 1\) of uint8; for a single one write x\[None\]"),
        (ONE[..., 0], r"shape \(1, 8, 8\)"),
        (ONE.transpose(0, 3, 1, 2), r"shape \(1, 1, 8, 8\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"shape \(1, 8, 8, 3\)"),
        (np.zeros((1, 9, 9, 1), np.uint8), r"shape \(1, 9, 9, 1\)"),
        (np.uint8(3), r"shape \(\)"),
        (ONE.astype(np.float32), "dtype float32: expected"),
        (ONE.astype(np.int64), "dtype int64"),
        (ONE.astype(bool), "dtype bool"),
        (ONE.astype(object), "dtype object"),
        ([ONE[0], ONE[0, :4]], "not one array"),
    ],
)
def test_wrong_images_are_refused(classifier: OnnxClassifier, images: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        classifier.predict(images)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (np.nan, "float32", "1 NaN or infinite"),
        (np.inf, "float32", "1 NaN or infinite"),
        (0, ">f4", "dtype float32 in foreign byte order"),
        (0, "float64", "dtype float64: expected"),
        (0, "float16", "dtype float16"),
        (3e38, "float32", "not finite: the input is far outside"),
    ],
)
def test_wrong_floats_are_refused(files: dict[str, Path], value: float, dtype: str, message: str) -> None:
    x = np.zeros((2, 1, 8, 8), dtype)
    x[1, 0, 3, 3] = value
    with pytest.raises(InputError, match=message):
        OnnxClassifier(files["float"], threads=1).predict(x)


def copied(path: Path, folder: Path, *, sidecar: bool = True) -> Path:
    """The file in a folder of its own."""
    if sidecar:
        shutil.copy(path.with_suffix(".json"), folder)
    return Path(shutil.copy(path, folder))


def flip(data: bytes) -> bytes:
    """One bit of the weights, which onnxruntime cannot notice."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-100], lambda data: b"", lambda data: data + b"\0"])
def test_damage_is_noticed_by_the_sidecar(files: dict[str, Path], tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    path = copied(files["fp32"], tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelFileError, match=r"is damaged, or fp32.json belongs to another file: SHA-256"):
        OnnxClassifier(path)


def test_without_a_sidecar_the_file_runs_with_a_warning(files: dict[str, Path], tmp_path: Path) -> None:
    path = copied(files["fp32"], tmp_path, sidecar=False)
    with pytest.warns(UserWarning, match=r"no sidecar fp32.json"):
        classifier = OnnxClassifier(path)
    assert not classifier.verified
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert OnnxClassifier(files["fp32"]).verified


@pytest.mark.parametrize("contents", ["", "[]", "{}", "not json"])
def test_a_sidecar_that_is_none_is_refused(files: dict[str, Path], tmp_path: Path, contents: str) -> None:
    path = copied(files["fp32"], tmp_path)
    path.with_suffix(".json").write_text(contents)
    with pytest.raises(ModelFileError, match="expected the sidecar of a model"):
        OnnxClassifier(path)


def foreign(**metadata: str) -> bytes:
    """A valid ONNX file that etf-export did not write."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "foreign", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    helper.set_model_props(model, metadata)
    return model.SerializeToString()


CLAIM = {"format": 1, "class_names": ["a"], "input": {"name": "x", "dtype": "float32", "shape": [3]}}
NEWER = {**CLAIM, "format": 2, "versions": {"nearest-etf": "9.1.0"}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "damaged or no ONNX model"),
        (b"PK\x03\x04 something else", "damaged or no ONNX model"),
        (foreign(), "not written by etf-export"),
        (foreign(nearest_etf="not json"), "not written by etf-export"),
        (foreign(nearest_etf="[]"), "not written by etf-export"),
        (
            foreign(nearest_etf=json.dumps({"format": 99})),
            "format 99, but this version reads format 1: update nearest-etf",
        ),
        (foreign(nearest_etf=json.dumps(NEWER)), "reads format 1: update nearest-etf to 9.1.0 or later"),
        (foreign(nearest_etf=json.dumps({"format": 1})), "lacks the input or the class names"),
        (foreign(nearest_etf=json.dumps(CLAIM)), "contradicts its own metadata"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*no sidecar")
def test_other_files_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=message):
        OnnxClassifier(path)


@pytest.mark.filterwarnings("ignore:.*no sidecar")
def test_truncated_without_a_sidecar(files: dict[str, Path], tmp_path: Path) -> None:
    path = copied(files["fp32"], tmp_path, sidecar=False)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ModelFileError):
        OnnxClassifier(path)


@pytest.mark.parametrize(("name", "message"), [("missing.onnx", "is missing"), (".", "cannot be read")])
def test_no_file(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ModelFileError, match=f"{message}.*: expected a model that etf-export wrote"):
        OnnxClassifier(tmp_path / name)


@pytest.mark.parametrize(("threads", "batch_size"), [(0, 64), (1, 0)])
def test_counts_have_to_be_positive(files: dict[str, Path], threads: int, batch_size: int) -> None:
    with pytest.raises(InputError, match="expected at least 1"):
        OnnxClassifier(files["fp32"], threads=threads).predict(ONE, batch_size=batch_size)


def test_graph_is_valid_for_the_checker(files: dict[str, Path]) -> None:
    for path in files.values():
        onnx.checker.check_model(path, full_check=True)
