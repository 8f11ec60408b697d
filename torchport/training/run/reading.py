"""Read a run folder: settings, provenance, metrics per epoch, existing checkpoints.

Needs no torch. `etf-train --resume`, `etf-train sweep`, `etf-measure`, `etf-report` and `etf-export` all read runs
through it. Names of earlier versions are translated to the present ones.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ....common.errors import UserError
from ....common.files import read_bytes, read_json, reading
from ....common.old_names import present_settings
from ....common.seals import LINE_SEAL, Damage, opened_line
from ....common.shapes import check_shape

FORMAT = 2  # of config.json; 1, which version 0.1.0 wrote, did not record it
CHECKPOINTS = ("best", "last", "recalibrated")

# The data entry of config.json and checkpoints, and the other entries of config.json.
DATA = {
    "name?": str,
    "class_names?": [str],
    "image_shape?": [int],
    "mean?": [float],
    "std?": [float],
    "transform?": {str: object},
    "path?": (str, None),
}
DATA |= {
    f"{split}_{what}?": kind for split in ("train", "val", "test") for what, kind in (("size", int), ("sha256", str))
}
CONFIG = {
    "settings": {"seed?": int, str: (str, bool, float, None)},
    "data?": DATA,
    "provenance?": {"versions?": {str: object}, "device?": (str, None)},
}
EXACT = {"epoch?": int, "exact": {str: float}}

Row = dict[str, float]


class RunError(UserError):
    """A folder that holds no run, or an unfinished, damaged or newer one."""


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes
    ----------
    path : Path
    settings : dict
        By their present names; `settings_from(run.settings)` validates them.
    config : dict
        All of config.json: `settings`, `data`, `provenance`.
    rows : list of dict
        Metrics, an entry per epoch.
    exact : dict
        `epoch` and metrics of recalibrated.pt, the model with exact class means; empty if there is none.
    """

    path: Path
    settings: dict[str, Any]
    config: dict[str, Any]
    rows: list[Row] = field(repr=False)
    exact: Row = field(default_factory=dict, repr=False)

    @property
    def seed(self) -> int:
        """Seed of the weights, the batches and the augmentation."""
        return int(self.settings.get("seed", 0))

    @property
    def data_name(self) -> str:
        """Name of the data set, or of the image folder, without the path."""
        name = str(self.config.get("data", {}).get("name", ""))
        return Path(name).name if Path(name).is_absolute() else name

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names, in the order of the labels."""
        return tuple(self.config.get("data", {}).get("class_names", ()))

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Those of "best", "last" and "recalibrated" that exist, in this order."""
        return tuple(name for name in CHECKPOINTS if (self.path / f"{name}.pt").is_file())

    @property
    def result(self) -> str:
        """The checkpoint that represents the run; test data never choose it.

        * "recalibrated" if exact class means have a higher accuracy than the checkpoint below, on validation data, or
          without any on training data;
        * else "best" if validation data chose one;
        * else "last".

        The best.pt of version 0.1.0, which test data chose, is not considered; it can still be named.
        """
        if not self._compared:
            return self._by_rows
        exact, other = (row[self._judged] for row in (self.exact, self._row))
        return "recalibrated" if exact > other else self._by_rows

    @property
    def result_row(self) -> Row:
        """Metrics of the result."""
        if self.result != "recalibrated":
            return self._row
        return {**next((row for row in self.rows if row["epoch"] == self.exact["epoch"]), {}), **self.exact}

    @property
    def reason(self) -> str:
        """Why this checkpoint is the result, with the compared accuracies; empty if there was no choice.

        >>> Run(Path("nowhere"), {}, {}, [{"epoch": 1, "train_accuracy": 0.5}]).reason
        ''
        """
        kept, validated = self._by_rows, self._judged.startswith("val")
        if not self._compared:
            return "chosen on validation data" if kept == "best" else ""
        exact, other = (f"{100 * row[self._judged]:.2f} %" for row in (self.exact, self._row))
        where = f"on {'validation' if validated else 'training'} data"
        if self.result == "recalibrated":
            return f"exact class means: {exact} {where}, {kept}.pt {other}"
        return f"chosen {where}: {other}, with exact class means {exact}"

    @property
    def _by_rows(self) -> str:
        """The result among the checkpoints that training chose from."""
        validated = any("val_accuracy" in row for row in self.rows)
        return "best" if validated and (self.path / "best.pt").is_file() else "last"

    @property
    def _row(self) -> Row:
        """Metrics of the epoch that training chose."""
        if self._by_rows == "last":
            return self.rows[-1]
        return max(self.rows, key=lambda row: row.get("val_accuracy", -1.0))  # the first of equals

    @property
    def _judged(self) -> str:
        """The metric that compares checkpoints."""
        return "val_accuracy" if self._by_rows == "best" else "train_accuracy"

    @property
    def _compared(self) -> bool:
        """Whether there is a recalibrated.pt, of this version, to compare with what training chose."""
        if not self.rows or "epoch" not in self.exact or "recalibrated" not in self.checkpoints:
            return False
        return self._judged in self.exact and self._judged in self._row


