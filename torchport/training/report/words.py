"""A comparison in sentences: when each head learned, how far it collapsed, which head is ahead."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ....common.text import listed
from ..measurement import SPLIT_NAMES
from .data_sets import DataSet, not_compared
from .groups import Group, held_out_split
from .labels import phrase
from .tables import LEVELS, as_text, median_with_range, number, percentage, summary

MOST_RANKED = 8  # groups that a ranking names
TOLERANCES = (0.01, 0.02, 0.05, 0.1, 0.2)  # within which class means and classifier are called collapsed


def verdict(group: Group) -> str:
    """Training and held-out accuracy of a group, and its collapse."""
    runs = len(group.runs)
    learned = "never 95 % training accuracy"
    for level in sorted(LEVELS, reverse=True):
        to_level = group.epochs_to(level)
        reached = to_level[np.isfinite(to_level)]
        if len(reached):
            learned = f"{100 * level:.0f} % training accuracy from epoch {median_with_range(reached)}"
            learned += "" if len(reached) == runs else f", in {len(reached)} of {runs} runs only"
            break
    result = ""
    if group.held_out:
        result = median_with_range(group.result(f"{group.held_out}_accuracy"), percent=True)
        result = f"; {SPLIT_NAMES[group.held_out]} accuracy {result} % with {group.results}"
    return f"{learned}{result}, {group.extent}. {_collapse(group)}{_stale(group)}"


def _stale(group: Group) -> str:
    """A note if the metrics "at the end" are older than the last epoch, because later ones are missing or nan."""
    measured = ~np.isnan(group.values("train_accuracy"))  # (runs, E)
    last = [int(group.epochs[row].max()) for row in measured if row.any()]
    reached = [int(run.rows[-1]["epoch"]) for run, row in zip(group.runs, measured, strict=True) if row.any()]
    behind = sorted({epoch for epoch, end in zip(last, reached, strict=True) if epoch < end})
    return f" Last measured in epoch {listed(list(map(str, behind)))} of {max(reached)}." if behind else ""


def _collapse(group: Group) -> str:
    """How close class means and classifier are to a simplex ETF, and since which epoch; nc2 and nc3 are relative."""
    worst = np.maximum(group.over_seeds("train_nc2_means")["median"], group.over_seeds("train_nc3")["median"])
    epochs, worst = group.epochs[~np.isnan(worst)], worst[~np.isnan(worst)]
    if len(worst) == 0:
        return "Neural collapse was not measured."
    # Unlike NC1, CDNV includes spread outside the span of the means.
    ends = {"NC1": group.final("train_nc1"), "CDNV": group.final("train_cdnv")}
    medians = {name: float(np.median(values)) for name, values in ends.items()}
    spread = " and ".join(f"{name} at {number(value)}" for name, value in medians.items() if not math.isnan(value))
    spread = f", with {spread}" if spread else ""
    if "train_etf_distance_means" not in group.metrics:  # absent if and only if there is no simplex ETF
        return f"No simplex ETF exists for so many classes in so few dimensions: NC2 and NC3 cannot reach zero{spread}."
    reached = [tolerance for tolerance in TOLERANCES if worst[-1] <= tolerance]
    if not reached:
        return (
            f"Not collapsed to within {TOLERANCES[-1]:g} yet: the distance of class means and classifier from a common "
            f"simplex ETF is {worst[-1]:.2g} at the end{spread}."
        )
    outside = np.flatnonzero(worst > reached[0])
    since = epochs[outside[-1] + 1] if len(outside) else epochs[0]
    return (
        f"Class means and classifier have collapsed to within {reached[0]:g} of a common simplex ETF since epoch "
        f"{since} ({worst[-1]:.2g} at the end){spread}."
    )


def comparison(groups: Sequence[Group]) -> str:
    """The order in which heads reached 99 % (or 95 %) training accuracy, and their held-out accuracies, best first."""
    if len(groups) < 2:
        return ""
    for level in (0.99, 0.95):
        medians = [float(np.median(group.epochs_to(level))) for group in groups]
        if min(medians) < math.inf:
            order = sorted(zip(medians, (group.label for group in groups), strict=True))
            epochs = _ranking([f"{label} ({number(epoch)})" for epoch, label in order])
            first = f"Median epochs to {100 * level:.0f} % training accuracy: {epochs}."
            break
    else:
        first = "No head reached 95 % training accuracy."
    split = held_out_split(groups)
    if split is None:
        return first
    scores = [
        (float(np.median(found[~np.isnan(found)])), group.label)
        for group in groups
        if not np.isnan(found := group.result(f"{split}_accuracy")).all()
    ]
    ranked = _ranking(
        [f"{label} ({percentage(score)} %)" for score, label in sorted(scores, key=lambda pair: -pair[0])]
    )
    return f"{first} Median {SPLIT_NAMES[split]} accuracy of the results: {ranked}."


def _ranking(entries: Sequence[str]) -> str:
    rest = f" and {len(entries) - MOST_RANKED} more" if len(entries) > MOST_RANKED else ""
    return ", ".join(entries[:MOST_RANKED]) + rest


def differences(group: Group) -> str:
    """The settings in which a group differs from others, as in "lr 0.1, no gradient"."""
    return ", ".join(phrase(name, value) for name, value in group.differing.items())


def _names_all_differences(group: Group) -> bool:
    """Whether the label names all settings that differ."""
    return all(phrase(name, value) in group.label.split(" · ") for name, value in group.differing.items())


def printed(sets: Sequence[DataSet]) -> str:
    """The command's output: a table, verdicts and a comparison for each data set."""
    lines = []
    for found in sets:
        lines += [found.heading, ""] if len(sets) > 1 else []
        lines += [as_text(summary(found.groups)), ""]
        lines += [f"{group.label}: {verdict(group)}" for group in found.groups]
        lines += [comparison(found.groups)] if len(found.groups) > 1 else []
        labelled = [group for group in found.groups if differences(group) and not _names_all_differences(group)]
        lines += ["", "Settings in which they differ:"] if labelled else []
        lines += [f"{group.label}: {differences(group)}" for group in labelled]
        lines += [""] if len(sets) > 1 else []
    return "\n".join([*lines, not_compared(sets)] if len(sets) > 1 else lines)
