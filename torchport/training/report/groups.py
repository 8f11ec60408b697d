"""Runs grouped by head, and their metrics gathered over seeds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..run.reading import Run, epochs_to

Array = NDArray[np.float64]

HEADS = ("linear", "learned", "fixed", "implicit", "class-mean", "tight-frame")  # the order of tables and colours
STATISTICS = ("median", "mean", "std", "min", "max")
HELD_OUT = ("test", "val")  # the split that a report is about: the first one that exists


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

    def epochs_to(self, train_accuracy: float) -> Array:
        """First epoch at that training accuracy, (runs,); infinite for a run that never got there."""
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
        warnings.simplefilter("ignore", RuntimeWarning)  # of epochs that no run measured: nan is the answer
        return {
            "median": np.nanmedian(values, axis=0),
            "mean": np.nanmean(values, axis=0),
            "std": np.nanstd(values, axis=0),
            "min": np.nanmin(values, axis=0),
            "max": np.nanmax(values, axis=0),
        }


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs grouped by all settings but the seed, in the order of `HEADS`."""
    names = sorted({name for run in runs for name in run.settings} - {"seed", "head", "recipe"})
    differing = [name for name in names if len({repr(run.settings.get(name)) for run in runs}) > 1]
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        traits = [str(run.settings.get("head", "run"))]
        traits += [f"{name} {run.settings.get(name)}" for name in differing]
        grouped.setdefault(", ".join(traits), []).append(run)
    groups = [Group(label, tuple(sorted(members, key=lambda run: run.seed))) for label, members in grouped.items()]
    return sorted(groups, key=lambda group: (_head_order(group), group.label))


def held_out_split(groups: Sequence[Group]) -> str | None:
    """The split that counts for all: "test" where any group has it, else "val", else None."""
    found = {group.held_out for group in groups}
    return next((split for split in HELD_OUT if split in found), None)


def _head_order(group: Group) -> int:
    head = group.runs[0].settings.get("head")
    return HEADS.index(head) if head in HEADS else len(HEADS)
