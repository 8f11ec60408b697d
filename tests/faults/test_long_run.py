"""The short form of `long_run.py`: a few steps of scenarios in which something happens."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.filterwarnings("ignore")
def test_heads_stay_what_they_are_or_stop_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    script = importlib.import_module("tests.faults.long_run")
    for name in (
        "implicit, absent classes",
        "implicit, means at a point",
        "tight frame, means at a point",
        "implicit, learning rate of 1e38",
    ):
        scenario = script.SCENARIOS[name]
        found = script.run(name, scenario, 45, 1)
        assert found.largest_departure <= script.BOUND, name
        assert found.etf_error < 1e-5, name
        assert ("NaN or infinite" in found.stopped) == (scenario.event == "1e38"), name
