"""The short form of `command_lines.py`: a few lines of each command, in children of this process."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="children are forked, with limits of Linux")
@pytest.mark.filterwarnings("ignore")
def test_odd_command_lines_end_with_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    script = importlib.import_module("tests.faults.command_lines")
    words = ["--commands", "etf-train", "etf-measure", "etf-report", "etf-predict", "--count", "36", "--seed", "5"]
    assert script.main([*words, "--to", str(tmp_path / "found.json")]) == 0
    assert (tmp_path / "found.json").is_file()
