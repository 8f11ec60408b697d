"""Tables over seeds: on the terminal, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

import numpy as np

from ....common.text import columns_of, shown
from .groups import STATISTICS, Array, Group, held_out_split
from .labels import value_text

Table = list[list[str]]  # a heading row, then one row per group

ACCURACIES = ("train", "val", "test")
COLLAPSE = (  # heading, metric
    ("NC1", "train_nc1"),
    ("NC2 of W", "train_nc2"),
    ("NC2 of means", "train_nc2_means"),
    ("NC3", "train_nc3"),
)
LEVELS = (0.95, 0.99)  # of training accuracy, in "epochs to"
LATEX = str.maketrans(
    {c: f"\\{c}" for c in "%_&#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}", "–": "--", "…": r"\ldots{}"}
    | {"τ": r"$\tau$", "δ": r"$\delta$", "·": r"$\cdot$", "∞": r"$\infty$"}
)


class Best(str):
    """A cell with the best median of its column; plain on the terminal and in CSV."""

    best = True


def median_with_range(values: Array, percent: bool = False, infinite: str = "∞") -> str:
    """A median and its range, as short as three digits allow; `infinite` stands for infinity.

    >>> median_with_range(np.array([0.98, 0.991, 0.985]), percent=True)
    '98.50 (98.00–99.10)'
    >>> median_with_range(np.array([4.0, np.inf, 5.0]), infinite="never"), median_with_range(np.array([3.0]))
    ('5 (4–never)', '3')
    """
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return "–"
    low, middle, high = values.min(), np.median(values), values.max()
    first, median, last = (percentage(value) if percent else number(value, infinite) for value in (low, middle, high))
    return median if first == last else f"{median} ({first}–{last})"


def summary(groups: Sequence[Group]) -> Table:
    """The first table of a report: the results that training announced, see `Run.result`.

    Checkpoint and epoch, accuracies, NC1–NC3; then the epochs to a training accuracy, of all epochs.
    """
    measured = {metric for group in groups for metric in group.metrics}
    splits = [split for split in ACCURACIES if f"{split}_accuracy" in measured]
    heading = ["head", "seeds", "result", *(f"{split} accuracy %" for split in splits), *(name for name, _ in COLLAPSE)]
    heading += [f"epochs to {100 * level:.0f} %" for level in LEVELS]
    rows = []
    for group in groups:
        row = [group.label, str(len({run.seed for run in group.runs})), group.results]
        row += [median_with_range(group.result(f"{split}_accuracy"), percent=True) for split in splits]
        row += [median_with_range(group.result(metric)) for _, metric in COLLAPSE]
        row += [median_with_range(group.epochs_to(level), infinite="never") for level in LEVELS]
        rows.append(row)
    for i, split in enumerate(splits, start=3):
        if split != "train":
            mark_best(rows, i, [group.result(f"{split}_accuracy") for group in groups])
    return [heading, *rows]


def mark_best(rows: Table, column: int, values: Sequence[Array]) -> None:
    """Mark the cells of a column whose median over seeds, of `values` by row, is highest as it is written."""
    medians = [np.median(found) if (found := row[~np.isnan(row)]).size else -math.inf for row in values]
    highest = max(medians)
    if len(rows) > 1 and highest > -math.inf:
        for row, median in zip(rows, medians, strict=True):
            if percentage(median) == percentage(highest):
                row[column] = Best(row[column])


def accuracy_at(groups: Sequence[Group], epochs: Sequence[int]) -> Table:
    """The paper's table: top-1 accuracy at given epochs, in per cent, median with range.

    On test data where any run has it, else on validation data, else on training data.
    """
    split = held_out_split(groups) or "train"
    columns = [[_at(group, f"{split}_accuracy", epoch) for group in groups] for epoch in epochs]
    rows = [
        [group.label, *(median_with_range(values[i], percent=True) for values in columns)]
        for i, group in enumerate(groups)
    ]
    for i, values in enumerate(columns, start=1):
        mark_best(rows, i, values)
    return [["head", *(f"{split} top-1 % at epoch {epoch}" for epoch in epochs)], *rows]


def default_epochs(groups: Sequence[Group]) -> list[int]:
    """Epochs of the accuracy table: the paper's 50 and 200 where they were reached, and the last one."""
    reached = {int(epoch) for group in groups for epoch in group.epochs}
    return sorted(({50, 200} & reached) | {max(reached)})


