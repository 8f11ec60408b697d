"""The examples run and give the documented results."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from nearest_etf.torchport.training.run.reading import read_rows

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_head_on_an_own_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    script = EXAMPLES / "your_own_backbone.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--epochs", "3"])
    names = runpy.run_path(str(script))
    assert names["accuracy"] > 0.95
    assert names["cosines"] == pytest.approx(torch.full((90,), -1 / 9), abs=1e-5)
    assert not torch.equal(names["loaded"].head.frame, torch.eye(128, 10))


@pytest.mark.parametrize("network", ["small", pytest.param("pretrained", marks=pytest.mark.pretrained)])
def test_the_exported_file_classifies_photos_as_training_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], network: str
) -> None:
    monkeypatch.delenv("NEAREST_ETF_DATA", raising=False)  # enlarged digits
    size, epochs = ("24", "6") if network == "small" else ("48", "2")
    if network == "small":
        monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)  # even where it is installed
    script = EXAMPLES / "fine_tune_photos.py"
    small = ["--output", str(tmp_path), "--per-class", "24", "--size", size, "--epochs", epochs]
    monkeypatch.setattr(sys, "argv", [str(script), *small])
    reported, right, count = runpy.run_path(str(script))["main"]()
    assert count == 5 * 6
    assert right == reported > 15  # five classes
    kinds = {Image.open(path).mode for path in (tmp_path / "photos").rglob("*.*")}
    assert kinds == {"RGB", "L", "CMYK", "RGBA", "P"}
    assert f"{right} of {count} right" in capsys.readouterr().err
    assert (tmp_path / "photos.onnx").exists()
    before = [row["val_accuracy"] for row in read_rows(tmp_path / "run") if row["epoch"] == 0]
    assert len(before) == (network == "pretrained")
    assert all(accuracy > 0.5 for accuracy in before)  # the aligned start


def test_two_processes_have_the_same_frame() -> None:
    """The output counts, not the exit status, because native threads can abort an interpreter that shuts down."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = str(EXAMPLES / "two_processes.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, script], capture_output=True, text=True, check=False, env=environment)
    assert "frames differ by 0e+00" in done.stdout, done.stderr
    assert float(re.findall(r"accuracy ([\d.]+) %", done.stdout)[0]) > 90
