"""Runs grouped by head, and their metrics gathered over seeds."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..run.reading import CHECKPOINTS, Run, epochs_to
from ..run.settings import Settings
from .labels import Value, plain_value, short_labels

Array = NDArray[np.float64]

HEADS = ("linear", "learned", "fixed", "implicit", "class-mean", "tight-frame")  # the order of tables and colours
STATISTICS = ("median", "mean", "std", "min", "max")
NO_TRAIT = ("seed", "recipe", "data", "workers", "num_classes")  # alter no results, or belong to the data set
HELD_OUT = ("test", "val")  # the split that a report is about: the first one that exists


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed.

    Attributes
    ----------
    label : str
        Short, see `short_labels`.
    runs : tuple of Run
        By seed.
    differing : dict
        Values of the settings, other than the head, that are not the same in all groups.
    """

    label: str
    runs: tuple[Run, ...]
    differing: dict[str, Value] = field(default_factory=dict)

    @property
    def extent(self) -> str:
        """The number of seeds, and of runs if there are more (copies of a run)."""
        seeds = len({run.seed for run in self.runs})
        text = "one seed" if seeds == 1 else f"{seeds} seeds"
        return text if len(self.runs) == seeds else f"{len(self.runs)} runs of {text}"

    @cached_property
    def epochs(self) -> NDArray[np.int64]:
        """All epochs that any run has reached, (E,)."""
        return np.unique([int(row["epoch"]) for run in self.runs for row in run.rows])

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics, in the order of the files."""
        return tuple(dict.fromkeys(name for run in self.runs for row in run.rows for name in row if name != "epoch"))

    @cached_property
    def held_out(self) -> str | None:
        """The split that counts: "test" where a run has been measured on it, else "val", else None."""
        return next((split for split in HELD_OUT if f"{split}_accuracy" in self.metrics), None)

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

    def result(self, metric: str) -> Array:
        """A metric of each run's result, see `Run.result`, (runs,).

        The metric of a last.pt that was not measured, of an unfinished run, is the last measured one.
        """
        values = np.array([run.result_row.get(metric, np.nan) for run in self.runs])
        last = np.array([run.result == "last" for run in self.runs])
        return np.where(np.isnan(values) & last, self.final(metric), values)

    @property
    def results(self) -> str:
        """The checkpoints of the results, as in "best.pt (epochs 3–7)" or "best.pt (epoch 7), last.pt (epoch 9)"."""
        epochs = defaultdict[str, set[int]](set)
        for run in self.runs:
            epochs[run.result].add(int(run.result_row["epoch"]))
        return ", ".join(f"{name}.pt ({_epochs(epochs[name])})" for name in CHECKPOINTS if name in epochs)

    def epochs_to(self, train_accuracy: float) -> Array:
        """First epoch at that training accuracy, (runs,); infinite for a run that never reaches it."""
        reached = [epochs_to(run.rows, train_accuracy) for run in self.runs]
        return np.array([math.inf if epoch is None else epoch for epoch in reached])

    @property
    def typical(self) -> Run:
        """The run whose held-out accuracy, or else training accuracy, ends nearest to the median over seeds."""
        accuracy = np.nan_to_num(self.final(f"{self.held_out or 'train'}_accuracy"))
        return self.runs[int(np.argmin(np.abs(accuracy - np.median(accuracy))))]


def statistics(values: Array) -> dict[str, Array]:
    """`STATISTICS` over the first axis, leaving nan out."""
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # for epochs that no run measured the result is nan
        return {
            "median": np.nanmedian(values, axis=0),
            "mean": np.nanmean(values, axis=0),
            "std": np.nanstd(values, axis=0),
            "min": np.nanmin(values, axis=0),
            "max": np.nanmax(values, axis=0),
        }


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs on the same data, grouped by the settings that alter results, except the seed; in the order of `HEADS`."""
    traits = _traits(runs)
    names = [name for name in dict.fromkeys(name for values in traits for name in values) if name != "head"]
    differing = [name for name in names if len({values.get(name) for values in traits}) > 1]
    gathered: dict[tuple[Value, ...], list[Run]] = {}
    for run, values in zip(runs, traits, strict=True):
        gathered.setdefault((values["head"], *(values.get(name) for name in differing)), []).append(run)
    keys = sorted(gathered, key=lambda key: (_head_order(key[0]), str(key[0]), [_order(value) for value in key[1:]]))
    values_of = [dict(zip(differing, key[1:], strict=True)) for key in keys]
    labels = short_labels([str(key[0]) for key in keys], values_of)
    return [
        Group(label, tuple(sorted(gathered[key], key=lambda run: run.seed)), values)
        for label, key, values in zip(labels, keys, values_of, strict=True)
    ]


def _traits(runs: Sequence[Run]) -> list[dict[str, Value]]:
    """The traits by which runs are grouped: all settings that alter results, and the number of training images.

    * A setting that an earlier version lacked has its default.
    * The default temperature becomes its number if another run has a number.
    * The fingerprint of the training images is added if runs of the same settings and seed have different ones.
    """
    defaults = {field.name: field.default for field in fields(Settings)} | {"head": "run"}
    given = any(run.settings.get("temperature") is not None for run in runs)
    traits, same = [], defaultdict[object, set[str]](set)
    for run in runs:
        values = {name: plain_value(value) for name, value in (defaults | run.settings).items() if name not in NO_TRAIT}
        if given and values["temperature"] is None and run.class_names:
            from ...heads.temperature import default_temperature  # imports torch: only if needed

            values["temperature"] = default_temperature(len(run.class_names))
        traits.append(values | {"training images": plain_value(run.config.get("data", {}).get("train_size"))})
        same[run.seed, tuple(values.values())].add(_train_sha(run))
    if any(len(found) > 1 for found in same.values()):
        for run, values in zip(runs, traits, strict=True):
            size = run.config.get("data", {}).get("train_size")
            values["training images"] = f"{size} ({_train_sha(run)[:6] or 'no fingerprint'})"
    return traits


def _train_sha(run: Run) -> str:
    return str(run.config.get("data", {}).get("train_sha256", ""))


def held_out_split(groups: Sequence[Group]) -> str | None:
    """The split that counts for all: "test" where any group has it, else "val", else None."""
    found = {group.held_out for group in groups}
    return next((split for split in HELD_OUT if split in found), None)


def _epochs(found: set[int]) -> str:
    low, high = min(found), max(found)
    return f"epoch {low}" if low == high else f"epochs {low}–{high}"


def _head_order(head: Value) -> int:
    return HEADS.index(head) if isinstance(head, str) and head in HEADS else len(HEADS)


def _order(value: Value) -> tuple[float, str]:
    """Numbers by size, before words."""
    return (value, "") if isinstance(value, float) else (math.inf, str(value))
