"""The short form of `surroundings.py`: a few places of some faults, in children of this process."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="children are forked, and found in /proc")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", ["vanished folder", "worker killed"])
def test_a_fault_is_one_line_and_nothing_is_lost(fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    script = importlib.import_module("tests.faults.surroundings")
    assert script.main(["--faults", fault, "--every", "8", "--to", str(tmp_path / "found.json")]) == 0
    assert (tmp_path / "found.json").is_file()
