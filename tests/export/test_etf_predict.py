"""`etf-predict`: its rows and when they appear, usage errors, unreadable images, and its imports (no torch)."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nearest_etf.common.photo import PhotoTransform
from nearest_etf.export import InputError, OnnxClassifier, export_onnx
from nearest_etf.export.etf_predict import main, true_label
from nearest_etf.torchport import Classifier, ImplicitETFHead

Images = tuple[np.ndarray, np.ndarray]


@pytest.fixture
def pictures(held_out: Images, tmp_path: Path) -> Path:
    """Five held-out digits as PNG files in a folder with a subfolder."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for i, (image, label) in enumerate(zip(held_out[0][:5], held_out[1], strict=False)):
        Image.fromarray(image[..., 0]).save(folder / ("more" if i > 2 else ".") / f"{i}-{label}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos in three sizes and modes, of the classes "1" and "2", and four other files."""
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    for name, size, mode in (
        ("1/a.jpg", (40, 30), "CMYK"),
        ("1/deep/b.png", (9, 100), "RGBA"),
        ("2/c.png", (8, 8), "L"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
        noise.convert(mode).save(folder / name)
    (folder / "1" / "empty.jpg").touch()
    (folder / "2" / "text.png").write_text("no image")
    (folder / "2" / "x.heic").touch()
    (folder / "2" / "._c.png").write_bytes(b"what macOS leaves beside files")
    return folder


@pytest.fixture
def scaling(model: Classifier[ImplicitETFHead], tmp_path: Path) -> Path:
    """The classifier in a file that records a transform."""
    path, transform = tmp_path / "scaling.onnx", PhotoTransform(8, 8, 1).to_dict()
    export_onnx(model, path, image_shape=(8, 8, 1), mean=[0.3], std=[0.37], metadata={"transform": transform})
    return path


@pytest.mark.parametrize("style", ["table", "csv", "json"])
def test_command_prints(
    files: dict[str, Path], pictures: Path, held_out: Images, style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(files["fp16"]), str(pictures), "--format", style, "--top-k", "2", "--batch-size", "2", "--score"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    expected = OnnxClassifier(files["fp32"]).predict(held_out[0][:5])
    assert f"{(expected.labels == held_out[1][:5]).sum()} of 5 right" in err
    if style == "table":
        assert len(out.splitlines()) == 10
        assert out.count("cosine") == 10
        return
    rows = json.loads(out) if style == "json" else list(csv.DictReader(io.StringIO(out)))
    assert [int(row["label"]) for row in rows] == expected.top(2).ravel().tolist()
    assert rows[0]["file"].endswith(f"0-{held_out[1][0]}.png")
    cosines = np.take_along_axis(expected.class_cosines, expected.top(2), axis=1).ravel()
    np.testing.assert_allclose([float(row["cosine"]) for row in rows], cosines, atol=1e-2)


def test_json_lines_are_an_object_per_image(
    files: dict[str, Path], pictures: Path, held_out: Images, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(files["fp32"]), str(pictures), "--format", "jsonl", "--top-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = OnnxClassifier(files["fp32"]).predict(held_out[0][:5])
    found = [json.loads(line) for line in lines]
    assert [Path(image["file"]).name for image in found] == [f"{i}-{held_out[1][i]}.png" for i in range(5)]
    assert [[entry["label"] for entry in image["classes"]] for image in found] == expected.top(3).tolist()
    assert list(found[0]["classes"][0]) == ["rank", "label", "name", "probability", "cosine"]


@pytest.mark.parametrize("style", ["csv", "json", "jsonl", "table"])
def test_output_without_rows_is_a_valid_file(
    files: dict[str, Path], pictures: Path, style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(files["fp32"]), str(pictures / "notes.txt"), "--format", style]) == 1
    out = capsys.readouterr().out
    assert out == {"csv": "file,rank,label,name,probability,cosine\n", "json": "[]\n"}.get(style, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.onnx", "{pictures}"], "missing.onnx is missing: expected a model that etf-export wrote"),
        (["{model}", "nothing-here.png"], "nothing-here.png is neither"),
        (["{model}", "{pictures}", "--top-k", "11"], "--top-k is 11: expected 1…10"),
        (["{model}", "{pictures}", "--threads", "0"], "threads is 0"),
        (["{model}", "{pictures}", "--batch-size", "0"], "--batch-size is 0: expected at least 1"),
        (["{model}", "{pictures}", "--provider", "CPU"], "'CPU' is not in this onnxruntime: expected some of "),
        (["{model}", "{pictures}", "--output", "{pictures}"], "pictures: expected a file in an existing folder"),
        (
            ["{model}", "{pictures}", "--output", "{pictures}/no/x.csv"],
            "x.csv: expected a file in an existing folder",
        ),
        (["{model}", "{pictures}", "--output", "{pictures}/notes.txt"], "notes.txt exists: choose another name, or"),
        (["{float}", "{pictures}"], "takes float32 images, not files"),
    ],
)
def test_command_refuses_in_one_line(
    files: dict[str, Path], pictures: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"model": files["fp32"], "float": files["float"], "pictures": pictures}
    assert main([word.format(**paths) for word in words]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.startswith("etf-predict: ")
    assert err.count("\n") == 1
    assert not out


def test_bad_flags_end_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["model.onnx", "x.png", "--nonsense"])
    assert capsys.readouterr().err.count("\n") == 1


def test_quiet_prints_only_the_rows_and_the_score(
    files: dict[str, Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = shutil.copy(files["fp32"], tmp_path / "alone.onnx")  # without its sidecar
    assert main([str(alone), str(pictures), "--score", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out.count("cosine") == 5
    assert err.count("\n") == 1
    assert "of 5 right" in err
    assert main([str(alone), str(pictures)]) == 0
    assert "the model has no sidecar" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["etf_predict", "etf_export"])
@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(module: str, flag: str) -> None:
    script = f"""
import sys
from nearest_etf.export.{module} import main
try:
    main([{flag!r}])
except SystemExit as end:
    assert end.code == 0
heavy = {{"numpy", "scipy", "torch", "onnx", "onnxruntime", "PIL"}} & set(sys.modules)
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_works_where_torch_scipy_and_onnx_cannot_be_imported(files: dict[str, Path], pictures: Path) -> None:
    script = f"""
import sys, time
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "scipy", "onnx", "onnxscript", "sklearn", "matplotlib"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
import numpy, onnxruntime
start = time.perf_counter()
from nearest_etf.export import OnnxClassifier
from nearest_etf.export.etf_predict import main
print("own start-up:", time.perf_counter() - start)
assert OnnxClassifier({str(files["fp32"])!r}).predict(numpy.zeros((3, 8, 8, 1), "uint8")).labels.shape == (3,)
assert "torch" not in sys.modules and "scipy" not in sys.modules
sys.exit(main([{str(files["fp32"])!r}, {str(pictures)!r}]))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("cosine") == 5


def test_photos_of_any_size_and_mode_are_classified_and_bad_ones_counted(
    scaling: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(scaling), str(photos), "--format", "csv", "--score"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [Path(row["file"]).name for row in rows] == ["a.jpg", "b.png", "c.png"]
    right = sum(row["label"] == "1" for row in rows[:2]) + (rows[2]["label"] == "2")
    assert err.splitlines() == [
        f"etf-predict: note: {photos}: 1 file has no known image suffix: 1 .heic",
        *[line for line in err.splitlines() if "cannot be read (" in line],
        f"{right} of 3 right ({100 * right / 3:.2f} %)",
        "etf-predict: 2 of 5 images were left out",
    ]
    assert err.count("cannot be read (") == 2
    assert main([*words, "--quiet"]) == 1
    assert "note" not in capsys.readouterr().err, "only the images that were left out"


def test_exact_refuses_photos_of_another_size_or_mode(
    scaling: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(scaling), str(photos), "--exact", "--format", "csv"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "c.png" in out
    assert "a.jpg is a CMYK image" in err
    assert "4 of 5 images were left out" in err


def test_a_model_without_transform_is_noted_with_the_size_of_its_photos(
    files: dict[str, Path], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(files["fp32"]), str(photos / "1")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "records no transform, so photos are not resized: expected photos of 8×8 pixels" in err


def test_rows_are_printed_batch_by_batch(
    files: dict[str, Path], pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[int] = []
    plain = OnnxClassifier.predict

    def noting(self: OnnxClassifier, images: np.ndarray) -> object:
        printed.append(capsys.readouterr().out.count("cosine"))
        return plain(self, images)

    monkeypatch.setattr(OnnxClassifier, "predict", noting)
    assert main([str(files["fp32"]), str(pictures), "--batch-size", "2"]) == 0
    assert printed == [0, 2, 2], "before each batch, the rows of the one before"


@pytest.mark.parametrize(("name", "begins"), [("out.csv", "file,rank"), ("out.JSON", "[\n"), ("out.jsonl", '{"file"')])
def test_output_is_a_complete_file_in_the_format_of_its_suffix(
    scaling: Path, photos: Path, tmp_path: Path, name: str, begins: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    words = [str(scaling), str(photos), "--quiet", "--output", str(path)]
    assert main(words) == 1
    assert capsys.readouterr().out == ""
    text = path.read_text(encoding="utf-8")
    assert text.startswith(begins)
    assert text.count("c.png") == 1
    assert not list(tmp_path.glob("*.tmp"))
    assert main(words) == 2
    assert path.read_text(encoding="utf-8") == text
    path.write_text("earlier")
    assert main([*words, "--overwrite", "--format", "table"]) == 1
    assert path.read_text(encoding="utf-8").count("cosine") == 3


def test_an_interrupt_keeps_the_earlier_output(
    files: dict[str, Path], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.csv").write_text("earlier")
    plain, calls = OnnxClassifier.predict, [0]

    def interrupted(self: OnnxClassifier, images: np.ndarray) -> object:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return plain(self, images)

    monkeypatch.setattr(OnnxClassifier, "predict", interrupted)
    words = [
        str(files["fp32"]),
        str(pictures),
        "--batch-size",
        "2",
        "--output",
        str(tmp_path / "out.csv"),
        "--overwrite",
    ]
    assert main(words) == 130
    assert (tmp_path / "out.csv").read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.csv"]


@pytest.mark.parametrize("separator", [b"\n", b"\0", b"\r\n"])
def test_lists_of_files_from_standard_input(files: dict[str, Path], pictures: Path, separator: bytes) -> None:
    strange = pictures / os.fsdecode(
        b"\xff \xe2\x89\xa4.png"
    )  # a byte that is not UTF-8, and a letter that cp1252 lacks
    shutil.copy(next(pictures.glob("0-*.png")), strange)
    listed = [os.fsencode(path) for path in (strange, pictures / "gone.png", next(pictures.glob("1-*.png")))]
    command = [sys.executable, "-m", "nearest_etf.export.etf_predict", str(files["fp32"]), "-", "--format", "csv"]
    for encoding in ("utf-8", "cp1252"):
        result = subprocess.run(
            command,
            input=separator.join([*listed, b""]),
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert result.returncode == 1
        assert len(result.stdout.splitlines()) == 3
        assert (b"\\udcff " + ("≤" if encoding == "utf-8" else "<=").encode()) in result.stdout
        assert result.stderr.decode(encoding).splitlines() == [
            f"etf-predict: {pictures / 'gone.png'} is missing: expected an image",
            "etf-predict: note: the model file records no transform, so photos are not resized: expected photos of "
            "8×8 pixels",
            "etf-predict: 1 of 3 images was left out",
        ]


def test_an_empty_list_is_refused(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n\n")))
    assert main([str(files["fp32"]), "-"]) == 2
    assert "standard input contains no paths: expected one path per line" in capsys.readouterr().err


@pytest.mark.parametrize("style", ["table", "jsonl"])
def test_a_closed_standard_output_is_not_an_error(files: dict[str, Path], pictures: Path, style: str) -> None:
    words = [str(files["fp32"]), *[str(pictures)] * 400, "--batch-size", "2", "--format", style, "--quiet"]
    command = [sys.executable, "-m", "nearest_etf.export.etf_predict", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert b".png" in process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_the_true_label_is_the_folder_or_the_end_of_a_sample_s_name() -> None:
    names = ["cat", "dog", "2"]
    truth = {"val/dog/2019-0.jpg": 1, "cat/deep/er/x.jpg": 0, "2/samples/17-1.png": 1, "2/1-5.png": 2, "dog/cat/y": 0}
    assert {path: true_label(Path(path), names) for path in truth} == truth
    for path in ("val/bird/x.jpg", "samples/17-3.png", "samples/x-1.png"):
        with pytest.raises(InputError, match="is named after a class, and its own name does not end in a label"):
            true_label(Path(path), names)
