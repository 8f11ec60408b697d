"""The tables of study B, as Markdown, from the rows of its result files; `fine_tune.py --summary` prints them."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import fine_tune  # type: ignore[import-not-found]
from fine_tune import CURVES, HEADS, TARGETS, TEMPERATURES, chosen  # type: ignore[import-not-found]
from paired import Paired, median_and_range, paired  # type: ignore[import-not-found]

Rows = list[dict[str, Any]]
# The comparisons named by docs/protocol.md, and secondary ones, at the centre.
NAMED = (
    *(("implicit", "learned"), ("fixed", "learned"), ("implicit", "linear"), ("implicit", "probe")),
    ("learned", "linear"),
)
SECONDARY = (
    *(("implicit", "fixed"), ("implicit", "implicit-detached"), ("implicit", "class-mean"), ("class-mean", "learned")),
    *(("implicit", "tight-frame"), ("probe", "linear"), ("fixed", "linear"), ("fixed", "probe")),
    *(("ntce", "learned"), ("nonl", "learned"), ("implicit", "nonl")),
)
# Comparisons between settings with the same budget and seeds: (head, factor) against (head, factor).
ACROSS = (
    *(((head, "centre"), (head, "not aligned")) for head in ("learned", "fixed", "implicit")),
    (("implicit", "not aligned"), ("learned", "centre")),
    *(((head, "centre"), (head, "batch norm learns")) for head in ("linear", "learned", "fixed", "implicit")),
    (("learned", "head rate ×10"), ("learned", "centre")),
    (("implicit", "centre"), ("learned", "head rate ×10")),
)


def tables(rows: Rows) -> str:
    """Accuracies and differences by factor and budget, epochs to the targets, and the tuning."""
    centre = [row for row in rows if row["factor"] == "centre"]
    parts = ["**The claims**", claims(rows), "**Accuracies**", standings(rows)]
    parts += ["**Named comparisons, and the same in other settings**", differences(rows, NAMED)]
    parts += ["**Secondary comparisons**", differences(centre, SECONDARY), "**Between settings**", across(rows)]
    parts += [f"**The way there, {epochs} epochs**\n\n{way(rows, epochs)}" for epochs in CURVES]
    parts += ["**Tuning**, validation accuracy", over_temperature(rows)]
    return "\n\n".join([*parts, *(grid(rows, epochs) for epochs in CURVES)])


def settings_of(rows: Rows) -> list[tuple[str, int]]:
    """Factors and budgets of the reported rows, the centre first, in the order of docs/protocol.md."""
    found = {(row["factor"], row["epochs"]) for row in rows if row["stage"] == "report"}
    order = ("centre", *(name for scale in (fine_tune.SMALL, fine_tune.FULL) for name, *_ in scale.variations))
    return sorted(found, key=lambda setting: (order.index(setting[0]), setting[1]))


def reported(rows: Rows, factor: str, epochs: int) -> Rows:
    return [row for row in rows if (row["stage"], row["factor"], row["epochs"]) == ("report", factor, epochs)]


def standings(rows: Rows) -> str:
    """Every head of every setting: its choice, accuracy before training, and median and range after it."""
    lines = [["setting", "head", "rate, τ and the like", "before training", "test accuracy: median (range)", "seeds"]]
    for factor, epochs in settings_of(rows):
        of_setting = reported(rows, factor, epochs)
        for head in heads_of(of_setting):
            own = [row for row in of_setting if row["head"] == head]
            before = statistics.median([row["curve"]["0"] for row in own])
            values = [row["accuracy"] for row in own]
            diverged = sum("diverged" in row for row in own)
            count = f"{len(values)}, {diverged} diverged" if diverged else str(len(values))
            line = [f"{factor}, {epochs} epochs", head, settings(own[0]), f"{before:.3f}"]
            lines.append([*line, median_and_range(values), count])
    return markdown(lines)


def differences(rows: Rows, pairs: tuple[tuple[str, str], ...]) -> str:
    """Paired differences in points, for the pairs with runs in a setting."""
    lines = [["setting", "comparison", "mean [95 % interval]", "verdict", "each seed"]]
    for (factor, epochs), (head, other) in itertools.product(settings_of(rows), pairs):
        of_setting = reported(rows, factor, epochs)
        values, others = accuracies(of_setting, head), accuracies(of_setting, other)
        if values.keys() & others.keys():
            lines.append([f"{factor}, {epochs} epochs", f"{head} − {other}", *cells(paired(values, others))])
    return markdown(lines)


def across(rows: Rows, epochs: int = 4) -> str:
    """Paired differences between two settings; each head has its choice of the centre."""
    lines = [["comparison", "mean [95 % interval]", "verdict", "each seed"]]
    for (head, factor), (other, its_factor) in ACROSS:
        values = accuracies(reported(rows, factor, epochs), head)
        others = accuracies(reported(rows, its_factor, epochs), other)
        if values.keys() & others.keys():
            name = f"{head} ({factor}) − {other} ({its_factor})"
            lines.append([name, *cells(paired(values, others))])
    return markdown(lines)


def cells(pair: Paired) -> list[str]:
    """Mean with interval, verdict, and each difference, in points of accuracy."""
    low, high = pair.interval
    each = " ".join(f"{100 * x:+.1f}" for x in pair.differences)
    return [f"{100 * pair.mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]", pair.verdict, each]


def difference(values: dict[int, float], others: dict[int, float]) -> str:
    """As in "+1.2 [+0.3, +2.1] better; +0.9 +1.5 …", in points of accuracy."""
    mean, verdict, each = cells(paired(values, others))
    return f"{mean} {verdict}; {each}"


def claims(rows: Rows) -> str:
    """The two claims named by docs/protocol.md, decided by its rules."""
    lines = [["claim", "stands if", "found", "verdict"]]
    verdicts = {}
    for epochs, head in itertools.product((4, 20), ("implicit", "fixed")):
        of_setting = reported(rows, "centre", epochs)
        values, others = accuracies(of_setting, head), accuracies(of_setting, "learned")
        verdicts[head, epochs] = "undecided", f"{head} not run"
        if values.keys() & others.keys():
            mean, verdict, _ = cells(paired(values, others))
            verdicts[head, epochs] = verdict, f"{head} {mean} {verdict}"
    small = [verdicts["implicit", 4], verdicts["fixed", 4]]
    stands = any(verdict == "better" for verdict, _ in small)
    found = "; ".join(told for _, told in small)
    rule = "implicit or fixed is better than learned after 4 epochs"
    lines.append(["aligned ETF heads serve small budgets", rule, found, says(stands)])
    stands = stands and verdicts["implicit", 20][0] == "better"
    lines.append(
        ["they serve fine-tuning", "and implicit also after 20", verdicts["implicit", 20][1], says(stands)],
    )
    return markdown(lines)


def says(stands: bool) -> str:
    return "**stands**" if stands else "**does not stand**"


def way(rows: Rows, epochs: int) -> str:
    """Medians at the epochs named in advance, and the first of them that reaches each target, seed by seed."""
    at = CURVES[epochs]
    lines = [["head", *(f"epoch {epoch}" for epoch in at), *(f"to {target:.2f}" for target in TARGETS)]]
    of_setting = reported(rows, "centre", epochs)
    for head in heads_of(of_setting):
        own = sorted((row for row in of_setting if row["head"] == head), key=lambda row: row["seed"])
        points = [[row["curve"][str(e)] for row in own if str(e) in row["curve"]] for e in at]
        line = [head, *(f"{statistics.median(values):.3f}" if values else "–" for values in points)]
        lines.append([*line, *(times([first(row, target) for row in own]) for target in TARGETS)])
    return markdown(lines)


def first(row: dict[str, Any], target: float) -> float:
    """The first named epoch at which a run reaches the target; infinite if it never does."""
    return next((int(epoch) for epoch, accuracy in row["curve"].items() if accuracy >= target), math.inf)


def times(epochs: list[float]) -> str:
    """The median and each seed; "never" is later than every epoch.

    >>> times([2, 4, math.inf])
    '4; 2 4 never'
    """
    names = ["never" if math.isinf(epoch) else f"{epoch:g}" for epoch in [statistics.median(epochs), *epochs]]
    return f"{names[0]}; {' '.join(names[1:])}"


def trials(rows: Rows, head: str, epochs: int) -> dict[tuple[float, float], float]:
    """Mean validation accuracy over the tuning seeds, by rate and knob."""
    found: dict[tuple[float, float], list[float]] = {}
    for row in rows:
        if (row["stage"], row["head"], row["epochs"]) == ("tune", head, epochs):
            found.setdefault((row["rate"], row[HEADS[head].knob]), []).append(row["accuracy"])
    return {pair: statistics.fmean(values) for pair, values in found.items()}


def over_temperature(rows: Rows) -> str:
    """Validation accuracy of the heads on a sphere over τ, at the best rate of each; the choice is in bold."""
    lines = [["head", "epochs", *(f"τ = {tau:g}" for tau in TEMPERATURES)]]
    for head, epochs in itertools.product(HEADS, CURVES):
        found, choice = trials(rows, head, epochs), chosen(rows, head, epochs)
        if choice is None or HEADS[head].knob != "temperature":
            continue
        line = [head, str(epochs)]
        for tau in TEMPERATURES:
            best = max(sorted(pair for pair in found if pair[1] == tau), key=found.__getitem__, default=None)
            cell = f"{found[best]:.3f} at {best[0]:g}" if best else "–"
            line.append(f"**{cell}**" if best == (choice["rate"], choice["temperature"]) else cell)
        lines.append(line)
    return markdown(lines)


def grid(rows: Rows, epochs: int) -> str:
    """Every trial: validation accuracy by head, value of its knob, and rate; the choice is in bold."""
    by_head = {head: found for head in HEADS if (found := trials(rows, head, epochs))}
    rates = sorted({rate for found in by_head.values() for rate, _ in found})
    lines = [["head", "knob", *(f"rate {rate:g}" for rate in rates)]]
    for head, found in by_head.items():
        knob, choice = HEADS[head].knob, chosen(rows, head, epochs)
        for value in sorted({value for _, value in found}):
            line = [head, f"{knob.replace('_', ' ')} {value:g}"]
            for rate in rates:
                cell = f"{found[rate, value]:.3f}" if (rate, value) in found else "–"
                line.append(f"**{cell}**" if choice == {"rate": rate, knob: value} else cell)
            lines.append(line)
    return markdown(lines)


def heads_of(rows: Rows) -> list[str]:
    present = {row["head"] for row in rows}
    return [head for head in HEADS if head in present]


def accuracies(rows: Rows, head: str) -> dict[int, float]:
    return {row["seed"]: row["accuracy"] for row in rows if row["head"] == head}


def settings(row: dict[str, Any]) -> str:
    parts = [f"rate {row['rate']:g}"]
    parts += [f"τ = {row['temperature']:g}"] if row["temperature"] else []
    parts += [f"penalty {row['penalty']:g}"] if row["penalty"] else []
    parts += [f"head ×{row['head_rate']:g}"] if row["head_rate"] != 1 else []
    return ", ".join(parts)


def markdown(lines: list[list[str]]) -> str:
    """A Markdown table; the first line is its head."""
    rule = ["---"] * len(lines[0])
    return "\n".join(f"| {' | '.join(line)} |" for line in itertools.chain(lines[:1], [rule], lines[1:]))