def read_run(path: str | Path, *, need_rows: bool = True) -> Run:
    """Read a run folder.

    Parameters
    ----------
    path : path
    need_rows : bool
        Refuse a run without metrics.

    Raises
    ------
    RunError
        If the folder has no config.json, if one of its files is damaged or written by a newer version, or if metrics
        are needed and there are none.
    """
    path = Path(path)
    config_file = check_run_folder(path)
    config = read_json(config_file, "the settings of a run of etf-train", RunError)
    with reading(config_file, "the settings of a run of etf-train", RunError):
        if config.get("format", 1) > FORMAT:
            writer = config["provenance"]["versions"]["nearest-etf"]
            raise RunError(f"{path} was written by nearest-etf {writer}: this version cannot read it, install that one")
        check_shape(config, CONFIG)
        settings = present_settings(config["settings"])
    rows = read_rows(path)
    if need_rows and not rows:
        raise RunError(f"{path} has no metrics yet: train it for at least one epoch")
    return Run(path, settings, {**config, "settings": settings}, rows, read_exact(path))


def read_exact(run: str | Path) -> Row:
    """`epoch` and metrics of a run's recalibrated.pt, on every split; empty where there is no recalibrated.json.

    Version 0.1.0 did not record the epoch.

    Raises
    ------
    RunError
        If recalibrated.json is damaged.
    """
    path, expected = Path(run) / "recalibrated.json", "the metrics of a recalibration"
    if not path.exists():
        return {}
    figures = read_json(path, expected, RunError)
    with reading(path, expected, RunError):
        check_shape(figures, EXACT)
        exact = {name: float(value) for name, value in figures["exact"].items()}
        return {**({"epoch": int(figures["epoch"])} if "epoch" in figures else {}), **exact}


def check_run_folder(path: Path) -> Path:
    """The config.json of a run folder.

    Raises
    ------
    RunError
        If there is none.
    """
    config = path / "config.json"
    if not config.is_file():
        raise RunError(f"{path} is not a run folder: it has no config.json")
    return config


def read_rows(run: str | Path) -> list[Row]:
    """Metrics of a run, an entry per epoch; a last line that a crash cut short is left out, with a warning.

    Raises
    ------
    RunError
        If metrics.jsonl is damaged, with the line.
    """
    return rows_and_sum(run)[0]


def rows_and_sum(run: str | Path) -> tuple[list[Row], int]:
    """Metrics of a run, and the sum that the seal of the next line starts from."""
    path, expected = Path(run) / "metrics.jsonl", "a JSON object with an epoch per line"
    if not path.exists():
        return [], 0
    if not (path.is_file() or path.is_dir()):
        raise RunError(f"{path} is a pipe or a device: expected {expected}")
    *lines, torn = read_bytes(path, expected, RunError).split(b"\n")
    if torn:
        warnings.warn(f"{path}: line {len(lines) + 1} was cut short, and is left out", stacklevel=2)
    rows: list[Row] = []
    after = 0
    for number, line in enumerate(lines, 1):
        with reading(f"{path}, line {number},", expected, RunError):
            entry = json.loads(line)
            check_shape(entry, {"epoch": float, f"{LINE_SEAL}?": str, str: float})
            row, after = opened_line(entry, after)
            if rows and not row["epoch"] > rows[-1]["epoch"]:
                raise Damage(f"epoch {row['epoch']} after epoch {rows[-1]['epoch']}")
            rows.append(row)
    return rows, after


def epochs_to(rows: Iterable[Mapping[str, float]], train_accuracy: float) -> int | None:
    """The first epoch whose measured training accuracy reaches a level, or None.

    >>> epochs_to([{"epoch": 1, "train_accuracy": 0.9}, {"epoch": 2, "train_accuracy": 0.96}], 0.95)
    2
    """
    reached = (int(row["epoch"]) for row in rows if row.get("train_accuracy", 0.0) >= train_accuracy)
    return next(reached, None)
