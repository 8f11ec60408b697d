"""The examples run as they stand."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch


def test_the_head_on_a_backbone_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path(__file__).parent.parent / "examples" / "your_own_backbone.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--epochs", "3"])
    names = runpy.run_path(str(script))
    assert names["accuracy"] > 0.95
    assert names["cosines"] == pytest.approx(torch.full((90,), -1 / 9), abs=1e-5)
    assert not torch.equal(names["loaded"].head.frame, torch.eye(128, 10))
