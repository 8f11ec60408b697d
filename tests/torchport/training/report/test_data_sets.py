"""Runs on different images or classes are separate in tables, page and picture, and are never ranked."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nearest_etf.torchport.training.etf_report import main
from nearest_etf.torchport.training.report import page
from nearest_etf.torchport.training.report.data_sets import DataSet, data_sets, not_compared
from nearest_etf.torchport.training.report.metrics import CURVES
from nearest_etf.torchport.training.run.reading import read_run
from nearest_etf.torchport.training.run.settings import Settings

OLD_RUN = Path(__file__).parents[3] / "fixtures" / "written-by-0.1.0" / "fixed-run"

Write = Callable[..., Path]


def sets_of(*runs: Path, labels: tuple[str, ...] = ()) -> list[DataSet]:
    return data_sets([read_run(run) for run in runs], labels)


def record(test: str = "t", train: str = "x", **other: Any) -> dict[str, Any]:
    return {"test_size": 20, "test_sha256": test, "train_size": 80, "train_sha256": train, **other}


def test_evaluation_images_define_the_data_set(write_run: Write, tmp_path: Path) -> None:
    """Other test images or classes are other data; another location or other training images are not."""
    first = write_run(tmp_path / "0", "learned", 0, data=record())
    moved = write_run(tmp_path / "1", "implicit", 0, data=record(name="elsewhere"))
    fewer = write_run(tmp_path / "2", "implicit", 0, data=record(train="y", train_size=40), samples_per_class=10)
    images = write_run(tmp_path / "3", "implicit", 0, data=record(test="u"))
    classes = write_run(tmp_path / "4", "implicit", 0, num_classes=5, data=record())
    sets = sets_of(first, moved, fewer, images, classes)
    assert [found.heading for found in sets] == [
        "digits: 4 classes, 20 test images, fingerprint t",
        "digits: 4 classes, 20 test images, fingerprint u",
        "digits: 5 classes, 20 test images",
    ]
    assert [len(found.groups) for found in sets] == [3, 1, 1]
    assert [group.label for group in sets[0].groups] == [
        "learned · 80 training images",
        "implicit · 80 training images",
        "implicit · 40 training images",
    ]


def test_validation_images_drawn_by_the_seed_are_one_data_set(write_run: Write, tmp_path: Path) -> None:
    """Unless runs of one seed were judged on different images."""

    def drawn(folder: str, head: str, seed: int, sha: str) -> Path:
        data = {"val_size": 20, "val_sha256": sha, "train_size": 80, "train_sha256": sha}
        return write_run(tmp_path / folder, head, seed, splits=("train", "val"), data=data)

    runs = [drawn("a", head, seed, f"s{seed}") for head in ("learned", "implicit") for seed in (0, 1)]
    (only,) = sets_of(*runs)
    assert [(group.label, len(group.runs)) for group in only.groups] == [("learned", 2), ("implicit", 2)]
    assert only.heading == "digits: 4 classes, 20 validation images"
    assert len(sets_of(*runs, drawn("b", "fixed", 0, "other"))) == 3


def test_same_settings_and_seed_on_changed_training_images(write_run: Write, tmp_path: Path) -> None:
    """They are not two seeds of one group."""
    runs = [write_run(tmp_path / sha, "fixed", 0, data=record(train=sha)) for sha in ("abcdef12", "123456ab")]
    (found,) = sets_of(*runs)
    assert sorted(group.label for group in found.groups) == [
        "fixed · 80 (123456) training images",
        "fixed · 80 (abcdef) training images",
    ]


def test_settings_that_alter_no_results_do_not_separate_groups(write_run: Write, tmp_path: Path) -> None:
    """Workers, and a setting at its default that an earlier version did not record."""
    runs = [write_run(tmp_path / str(i), "fixed", i, workers=i, data=record()) for i in (0, 1)]
    default = write_run(tmp_path / "2", "fixed", 2, delta=Settings().delta, data=record())
    (found,) = sets_of(*runs, default)
    assert [(group.label, len(group.runs)) for group in found.groups] == [("fixed", 3)]


def test_labels_in_the_order_of_the_runs(write_run: Write, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / head, head, 0) for head in ("implicit", "learned")]
    (found,) = sets_of(*runs, labels=("ours", "_baseline"))
    assert [(group.label, group.runs[0].settings["head"]) for group in found.groups] == [
        ("ours", "implicit"),
        ("_baseline", "learned"),
    ]


def test_the_command_ranks_nothing_across_data(
    write_run: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = [write_run(tmp_path / "one", head, 0, epochs=2) for head in ("learned", "implicit")]
    two = write_run(tmp_path / "two", "fixed", 0, epochs=3, num_classes=5, data={"name": "a/b"})
    old = shutil.copytree(OLD_RUN, tmp_path / "old")
    runs = [str(run) for run in (*one, two, old, one[0])]  # one of them twice
    assert main([*runs, "--aggregate", str(tmp_path / "tables")]) == 0
    printed = capsys.readouterr().out
    assert "No comparison across data (digits: 4 classes; a/b: 5 classes; digits: 10 classes, 360 test" in printed
    assert printed.count("Median test accuracy") == 1
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == ["1-digits", "2-a-b", "3-digits"]
    assert not_compared(sets_of(*one)) == ""

    monkeypatch.setattr(page, "CURVES", CURVES[:1])  # in less time
    monkeypatch.setattr(page, "SOLVER_CURVES", ())
    target = tmp_path / "report.html"
    assert main([*runs[:3], "--quiet", "--to", str(target), str(tmp_path / "report.svg")]) == 0
    text = target.read_text(encoding="utf-8")
    assert text.count('<h2 class="data"') == 2
    assert text.count("<b>") == 2  # in the tables of the two runs that are compared
    assert "Median test accuracy of the results: implicit (" in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert "a/b: 5 classes" in (tmp_path / "report.svg").read_text(encoding="utf-8")
