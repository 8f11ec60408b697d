"""The short form of `mutate_files.py`: a few mutations of every kind, in children of this process."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="children are forked, with limits of Linux")
@pytest.mark.filterwarnings("ignore")
def test_mutated_files_are_read_or_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    script = importlib.import_module("tests.faults.mutate_files")
    assert script.main(["--count", "15", "--seed", "2", "--to", str(tmp_path / "found.json")]) == 0
    assert (tmp_path / "found.json").is_file()
