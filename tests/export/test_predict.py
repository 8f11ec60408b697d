"""Classification: correct predictions for valid input, and errors of this package for everything else."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from nearest_etf.common.photo import PhotoError, PhotoTransform
from nearest_etf.export import InputError, ModelFileError, OnnxClassifier, export_onnx
from nearest_etf.torchport import Classifier, ImplicitETFHead

Images = tuple[np.ndarray, np.ndarray]


def test_the_fields_of_a_prediction_are_consistent(classifier: OnnxClassifier, held_out: Images) -> None:
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
def test_an_empty_batch_gives_an_empty_prediction(files: dict[str, Path], name: str, shape: tuple[int, ...]) -> None:
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
        ([ONE[0], ONE[0, :4]], "cannot be converted to an array"),
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
    """A copy of the file in a new folder."""
    if sidecar:
        shutil.copy(path.with_suffix(".json"), folder)
    return Path(shutil.copy(path, folder))


def flip(data: bytes) -> bytes:
    """Flip one bit of the weights, which onnxruntime does not detect."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-100], lambda data: b"", lambda data: data + b"\0"])
def test_the_sidecar_detects_damage(files: dict[str, Path], tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
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
def test_other_contents_of_the_sidecar_are_refused(files: dict[str, Path], tmp_path: Path, contents: str) -> None:
    path = copied(files["fp32"], tmp_path)
    path.with_suffix(".json").write_text(contents)
    with pytest.raises(ModelFileError, match="expected the sidecar of a model"):
        OnnxClassifier(path)


def test_a_sidecar_is_sealed(files: dict[str, Path], tmp_path: Path) -> None:
    path = copied(files["fp32"], tmp_path)
    sidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    del sidecar["seal"]  # of an earlier version
    path.with_suffix(".json").write_text(json.dumps(sidecar), encoding="utf-8")
    assert OnnxClassifier(path).verified
    sidecar = json.loads(files["fp32"].with_suffix(".json").read_text(encoding="utf-8"))
    sidecar["check"]["images"] = 10**6
    path.with_suffix(".json").write_text(json.dumps(sidecar), encoding="utf-8")
    with pytest.raises(ModelFileError, match=r"it has changed since it was written"):
        OnnxClassifier(path)


def foreign(**metadata: str) -> bytes:
    """A valid ONNX file that etf-export did not write."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "foreign", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    helper.set_model_props(model, metadata)
    return model.SerializeToString()


INPUT = {"name": "x", "dtype": "float32", "layout": "NF", "shape": [3]}
CLAIM = {"format": 1, "class_names": ["a", "b"], "input": INPUT}
NEWER = {**CLAIM, "format": 3, "versions": {"nearest-etf": "9.1.0"}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "damaged or not an ONNX model"),
        (b"PK\x03\x04 something else", "damaged or not an ONNX model"),
        (foreign(), "not written by etf-export"),
        (foreign(nearest_etf="not json"), "not written by etf-export"),
        (foreign(nearest_etf="[]"), "not written by etf-export"),
        (
            foreign(nearest_etf=json.dumps({"format": 99})),
            "format 99, but this version reads format 2: update nearest-etf",
        ),
        (foreign(nearest_etf=json.dumps(NEWER)), "reads format 2: update nearest-etf to 9.1.0 or later"),
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


@pytest.mark.parametrize(("threads", "batch_size"), [(0, 64), (1, 0), (10**20, 64)])
def test_threads_and_batch_size_must_be_positive_and_few(files: dict[str, Path], threads: int, batch_size: int) -> None:
    with pytest.raises(InputError, match="expected at least 1"):
        OnnxClassifier(files["fp32"], threads=threads).predict(ONE, batch_size=batch_size)


def test_onnx_s_checker_accepts_the_graph(files: dict[str, Path]) -> None:
    for path in files.values():
        onnx.checker.check_model(path, full_check=True)


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "head-fp16", "head-fp32", "head-fp64"])
def test_cosines_of_every_class(files: dict[str, Path], held_out: Images, name: str) -> None:
    classifier = OnnxClassifier(files[name], threads=1)
    x = held_out[0][:20]
    if classifier.layout == "NCHW":
        x = x.transpose(0, 3, 1, 2)
    if classifier.image_shape is None:
        x = np.random.default_rng(0).standard_normal((20, 24)).astype(classifier.input_dtype)
    answer = classifier.predict(x)
    assert answer.class_cosines.shape == (20, 10)
    of_labels = np.take_along_axis(answer.class_cosines, answer.labels[:, None], 1)[:, 0]
    np.testing.assert_array_equal(of_labels, answer.cosines)
    # Rows of W are an ETF: they sum to zero, and so do the cosines.
    np.testing.assert_allclose(answer.class_cosines.sum(1), 0, atol=3e-2 if name == "head-fp16" else 1e-4)


def test_cosines_agree_with_the_model(
    files: dict[str, Path], model: Classifier[ImplicitETFHead], held_out: Images
) -> None:
    features = np.random.default_rng(0).standard_normal((20, 24)).astype(np.float32)
    W = model.head.weight.double().numpy()
    rows, columns = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (features.astype(np.float64), W))
    found = OnnxClassifier(files["head-fp32"], threads=1).predict(features).class_cosines
    np.testing.assert_allclose(found, rows @ columns.T, atol=1e-6)


def test_a_classifier_can_be_sent_to_spawned_workers(files: dict[str, Path], held_out: Images) -> None:
    classifier = OnnxClassifier(files["fp32"], threads=1)
    parts = [held_out[0][:5], held_out[0][5:10]]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map_async(classifier.predict, parts).get(timeout=300)
    for answer, part in zip(found, parts, strict=True):
        np.testing.assert_array_equal(answer.logits, classifier.predict(part).logits)


@pytest.mark.filterwarnings("error")
def test_a_pickled_classifier_is_the_same_one(
    files: dict[str, Path], held_out: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files["fp32"].parent)
    opened = [OnnxClassifier("fp32.onnx", threads=1, providers=["CPUExecutionProvider"])]
    opened.append(OnnxClassifier.from_bytes(files["fp32"].read_bytes(), threads=1))
    monkeypatch.chdir(tmp_path)
    for classifier in opened:
        data = pickle.dumps(classifier)
        assert (len(data) < 1000) == classifier.verified, "the pickle has a path, or the contents of the file"
        again = pickle.loads(data)
        assert (again.verified, again.metadata) == (classifier.verified, classifier.metadata)
        assert (again._threads, again._providers) == (classifier._threads, classifier._providers)
        np.testing.assert_array_equal(again.predict(held_out[0]).logits, classifier.predict(held_out[0]).logits)


def test_a_pickle_of_a_changed_file_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    path = copied(files["fp32"], tmp_path)
    data = pickle.dumps(OnnxClassifier(path, threads=1))
    shutil.copy(files["int8"], path)
    with pytest.raises(ModelFileError, match=r"fp32.onnx has changed since the classifier was pickled: open it again"):
        pickle.loads(data)
    path.unlink()
    with pytest.raises(ModelFileError, match=r"fp32.onnx is missing: expected the model that was pickled"):
        pickle.loads(data)


@pytest.mark.parametrize(
    ("providers", "message"),
    [
        (["CUDAExecutionprovider"], "'CUDAExecutionprovider' is not in this onnxruntime: expected some of .*CPUExec"),
        ([], "none are given: expected some of .*CPUExecutionProvider"),
    ],
)
def test_missing_providers_are_refused(files: dict[str, Path], providers: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OnnxClassifier(files["fp32"], providers=providers)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_an_error(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    there = [*onnxruntime.get_available_providers(), "TensorrtExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    with pytest.raises(InputError, match="TensorrtExecutionProvider does not start on this machine"):
        OnnxClassifier(files["fp32"], providers=["TensorrtExecutionProvider", "CPUExecutionProvider"])


def test_errors_of_onnxruntime_are_reported_with_file_and_remedy(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = OnnxClassifier(files["fp32"], threads=1)

    class Session:
        def run(self, *arguments: object) -> None:
            raise onnxruntime.capi.onnxruntime_pybind11_state.Fail("[ONNXRuntimeError] : 1 : FAIL\nat node x")

    monkeypatch.setattr(classifier, "_session", Session())
    with pytest.raises(
        InputError, match=r"fp32.onnx cannot classify a batch of 1: try a smaller batch size \(onnxruntime: .*FAIL\)"
    ):
        classifier.predict(ONE)


@pytest.fixture
def scaling(model: Classifier[ImplicitETFHead], tmp_path: Path) -> Path:
    """The classifier in a file that records a transform."""
    transform = PhotoTransform(8, 8, 1, crop=0.5, interpolation="bicubic").to_dict()
    path = tmp_path / "scaling.onnx"
    export_onnx(model, path, image_shape=(8, 8, 1), mean=[0.3], std=[0.37], metadata={"transform": transform})
    return path


def test_photos_are_read_by_the_recorded_transform_or_exactly(
    files: dict[str, Path], scaling: Path, tmp_path: Path
) -> None:
    from PIL import Image

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20), np.uint8))
    noise.save(tmp_path / "photo.png")
    noise.resize((8, 8)).save(tmp_path / "small.png")
    photo, small = tmp_path / "photo.png", tmp_path / "small.png"
    classifier = OnnxClassifier(scaling, threads=1)
    assert classifier.transform == PhotoTransform(8, 8, 1, crop=0.5, interpolation="bicubic")
    middle = noise.crop((5, 10, 15, 20)).resize((8, 8), Image.Resampling.BICUBIC)
    assert np.abs(classifier.read_photo(photo)[..., 0] - np.asarray(middle, np.int64)).max() < 90
    assert not np.array_equal(classifier.read_photo(small)[..., 0], np.asarray(Image.open(small)))
    np.testing.assert_array_equal(classifier.read_photo(small, exact=True)[..., 0], np.asarray(Image.open(small)))
    with pytest.raises(PhotoError, match="has 20×30 pixels, but the model takes 8×8"):
        classifier.read_photo(photo, exact=True)
    earlier = OnnxClassifier(files["fp16"], threads=1)  # (N, C, H, W)
    assert earlier.transform is None
    np.testing.assert_array_equal(earlier.read_photo(small)[0], np.asarray(Image.open(small)))
    with pytest.raises(PhotoError, match="has 20×30 pixels"):
        earlier.read_photo(photo)
    with pytest.raises(InputError, match="takes float32 images, not files"):
        OnnxClassifier(files["float"], threads=1).read_photo(photo)


@pytest.mark.filterwarnings("ignore:.*no sidecar")
@pytest.mark.parametrize(
    "entry", [{}, {"height": 8}, "whole", {**PhotoTransform(8, 8).to_dict(), "crop_mode": "round"}]
)
def test_an_unsupported_transform_is_refused(tmp_path: Path, entry: object) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(foreign(nearest_etf=json.dumps({**CLAIM, "transform": entry})))
    with pytest.raises(ModelFileError, match="records a transform of photos that this version does not support"):
        OnnxClassifier(path)
