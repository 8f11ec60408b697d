"""TensorBoard gets every metric once, also from a resumed run; without it nothing is written."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from nearest_etf.torchport.training.tensorboard import scalar_writer

ROW = {"epoch": 1.0, "running_loss": 2.0, "running_accuracy": 0.5, "train_loss": 1.5, "train_accuracy": 0.6}
ROWS = [
    ROW | {"val_accuracy": 0.5, "train_nc1": 3.0, "test_nc1": 4.0, "train_nc2": 0.0},
    {"epoch": 2.0, "running_loss": 1.0, "running_accuracy": 0.7},  # not evaluated
    ROW | {"epoch": 3.0, "train_nc1": 1.0, "lr": 0.1},
]


def test_every_metric_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points: dict[tuple[str, int], float] = {}
    calls: list[str] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert Path(folder) == tmp_path / "tensorboard"
            for key in [key for key in points if key[1] >= purge_step]:
                del points[key]

        def add_scalar(self, name: str, value: float, step: int) -> None:
            assert (name, step) not in points
            points[name, step] = value

        def flush(self) -> None:
            calls.append("flush")

        def close(self) -> None:
            calls.append("close")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    for epochs in (0, 1):  # the second time resumed after the first epoch
        with scalar_writer(tmp_path / "tensorboard", epochs + 1) as scalars:
            for row in ROWS[epochs:]:
                scalars.append(row)
    assert points["train/accuracy", 1] == 0.6
    assert points["val/accuracy", 1] == 0.5
    assert points["running/loss", 2] == 1.0
    assert points["run/lr", 3] == 0.1
    assert len(points) == sum(len(row) - 1 for row in ROWS)
    assert calls == [*["flush"] * 3, "close", *["flush"] * 2, "close"]


def test_without_tensorboard_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(enabled: bool = True) -> None:
        with scalar_writer(tmp_path / "tensorboard", 1, enabled=enabled) as scalars:
            scalars.append(ROW)
        assert not list(tmp_path.iterdir())

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    nothing()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    nothing(enabled=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # importing it fails
    nothing()
