"""The short form of `kill_points.py`: a few points of one command, in children of this process."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="children are forked")
@pytest.mark.filterwarnings("ignore")
def test_a_run_that_is_killed_goes_on_as_if_it_had_not_been(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    script = importlib.import_module("tests.faults.kill_points")
    assert script.main(["--jobs", "train", "--first", "7", "--every", "11", "--to", str(tmp_path / "found.json")]) == 0
    assert (tmp_path / "found.json").is_file()
