"""The picture of a run's metrics, and TensorBoard's share of them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from nearest_etf.torchport.training import curves
from nearest_etf.torchport.training.curves import draw_curves
from nearest_etf.torchport.training.run.folder import RunFolder
from nearest_etf.torchport.training.run.settings import Settings

ROW = {"epoch": 1.0, "running_loss": 2.0, "running_accuracy": 0.5, "train_loss": 1.5, "train_accuracy": 0.6}
ROWS = [
    ROW | {"test_accuracy": 0.5, "train_nc1": 3.0, "test_nc1": 4.0, "train_nc2": 0.0},
    {"epoch": 2.0, "running_loss": 1.0, "running_accuracy": 0.7},  # not evaluated
    ROW | {"epoch": 3.0, "train_nc1": 1.0},
]


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[1:2], ROWS])
def test_the_picture_shows_all_panels(
    rows: list[dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    make = Figure.__init__

    def remembered(self: Figure, *arguments: object, **options: object) -> None:
        figures.append(self)
        make(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "__init__", remembered)
    assert draw_curves(rows, tmp_path / "curves.png") == ""
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
    assert matplotlib.image.imread(tmp_path / "curves.png").shape[:2] == (620, 1100)
    loss, accuracy, nc1 = figures[0].axes[:3]
    lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in accuracy.lines}
    assert lines["train, running"] == [100 * row["running_accuracy"] for row in rows]
    measured = [100 * row["train_accuracy"] for row in rows if "train_accuracy" in row]
    assert lines.get("train, eval mode", []) == measured
    assert len(nc1.lines) == 2 * (rows[0]["epoch"] == 1)
    assert len(loss.lines) >= 2


def test_a_run_goes_on_without_its_picture(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", Settings())
    with folder:
        folder.begin()
        folder.append({"epoch": 1.0})  # without the figures that are drawn
    assert "curves.png could not be drawn: KeyError" in (folder.path / "log.txt").read_text()
    assert (folder.path / "metrics.csv").read_text() == "epoch\n1.0\n"


def test_tensorboard_gets_every_figure_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points: dict[tuple[str, int], float] = {}
    flushed = 0

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert Path(folder) == tmp_path / "run" / "tensorboard"
            for key in [key for key in points if key[1] >= purge_step]:
                del points[key]

        def add_scalar(self, name: str, value: float, step: int) -> None:
            assert (name, step) not in points
            points[name, step] = value

        def flush(self) -> None:
            nonlocal flushed
            flushed += 1

        def close(self) -> None: ...

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    for epochs in (0, 1):  # the second time resumed after the first epoch
        folder = RunFolder(tmp_path / "run", Settings(), overwrite=epochs == 0)
        (tmp_path / "run").mkdir(exist_ok=True)
        folder.truncate(epochs)
        for row in ROWS[epochs:]:
            folder.append(row)
        (tmp_path / "run" / "metrics.jsonl").rename(tmp_path / "metrics.jsonl")
        (tmp_path / "run").rmdir()
    assert points["train/accuracy", 1] == 0.6
    assert points["running/loss", 2] == 1.0
    assert len(points) == sum(len(row) - 1 for row in ROWS)
    assert flushed == 5


def test_no_tensorboard_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert curves.scalar_writer(tmp_path / "tensorboard", 1) is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # importing it fails
    assert curves.scalar_writer(tmp_path / "tensorboard", 1) is None
