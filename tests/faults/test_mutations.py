"""The short form of `mutations.py`: a few mutations of every kind of file of a run, in children of this process."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="children are forked, with limits of Linux")
@pytest.mark.filterwarnings("ignore")
def test_mutated_files_of_a_run_are_read_or_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    script = importlib.import_module("tests.faults.mutations")
    assert script.main(["--tries", "12", "--seed", "2", "--to", str(tmp_path / "found.json")]) == 0
    assert (tmp_path / "found.json").is_file()
