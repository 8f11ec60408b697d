"""Results by class on the page: matrices of few classes, tables of many, a note if nothing was counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nearest_etf.torchport.training.confusion import Confusion
from nearest_etf.torchport.training.report.classes import Judged, class_table, confusion_figure, mistakes_table
from nearest_etf.torchport.training.report.groups import group_runs
from nearest_etf.torchport.training.report.page import measured_subjects
from nearest_etf.torchport.training.report.style import MOST_TOLD_APART, legend_columns, looks
from nearest_etf.torchport.training.run.reading import read_run

NAMES = ("\"a\" & 'b'", "<script>", "two\nlines", "x" * 200, "猫と犬", "$x$", "")


def judged(num_classes: int, names: tuple[str, ...] | None = None) -> Judged:
    """Every class k is correct k times and confused once with the next one; class 0 is never correct."""
    pairs = [[k, k, k] for k in range(1, num_classes)] + [[k, k + 1, 1] for k in range(num_classes - 1)]
    names = names or tuple(f"class {k}" for k in range(num_classes))
    return Judged("implicit", "best", "test", names, Confusion(np.array(pairs), num_classes))


def test_a_matrix_of_any_names_is_drawn() -> None:
    figure = confusion_figure(judged(7, NAMES))
    assert figure is not None
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts].count("1") == 7  # the one of class 1 right, six mistakes
    assert max(len(label.get_text()) for label in axes.get_yticklabels()) <= 16
    assert confusion_figure(judged(31)) is None


def test_tables() -> None:
    few = class_table([judged(3)])
    assert few == [
        ["class", "images", "implicit"],
        ["class 0", "1", "0.00"],
        ["class 1", "2", "50.00"],
        ["class 2", "2", "100.00"],
    ]
    many = class_table([judged(1000), judged(1000)])
    assert len(many) == 16
    assert [row[0] for row in many[1:4]] == ["class 0", "class 1", "class 2"]
    assert len(mistakes_table(judged(1000))) == 16
    assert mistakes_table(judged(3))[1] == ["class 0", "class 1", "1", "100.00"]


def test_a_note_gives_the_command_that_counts_an_older_measurement(
    write_run: Callable[..., Path], tmp_path: Path
) -> None:
    runs = [write_run(tmp_path / name, "learned", 0, counted=name == "new") for name in ("new", "old one")]
    new, old = (measured_subjects(group_runs([read_run(run)]), print) for run in runs)
    assert [found.label for found in new.classes] == ["learned"]
    assert new.missing == []
    assert old.classes == []
    assert old.missing == [
        "learned: an earlier version did not count per-class accuracy; "
        f"run etf-measure '{tmp_path}/old one/learned-seed0'."
    ]
    assert len(old.geometry) == 1


@pytest.mark.parametrize("count", [8, MOST_TOLD_APART, MOST_TOLD_APART + 1])
def test_looks_of_many_groups(write_run: Callable[..., Path], tmp_path: Path, count: int) -> None:
    """Groups differ by colour and marker; too many groups differ by head."""
    runs = [write_run(tmp_path / str(i), ("learned", "fixed")[i % 2], 0, epochs=1, lr=float(i)) for i in range(count)]
    found = looks(group_runs([read_run(run) for run in runs]))
    shown = [look.label for look in found if not look.label.startswith("_")]
    assert len({(look.colour, look.marker) for look in found}) == (count if count <= MOST_TOLD_APART else 2)
    assert len(shown) == (count if count <= MOST_TOLD_APART else 2)
    assert legend_columns(shown, 4.6) >= 1
