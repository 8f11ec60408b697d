"""Runs read from their folders, grouped by head, and their metrics gathered over seeds."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..measure import Measurement, measure, save_measurement, saved_measurement
from ..run.folder import epochs_to, read_rows

Array = NDArray[np.float64]

HEADS = ("learned", "fixed", "implicit")  # the order of tables and colours
STATISTICS = ("median", "mean", "std", "min", "max")


class RunError(ValueError):
    """A folder that holds no run, or an unfinished or damaged one; the message is one line."""


@dataclass(frozen=True)
class Run:
    """A run folder, read."""

    path: Path
    settings: dict[str, Any]
    config: dict[str, Any]
    rows: list[dict[str, float]] = field(repr=False)

    @property
    def seed(self) -> int:
        return int(self.settings.get("seed", 0))


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed.

    Attributes
    ----------
    label : str
        The head, and the other settings in which this group differs from the rest.
    runs : tuple of Run
        By seed.
    """

    label: str
    runs: tuple[Run, ...]

    @cached_property
    def epochs(self) -> NDArray[np.int64]:
        """All epochs that any run has reached, (E,)."""
        return np.unique([int(row["epoch"]) for run in self.runs for row in run.rows])

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics, in the order of the files."""
        return tuple(dict.fromkeys(name for run in self.runs for row in run.rows for name in row if name != "epoch"))

    def values(self, metric: str) -> Array:
        """A metric of every run at every epoch, (runs, E); nan where it was not measured."""
        position = {int(epoch): i for i, epoch in enumerate(self.epochs)}
        values = np.full((len(self.runs), len(self.epochs)), np.nan)
        for r, run in enumerate(self.runs):
            for row in run.rows:
                value = row.get(metric)
                values[r, position[int(row["epoch"])]] = np.nan if value is None else value
        return values

    def over_seeds(self, metric: str) -> dict[str, Array]:
        """Median, mean, standard deviation, minimum and maximum over seeds, (E,) each."""
        return statistics(self.values(metric))

    def final(self, metric: str) -> Array:
        """A metric where each run last measured it, (runs,)."""
        values = self.values(metric)
        measured = np.where(np.isnan(values), -1, np.arange(values.shape[1])).max(axis=1)
        return np.where(measured >= 0, values[np.arange(len(values)), measured], np.nan)

    def epochs_to(self, train_accuracy: float) -> Array:
        """First epoch at that training accuracy, (runs,); infinite for a run that never got there."""
        reached = [epochs_to(run.rows, train_accuracy) for run in self.runs]
        return np.array([math.inf if epoch is None else epoch for epoch in reached])

    @property
    def typical(self) -> Run:
        """The run whose test accuracy ends nearest to the median over seeds."""
        accuracy = np.nan_to_num(self.final("test_accuracy"))
        return self.runs[int(np.argmin(np.abs(accuracy - np.median(accuracy))))]


def statistics(values: Array) -> dict[str, Array]:
    """`STATISTICS` over the first axis, leaving nan out."""
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of epochs that nobody measured: nan is the answer
        return {
            "median": np.nanmedian(values, axis=0),
            "mean": np.nanmean(values, axis=0),
            "std": np.nanstd(values, axis=0),
            "min": np.nanmin(values, axis=0),
            "max": np.nanmax(values, axis=0),
        }


def load_run(path: str | Path) -> Run:
    """Read a run folder.

    Raises
    ------
    RunError
        If it has no config.json or no metrics, or one of them cannot be read.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise RunError(f"{path} is no run folder: it has no config.json")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        settings = config["settings"]
        rows = read_rows(path)
        if not all(isinstance(row["epoch"], int | float) for row in rows):
            raise TypeError("an epoch that is no number")
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} is damaged: config.json or metrics.jsonl is not what etf-train writes ({error})"
        ) from error
    if not rows:
        raise RunError(f"{path} has no metrics yet: train it for at least one epoch")
    return Run(path, settings, config, rows)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs grouped by all settings but the seed; learned, fixed and implicit heads in this order."""
    names = sorted({name for run in runs for name in run.settings} - {"seed", "head", "recipe"})
    differing = [name for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1]
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        traits = [str(run.settings.get("head", "run"))]
        traits += [f"{name} {run.settings.get(name)}" for name in differing]
        grouped.setdefault(", ".join(traits), []).append(run)
    groups = [Group(label, tuple(sorted(members, key=lambda run: run.seed))) for label, members in grouped.items()]
    return sorted(groups, key=lambda group: (_head_order(group), group.label))


def _head_order(group: Group) -> int:
    head = group.runs[0].settings.get("head")
    return HEADS.index(head) if head in HEADS else len(HEADS)


def geometry(run: Run) -> Measurement | str:
    """The last checkpoint of a run, measured now or before; or, where that cannot be done, the reason."""
    try:
        measured = saved_measurement(run.path, "last")
        if measured is None:
            measured = measure(run.path, "last")
            save_measurement(run.path, "last", measured)
    except (ValueError, OSError) as error:
        return str(error)
    return measured