def _at(group: Group, metric: str, epoch: int) -> Array:
    """A metric of each run at an epoch, (runs,) or none at all."""
    return group.values(metric)[:, group.epochs == epoch].ravel()


def differing_table(groups: Sequence[Group]) -> Table:
    """Heads, and the settings that are not the same in all groups, a row each; empty where only heads differ."""
    names = list(groups[0].differing)
    if not names:
        return []
    rows = [
        [group.label, shown(group.runs[0].settings.get("head", "run")), *map(value_text, group.differing.values())]
        for group in groups
    ]
    return [["label", "head", *(shown(name.replace("_", " ")) for name in names)], *rows]


def final_metrics(groups: Sequence[Group]) -> Table:
    """Every metric at the end, a row each."""
    metrics = dict.fromkeys(metric for group in groups for metric in group.metrics)
    rows = [[metric, *(median_with_range(group.final(metric)) for group in groups)] for metric in metrics]
    return [["metric at the end", *(group.label for group in groups)], *rows]


def settings_table(groups: Sequence[Group]) -> Table:
    """Every setting, a row each."""
    rows = []
    for name in dict.fromkeys(name for group in groups for name in group.runs[0].settings):
        if name == "seed":
            cells = ["seeds " + ", ".join(str(run.seed) for run in group.runs) for group in groups]
        else:
            cells = [str(group.runs[0].settings.get(name)) for group in groups]
        rows.append([name, *cells])
    return [["setting", *(group.label for group in groups)], *rows]


def provenance_table(groups: Sequence[Group]) -> Table:
    """The provenance of each run, a row each."""
    rows = []
    for run in (run for group in groups for run in group.runs):
        made = run.config.get("provenance", {})
        torch = made.get("versions", {}).get("torch")
        cells = [run.path, *(made.get(name) for name in ("device", "threads", "platform", "python"))]
        rows.append(["–" if cell is None else str(cell) for cell in [*cells, torch, made.get("commit")]])
    return [["run", "device", "threads", "platform", "python", "torch", "commit"], *rows]


def as_text(table: Table) -> str:
    """Aligned columns."""
    widths = [max(map(columns_of, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(cell + " " * (width - columns_of(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    return "\n".join([lines[0], "  ".join("─" * width for width in widths), *lines[1:]])


def as_markdown(table: Table) -> str:
    """A pipe table; the best cells are bold."""
    cells = [[f"**{cell}**" if isinstance(cell, Best) else cell.replace("|", r"\|") for cell in row] for row in table]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]]) + "\n"


def as_csv(table: Table) -> str:
    """Comma-separated, quoted where needed."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(table)
    return file.getvalue()


def as_latex(table: Table) -> str:
    """A booktabs tabular; the best cells are bold."""
    rows = [" & ".join(map(_latex_cell, row)) + r" \\" for row in table]
    columns = "l" + "r" * (len(table[0]) - 1)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule", *rows[1:]]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_cell(cell: str) -> str:
    text = cell.translate(LATEX).replace("never", r"$\infty$")
    return rf"\textbf{{{text}}}" if isinstance(cell, Best) else text


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


def number(value: float, infinite: str = "never") -> str:
    """Two digits, or a whole number; `infinite` by default for an epoch that was not reached."""
    if math.isinf(value):
        return infinite if value > 0 else "-∞"
    if float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.4g}"


def percentage(value: float) -> str:
    """A share in per cent, without the sign."""
    return f"{100 * value:.2f}"
