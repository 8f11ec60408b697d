"""Tables over seeds: on the terminal, as Markdown, CSV and LaTeX; and the verdict in words."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

import numpy as np

from .groups import STATISTICS, Array, Group

Table = list[list[str]]  # a heading row, then one row per group

SUMMARY = (  # heading, metric at the end of training, as a percentage
    ("train accuracy %", "train_accuracy", True),
    ("test accuracy %", "test_accuracy", True),
    ("NC1", "train_nc1", False),
    ("NC2 of W", "train_nc2", False),
    ("NC2 of means", "train_nc2_means", False),
    ("NC3", "train_nc3", False),
)
LEVELS = (0.95, 0.99)  # of training accuracy, in "epochs to"
TOLERANCES = (0.01, 0.02, 0.05, 0.1, 0.2)  # of the verdict


def median_with_range(values: Array, percent: bool = False) -> str:
    """A median and its range, as short as three digits allow.

    >>> median_with_range(np.array([0.98, 0.991, 0.985]), percent=True)
    '98.50 (98.00–99.10)'
    >>> median_with_range(np.array([4.0, np.inf, 5.0])), median_with_range(np.array([3.0]))
    ('5 (4–never)', '3')
    """
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return "–"
    low, middle, high = values.min(), np.median(values), values.max()
    write = _percentage if percent else _number
    if write(low) == write(high):
        return write(middle)
    return f"{write(middle)} ({write(low)}–{write(high)})"


def summary(groups: Sequence[Group]) -> Table:
    """What a reader asks first: accuracies, NC1–NC3 at the end, epochs to a training accuracy."""
    heading = ["head", "seeds", *(name for name, _, _ in SUMMARY), *(f"epochs to {level:.0%}" for level in LEVELS)]
    rows = []
    for group in groups:
        row = [group.label, str(len(group.runs))]
        row += [median_with_range(group.final(metric), percent) for _, metric, percent in SUMMARY]
        row += [median_with_range(group.epochs_to(level)) for level in LEVELS]
        rows.append(row)
    return [heading, *rows]


def accuracy_at(groups: Sequence[Group], epochs: Sequence[int]) -> Table:
    """The paper's table: top-1 on test data after so many epochs, in per cent, median with range."""
    rows = []
    for group in groups:
        values, position = group.values("test_accuracy"), {int(e): i for i, e in enumerate(group.epochs)}
        cells = [median_with_range(values[:, position[e]], True) if e in position else "–" for e in epochs]
        rows.append([group.label, *cells])
    return [["head", *(f"top-1 % at epoch {epoch}" for epoch in epochs)], *rows]


def as_text(table: Table) -> str:
    """Aligned columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([lines[0], "  ".join("─" * width for width in widths), *lines[1:]])


def as_markdown(table: Table) -> str:
    """A pipe table."""
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]]) + "\n"


def as_csv(table: Table) -> str:
    """Comma-separated, quoted where needed."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(table)
    return file.getvalue()


def as_latex(table: Table) -> str:
    """A booktabs tabular."""
    rows = [" & ".join(_latex(cell) for cell in row) + r" \\" for row in table]
    columns = "l" + "r" * (len(table[0]) - 1)
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            rows[0],
            r"\midrule",
            *rows[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def over_seeds_csv(groups: Sequence[Group]) -> str:
    """Every metric at every epoch over seeds: head, epoch, metric, runs, median, mean, std, min, max."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["head", "epoch", "metric", "runs", *STATISTICS])
    for group in groups:
        for metric in group.metrics:
            values, spread = group.values(metric), group.over_seeds(metric)
            counts = np.sum(~np.isnan(values), axis=0)
            for i in np.flatnonzero(counts):
                figures = [f"{spread[name][i]:.9g}" for name in STATISTICS]
                writer.writerow([group.label, group.epochs[i], metric, counts[i], *figures])
    return file.getvalue()


def verdict(group: Group) -> str:
    """What happened, in words."""
    seeds = len(group.runs)
    over = "one seed" if seeds == 1 else f"{seeds} seeds"
    learned = "never 95 % of the training images right"
    for level in sorted(LEVELS, reverse=True):
        to_level = group.epochs_to(level)
        reached = to_level[np.isfinite(to_level)]
        if len(reached):
            learned = f"{level:.0%} of the training images right from epoch {median_with_range(reached)}"
            learned += "" if len(reached) == seeds else f", in {len(reached)} of {seeds} seeds only"
            break
    test = median_with_range(group.final("test_accuracy"), percent=True)
    return f"{learned}; {test} % of the test images at the end ({over}). {_collapse(group)}"


def _collapse(group: Group) -> str:
    """How near to a simplex ETF class means and classifier came, and from when on; nc2 and nc3 are relative."""
    worst = np.maximum(group.over_seeds("train_nc2_means")["median"], group.over_seeds("train_nc3")["median"])
    epochs, worst = group.epochs[~np.isnan(worst)], worst[~np.isnan(worst)]
    if len(worst) == 0:
        return "Neural collapse was not measured."
    spread = f"NC1 at {_number(float(np.median(group.final('train_nc1'))))}"
    cdnv = float(np.median(group.final("train_cdnv")))
    spread += "" if math.isnan(cdnv) else f" and CDNV at {_number(cdnv)}"  # which sees spread off the means' span, too
    reached = [tolerance for tolerance in TOLERANCES if worst[-1] <= tolerance]
    if not reached:
        return (
            f"Not collapsed to within {TOLERANCES[-1]:g} yet: class means and classifier end {worst[-1]:.2g} "
            f"from a common simplex ETF, with {spread}."
        )
    outside = np.flatnonzero(worst > reached[0])
    since = epochs[outside[-1] + 1] if len(outside) else epochs[0]
    return (
        f"Class means and classifier have collapsed to within {reached[0]:g} of a common simplex ETF since epoch "
        f"{since} ({worst[-1]:.2g} at the end), with {spread}."
    )


def comparison(groups: Sequence[Group]) -> str:
    """Who was first to 99 % (or 95 %) training accuracy, and who is best on test data."""
    if len(groups) < 2:
        return ""
    for level in (0.99, 0.95):
        medians = [float(np.median(group.epochs_to(level))) for group in groups]
        if min(medians) < math.inf:
            order = sorted(zip(medians, (group.label for group in groups), strict=True))
            parts = ", ".join(f"{label} {_number(epoch)}" for epoch, label in order)
            first = f"Median epochs to {level:.0%} training accuracy: {parts}."
            break
    else:
        first = "No head reached 95 % training accuracy."
    scores = [(float(np.nanmedian(group.final("test_accuracy"))), group.label) for group in groups]
    scores = sorted((score for score in scores if not math.isnan(score[0])), reverse=True)
    second = ", ".join(f"{label} {score:.2%}" for score, label in scores)
    return f"{first} Median test accuracy: {second}."


def _number(value: float) -> str:
    if math.isinf(value):
        return "never" if value > 0 else "-∞"
    if float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.4g}"


def _percentage(value: float) -> str:
    return f"{100 * value:.2f}"


def _latex(cell: str) -> str:
    for plain, escaped in (("%", r"\%"), ("_", r"\_"), ("–", "--"), ("&", r"\&"), ("never", r"$\infty$")):
        cell = cell.replace(plain, escaped)
    return cell
