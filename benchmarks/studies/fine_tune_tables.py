"""The tables of study B, as Markdown, from the rows of its result files; `fine_tune.py --summary` prints them."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

from fine_tune import CURVES, HEADS, TARGETS, chosen  # type: ignore[import-not-found]
from paired import median_and_range, paired  # type: ignore[import-not-found]

Rows = list[dict[str, Any]]
OPPONENTS = ("learned", "linear", "probe")  # differences to these are reported, where they ran


def tables(rows: Rows) -> str:
    """Accuracies and differences by factor and budget, the way to the targets, and what was tuned."""
    reported = [row for row in rows if row["stage"] == "report"]
    parts = []
    for factor, epochs in dict.fromkeys((row["factor"], row["epochs"]) for row in reported):
        of_setting = [row for row in reported if (row["factor"], row["epochs"]) == (factor, epochs)]
        parts += [f"**{factor}, {epochs} epochs**", comparison(of_setting)]
        if factor == "centre":
            parts += [f"**{factor}, {epochs} epochs: the way there**", way(of_setting, CURVES[epochs])]
    for epochs in dict.fromkeys(row["epochs"] for row in rows if row["stage"] == "tune"):
        parts += [f"**Tuning, {epochs} epochs**, validation accuracy", tuned(rows, epochs)]
    return "\n\n".join(parts)


def comparison(rows: Rows) -> str:
    """Median and range of every head, and its differences to the opponents, in points, seed by seed."""
    by_head = {head: accuracies(rows, head) for head in HEADS if accuracies(rows, head)}
    opponents = [head for head in OPPONENTS if head in by_head]
    names = ["head", "rate, τ and the like", "before training", "test accuracy"]
    names += [f"minus {opponent}: mean [interval], verdict; each seed" for opponent in opponents]
    lines = [names]
    for head, values in by_head.items():
        own = [row for row in rows if row["head"] == head]
        before = [row["curve"]["0"] for row in own if "0" in row["curve"]]
        line = [head, settings(own[0]), f"{statistics.median(before):.3f}" if before else "–"]
        line.append(median_and_range(list(values.values())))
        for opponent in opponents:
            both = values.keys() & by_head[opponent].keys()
            line.append("–" if head == opponent or not both else difference(values, by_head[opponent]))
        lines.append(line)
    return markdown(lines)


def difference(values: dict[int, float], others: dict[int, float]) -> str:
    """As in "+1.2 [+0.3, +2.1] better; +0.9 +1.5 …", in points of accuracy."""
    pair = paired(values, others)
    low, high = pair.interval
    each = " ".join(f"{100 * x:+.1f}" for x in pair.differences)
    return f"{100 * pair.mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] {pair.verdict}; {each}"


def way(rows: Rows, epochs: tuple[int, ...]) -> str:
    """Medians at the epochs named in advance, and the first of them at which the targets stand, seed by seed."""
    lines = [["head", *(f"epoch {epoch}" for epoch in epochs), *(f"to {target:.2f}" for target in TARGETS)]]
    for head in HEADS:
        own = sorted((row for row in rows if row["head"] == head), key=lambda row: row["seed"])
        if own:
            points = [[row["curve"][str(e)] for row in own if str(e) in row["curve"]] for e in epochs]
            line = [head, *(f"{statistics.median(values):.3f}" if values else "–" for values in points)]
            lines.append([*line, *(times([first(row, target) for row in own]) for target in TARGETS)])
    return markdown(lines)


def first(row: dict[str, Any], target: float) -> float:
    """The first named epoch at which a run stands at the target; infinite where it never does."""
    return next((int(epoch) for epoch, accuracy in row["curve"].items() if accuracy >= target), math.inf)


def times(epochs: list[float]) -> str:
    """Median, and each seed; "never" comes after every epoch.

    >>> times([2, 4, math.inf])
    '4; 2 4 never'
    """
    names = ["never" if math.isinf(epoch) else f"{epoch:g}" for epoch in [statistics.median(epochs), *epochs]]
    return f"{names[0]}; {' '.join(names[1:])}"


def tuned(rows: Rows, epochs: int) -> str:
    """For each head and value of its knob the best rate and its accuracy; the choice is in bold."""
    lines = [["head", "knob: accuracy at its best rate"]]
    for head, contestant in HEADS.items():
        own = [row for row in rows if (row["stage"], row["head"], row["epochs"]) == ("tune", head, epochs)]
        choice = chosen(rows, head, epochs)
        if choice is None:
            continue
        cells = []
        for value in sorted({row[contestant.knob] for row in own}):
            at_value = [row for row in own if row[contestant.knob] == value]
            best = chosen(at_value, head, epochs)
            assert best is not None
            accuracy = statistics.fmean(row["accuracy"] for row in at_value if row["rate"] == best["rate"])
            cell = f"{value:g}: {accuracy:.3f} at {best['rate']:g}"
            cells.append(f"**{cell}**" if best == choice else cell)
        lines.append([head, f"{contestant.knob.replace('_', ' ')} {', '.join(cells)}"])
    return markdown(lines)


def accuracies(rows: Rows, head: str) -> dict[int, float]:
    return {row["seed"]: row["accuracy"] for row in rows if row["head"] == head}


def settings(row: dict[str, Any]) -> str:
    parts = [f"rate {row['rate']:g}"]
    parts += [f"τ = {row['temperature']:g}"] if row["temperature"] else []
    parts += [f"penalty {row['penalty']:g}"] if row["penalty"] else []
    parts += [f"head ×{row['head_rate']:g}"] if row["head_rate"] != 1 else []
    return ", ".join(parts)


def markdown(lines: list[list[str]]) -> str:
    """A table, of which the first line is the head."""
    rule = ["---"] * len(lines[0])
    return "\n".join(f"| {' | '.join(line)} |" for line in itertools.chain(lines[:1], [rule], lines[1:]))
