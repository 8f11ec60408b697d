"""docs/reliability.md has the figures of the last full run of each script."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_page_has_every_row_as_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    rows = importlib.import_module("tests.faults.tables").rows()
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert [row for row in rows if not re.search(re.escape(row).replace("…", ".*"), page)] == []
