"""The picture of a run's metrics."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from nearest_etf.torchport.training.curves import draw_curves

ROW = {"epoch": 1.0, "running_loss": 2.0, "running_accuracy": 0.5, "train_loss": 1.5, "train_accuracy": 0.6}
ROWS = [
    ROW | {"test_accuracy": 0.5, "train_nc1": 3.0, "test_nc1": 4.0, "train_nc2": 0.0},
    {"epoch": 2.0, "running_loss": 1.0, "running_accuracy": 0.7},  # not evaluated
    ROW | {"epoch": 3.0, "train_nc1": 1.0},
]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are made."""
    made: list[Figure] = []
    make = Figure.__init__

    def remembered(self: Figure, *arguments: object, **options: object) -> None:
        made.append(self)
        make(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "__init__", remembered)
    return made


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS[1:2], ROWS])
def test_the_picture_shows_all_panels(rows: list[dict[str, float]], tmp_path: Path, figures: list[Figure]) -> None:
    assert draw_curves(rows, tmp_path / "curves.png") == ""
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
    assert matplotlib.image.imread(tmp_path / "curves.png").shape[:2] == (620, 1100)
    loss, accuracy, nc1 = figures[0].axes[:3]
    lines = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in accuracy.lines}
    assert lines["train, running"] == [100 * row["running_accuracy"] for row in rows]
    measured = [100 * row["train_accuracy"] for row in rows if "train_accuracy" in row]
    assert lines.get("train, eval mode", []) == measured
    assert ("test, eval mode" in lines) == (rows[0]["epoch"] == 1)
    assert len(nc1.lines) == 2 * (rows[0]["epoch"] == 1)
    assert len(loss.lines) >= 1 + (rows[0]["epoch"] == 1)


@pytest.mark.parametrize(
    ("splits", "held_out"), [(("val", "test"), "test"), (("test",), "test"), (("val",), "val"), ((), None)]
)
def test_the_held_out_split(
    splits: tuple[str, ...], held_out: str | None, tmp_path: Path, figures: list[Figure]
) -> None:
    """Test data where there are any, else validation data; every split has its own line style."""
    shares = {"val": 0.25, "test": 0.5}
    row = ROW | {f"{split}_accuracy": shares[split] for split in splits}
    assert draw_curves([row, row | {"epoch": 2.0}], tmp_path / "curves.png") == ""
    accuracy = figures[0].axes[1]
    named = {str(line.get_label()) for line in accuracy.lines if not str(line.get_label()).startswith("_")}
    assert named == {"train, eval mode", "train, running"} | ({f"{held_out}, eval mode"} if held_out else set())
    drawn = [np.asarray(line.get_ydata()).tolist() for line in accuracy.lines if line.get_label() == "_"]
    assert drawn == ([[100 * shares[held_out]] * 2] if held_out else [])


def test_a_failed_picture_does_not_end_a_run(tmp_path: Path) -> None:
    trouble = draw_curves([{"train_loss": 1.0}], tmp_path / "curves.png")  # without an epoch
    assert trouble.startswith("curves.png could not be drawn: KeyError")
    assert list(tmp_path.iterdir()) == []
