"""`etf-predict`: the rows it prints, how it refuses, and that it imports no torch."""

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

from nearest_etf.export import OnnxClassifier
from nearest_etf.export.etf_predict import main

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
        assert "cosine" in out
        return
    rows = json.loads(out) if style == "json" else list(csv.DictReader(io.StringIO(out)))
    assert [int(row["label"]) for row in rows] == expected.top(2).ravel().tolist()
    assert rows[0]["file"].endswith(f"0-{held_out[1][0]}.png")
    assert float(rows[0]["cosine"]) == pytest.approx(expected.cosines[0], abs=1e-2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.onnx", "{pictures}"], "missing.onnx is missing: expected a model that etf-export wrote"),
        (["{model}", "nothing-here.png"], "nothing-here.png is neither"),
        (["{model}", "{pictures}/notes.txt"], "notes.txt cannot be read (cannot identify image file"),
        (["{model}", "{pictures}", "--top-k", "11"], "--top-k is 11: expected 1…10"),
        (["{model}", "{pictures}", "--threads", "0"], "threads is 0"),
        (["{model}", "{pictures}", "--batch-size", "0"], "batch size is 0"),
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


def test_quiet_prints_the_rows_and_the_score_alone(
    files: dict[str, Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = shutil.copy(files["fp32"], tmp_path / "alone.onnx")  # without its sidecar
    assert main([str(alone), str(pictures), "--score", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out.count("cosine") == 5
    assert err.count("\n") == 1
    assert "of 5 right" in err
    assert main([str(alone), str(pictures)]) == 0
    assert "no sidecar beside the model" in capsys.readouterr().err


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
