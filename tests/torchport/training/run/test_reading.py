"""Reading a run folder: its properties, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nearest_etf.torchport.training.run.reading import Run, RunError, read_run

CONFIG = {
    "format": 2,
    "settings": {"seed": 3, "optimizer": "sgd"},
    "data": {"name": "digits", "class_names": ["0", "1"]},
    "provenance": {"versions": {"nearest-etf": "9.1"}},
}
ROWS = [
    {"epoch": 1, "train_accuracy": 0.5, "val_accuracy": 0.75, "test_accuracy": 0.5},
    {"epoch": 2, "train_accuracy": 0.75, "val_accuracy": 0.75, "test_accuracy": 0.875},
    {"epoch": 3, "train_accuracy": 1.0},  # killed before the evaluation of the held-out data
]


def write_run(path: Path, config: Any = CONFIG, rows: Any = ROWS, checkpoints: tuple[str, ...] = ()) -> Path:
    path.mkdir()
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    (path / "metrics.jsonl").write_text(rows if isinstance(rows, str) else "".join(json.dumps(r) + "\n" for r in rows))
    for name in checkpoints:
        (path / f"{name}.pt").touch()
    return path


def test_a_run_and_its_result(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", checkpoints=("recalibrated", "last", "best", "other")))
    assert (run.seed, run.data_name, run.class_names) == (3, "digits", ("0", "1"))
    assert run.rows == ROWS
    assert run.checkpoints == ("best", "last", "recalibrated")
    assert (run.result, run.result_row["epoch"]) == ("best", 1)  # the first of equals
    run = read_run(write_run(tmp_path / "without", checkpoints=("last",)))
    assert (run.result, run.result_row["epoch"]) == ("last", 3)


def test_a_run_without_metrics(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", rows='{"epoch": 1')  # cut short
    with pytest.warns(UserWarning, match=r"metrics\.jsonl: line 1 was cut short, and is left out"):
        assert read_run(path, need_rows=False).rows == []
    (path / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="run has no metrics yet: train it for at least one epoch"):
        read_run(path)


def test_old_names_of_settings_are_translated(tmp_path: Path) -> None:
    old = {"settings": {"optimiser": "agd", "accumulation": 2}, "data": {}}
    run = read_run(write_run(tmp_path / "run", old))
    assert run.settings == run.config["settings"] == {"optimizer": "agd", "grad_accum_steps": 2}
    assert isinstance(run, Run)


@pytest.mark.parametrize(
    ("config", "rows", "complaint"),
    [
        ("{", ROWS, r"config\.json is damaged or of another kind .*expected the settings of a run of etf-train"),
        ("[]", ROWS, r"config\.json is damaged"),
        ({"data": {}}, ROWS, r"config\.json is damaged \(settings is missing\)"),
        ({**CONFIG, "data": []}, ROWS, r"config\.json is damaged \(data is list of 0, expected named entries\)"),
        ({**CONFIG, "data": {"class_names": ["a", 1]}}, ROWS, r"\(data\.class_names\[1\] is 1, expected str\)"),
        ({**CONFIG, "settings": {"lr": "é" * 999}, "format": "2"}, ROWS, r"config\.json is damaged"),
        ('{"settings":' * 2000, ROWS, r"config\.json is damaged .*RecursionError"),
        (CONFIG, "text\n", r"metrics\.jsonl, line 1, is damaged .*expected a JSON object with an epoch per line"),
        (CONFIG, '{"epoch": 1}\n{"loss": 1}\n', r"metrics\.jsonl, line 2, is damaged \(epoch is missing\)"),
        (CONFIG, '{"epoch": "one"}\n', r"line 1, is damaged \(epoch is 'one', expected a number\)"),
        (CONFIG, '{"epoch": 1, "loss": [1]}\n', r"line 1, is damaged \(loss is list of 1, expected a number\)"),
        (
            CONFIG,
            '{"epoch": 1, "loss": 1' + "0" * 400 + "}\n",
            r"line 1, is damaged \(loss is 1000.*…, expected a number",
        ),
        (CONFIG, '{"epoch": 2}\n{"epoch": 2}\n', r"line 2, is damaged \(epoch 2 after epoch 2\)"),
        ({**CONFIG, "format": 3}, ROWS, r"was written by nearest-etf 9\.1: this version cannot read it"),
    ],
)
def test_damaged_and_newer_runs_are_refused(tmp_path: Path, config: Any, rows: Any, complaint: str) -> None:
    with pytest.raises(RunError, match=complaint) as refused:
        read_run(write_run(tmp_path / "run", config, rows))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_other_paths_are_not_run_folders(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=rf"{name} is not a run folder: it has no config\.json"):
        read_run(tmp_path / name, need_rows=False)


def recalibrated(path: Path, exact: dict[str, float], epoch: int | None = 3) -> None:
    figures = {"running": {}, "exact": exact} | ({} if epoch is None else {"epoch": epoch})
    (path / "recalibrated.json").write_text(json.dumps(figures))


@pytest.mark.parametrize(
    ("val", "test", "result", "reason"),
    [
        (0.875, 0.1, "recalibrated", "exact class means: 87.50 % on validation data, best.pt 75.00 %"),
        (0.75, 1.0, "best", "chosen on validation data: 75.00 %, with exact class means 75.00 %"),
        (0.5, 1.0, "best", "chosen on validation data: 75.00 %, with exact class means 50.00 %"),
    ],
)
def test_exact_class_means_are_the_result_if_better_on_validation_data(
    tmp_path: Path, val: float, test: float, result: str, reason: str
) -> None:
    path = write_run(tmp_path / "run", checkpoints=("best", "last", "recalibrated"))
    recalibrated(path, {"train_accuracy": 0.0, "val_accuracy": val, "test_accuracy": test})
    run = read_run(path)
    assert (run.result, run.reason) == (result, reason)
    assert run.result_row["val_accuracy"] == max(val, 0.75)
    assert run.result_row["epoch"] == (3 if result == "recalibrated" else 1)
    (path / "recalibrated.pt").unlink()
    assert read_run(path).result == "best"


@pytest.mark.parametrize(("train", "result"), [(0.75, "recalibrated"), (0.5, "last"), (0.25, "last")])
def test_without_validation_data_training_data_decide_and_never_test_data(
    tmp_path: Path, train: float, result: str
) -> None:
    rows = [{"epoch": 3, "train_accuracy": 0.5, "test_accuracy": 0.5}]
    path = write_run(tmp_path / "run", rows=rows, checkpoints=("last", "recalibrated"))
    recalibrated(path, {"train_accuracy": train, "test_accuracy": 1 - train})
    run = read_run(path)
    assert run.result == result
    assert "on training data" in run.reason
    assert "50.00 %" in run.reason


def test_a_recalibration_of_version_0_1_0_is_never_the_result(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", checkpoints=("best", "recalibrated"))
    recalibrated(path, {"val_accuracy": 1.0}, epoch=None)
    run = read_run(path)
    assert (run.result, run.reason, run.exact) == ("best", "chosen on validation data", {"val_accuracy": 1.0})
    (path / "recalibrated.json").write_text("{}")
    with pytest.raises(RunError, match=r"recalibrated\.json is damaged .*expected the metrics of a recalibration"):
        read_run(path)


def test_an_image_folder_is_named_without_its_path(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", {**CONFIG, "data": {"name": "/home/somebody/photos"}}))
    assert run.data_name == "photos"
