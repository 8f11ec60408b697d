"""Tables of the studies of training from scratch, as Markdown, from the rows of their result files."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

from fine_tune_tables import difference, markdown, times  # type: ignore[import-not-found]
from paired import median_and_range, paired  # type: ignore[import-not-found]
from scratch import HEADS, SMALL, Rows, chosen  # type: ignore[import-not-found]

__all__ = ["collapse", "comparison", "groups", "markdown", "median_and_range", "tuned"]
SHOWN = (1, 2, 4)  # epochs with a column of accuracy, beside the last one
COLLAPSE = (("nc1", 1.0), ("nc1", 0.3), ("nc2", 0.3), ("nc3", 0.3))  # upper bounds

SECONDARY = (
    *(("implicit", "linear"), ("fixed", "linear"), ("ntce", "linear"), ("canonical", "fixed")),
    *(("implicit-detached", "implicit"), ("class-mean", "implicit")),
)


def groups(rows: Rows, label: Callable[[dict[str, Any]], str], **fixed: Any) -> dict[str, Rows]:
    """Reported rows whose columns have these values, grouped by a label, in the order of the rows."""
    found: dict[str, Rows] = {}
    for row in rows:
        if row["stage"] == "report" and all(row[name] == value for name, value in fixed.items()):
            found.setdefault(label(row), []).append(row)
    return found


def comparison(by_label: dict[str, Rows], opponent: str) -> str:
    """Accuracy at the first epochs and the last one, its deviation over seeds, and differences to the opponent."""
    early = [e for e in SHOWN if any(e in row["at"][:-1] for rows in by_label.values() for row in rows)]
    lines = [
        ["", "rate, τ and the like", *(f"epoch {e}" for e in early), "last epoch", "deviation", f"minus {opponent}"]
    ]
    lines[0][-1] += ": mean [interval], verdict; each seed"
    of = {label: {row["seed"]: row["accuracy"] for row in rows} for label, rows in by_label.items()}
    for label, rows in by_label.items():
        values = list(of[label].values())
        points = [[row["test"][row["at"].index(e)] for row in rows if e in row["at"]] for e in early]
        both = label != opponent and of.get(opponent, {}).keys() & of[label].keys()
        lines.append(
            [
                label + (f", {n} diverged" if (n := sum("diverged" in row for row in rows)) else ""),
                settings(rows[0]),
                *(f"{statistics.median(x):.3f}" if x else "–" for x in points),
                median_and_range(values),
                f"{statistics.stdev(values):.4f}" if len(values) > 1 else "–",
                difference(of[label], of[opponent]) if both else "–",
            ]
        )
    return str(markdown(lines))


def collapse(by_label: dict[str, Rows], opponent: str, targets: tuple[float, ...] | None = None) -> str:
    """Epochs to the targets of accuracy and collapse: medians, and paired differences to the opponent."""
    targets = targets or SMALL[next(iter(by_label.values()))[0]["data"]].targets
    goals = [("test", t) for t in targets] + list(COLLAPSE)
    lines = [["", *(f"{'accuracy ≥' if name == 'test' else name.upper() + ' ≤'} {value:g}" for name, value in goals)]]
    ways = {label: {goal: reached(rows, *goal) for goal in goals} for label, rows in by_label.items()}
    for label, way in ways.items():
        cells = []
        for goal in goals:
            cell = times(list(way[goal].values())).split("; ")[0]
            never = sum(math.isinf(x) for x in way[goal].values())
            cell += f" ({never} never)" if never and cell != "never" else ""
            if label != opponent and opponent in ways:
                cell += f"; {earlier(way[goal], ways[opponent][goal])}"
            cells.append(cell)
        lines.append([label, *cells])
    note = (
        f"After the semicolon: epochs saved against {opponent}; where a run never arrives, how many pairs are earlier, "
    )
    return f"{markdown(lines)}\n\n{note}level and later."


def reached(rows: Rows, name: str, target: float) -> dict[int, float]:
    """By seed, the first named epoch at which a run reaches the target; infinite if it never does."""

    def first(row: dict[str, Any]) -> float:
        for epoch, value in zip(row["at"], row[name], strict=True):
            if value is not None and (value >= target if name == "test" else value <= target):
                return float(epoch)
        return math.inf

    return {row["seed"]: first(row) for row in rows}


def earlier(values: dict[int, float], others: dict[int, float]) -> str:
    """Epochs saved, with interval and verdict; with "never", which is later than every epoch, counts of pairs.

    >>> earlier({0: 2.0, 1: 3.0}, {0: 4.0, 1: math.inf})
    '2 earlier, 0 level, 0 later'
    """
    seeds = values.keys() & others.keys()
    if not seeds:
        return "–"
    if any(math.isinf(x[seed]) for x in (values, others) for seed in seeds):
        before, after = sum(values[s] < others[s] for s in seeds), sum(values[s] > others[s] for s in seeds)
        return f"{before} earlier, {len(seeds) - before - after} level, {after} later"
    pair = paired(others, values)
    low, high = pair.interval
    return f"{pair.mean:+.1f} [{low:+.1f}, {high:+.1f}] {pair.verdict}"


def named(rows: Rows) -> str:
    """The named comparison of study A: implicit − learned on each data set, and the epochs saved."""
    lines = [["data", "final accuracy, points; each seed", "epochs saved to the lower target", "… to NC1 ≤ 1"]]
    for factor in dict.fromkeys(row["factor"] for row in rows if row["stage"] == "report"):
        by_head = groups(rows, lambda row: row["head"], factor=factor)
        own, other = by_head.get("implicit", []), by_head.get("learned", [])
        if own and other:
            accuracy = ({row["seed"]: row["accuracy"] for row in part} for part in (own, other))
            goals = (("test", SMALL[own[0]["data"]].targets[0]), ("nc1", 1.0))
            saved = [earlier(reached(own, *goal), reached(other, *goal)) for goal in goals]
            lines.append([factor, difference(*accuracy), *saved])
    return str(markdown(lines))


def secondary(rows: Rows) -> str:
    """Further paired differences in final accuracy, on images; they were chosen after the results were known."""
    lines = [["comparison", "data", "final accuracy, points; each seed"]]
    for head, opponent in SECONDARY:
        for factor in dict.fromkeys(row["factor"] for row in rows if not row["data"].startswith("ufm")):
            by_head = groups(rows, lambda row: row["head"], factor=factor)
            if {head, opponent} <= by_head.keys():
                accuracy = ({row["seed"]: row["accuracy"] for row in by_head[name]} for name in (head, opponent))
                lines.append([f"{head} − {opponent}", factor, difference(*accuracy)])
    return str(markdown(lines))


def tuned(rows: Rows) -> str:
    """The best rate and its score, for each data set, head and value of its knob; the choice is in bold."""
    lines = [["data", "head", "knob: accuracy (UFM: NC1) at its best rate"]]
    pairs = {(row["data"], row["head"]): None for row in rows if row["stage"] == "tune"}
    for data, head in pairs:
        own = [row for row in rows if (row["stage"], row["head"], row["data"]) == ("tune", head, data)]
        knob, choice, cells = HEADS[head].knob, chosen(own, head, data), []
        for value in sorted({row[knob] for row in own}):
            at_value = [row for row in own if row[knob] == value]
            best = chosen(at_value, head, data)
            assert best is not None
            row = next(row for row in at_value if row["rate"] == best["rate"])
            score = (row["nc1"] or [None])[-1] if data.startswith("ufm") else row["accuracy"]
            cell = f"{value:g}: {'–' if score is None else f'{score:.3g}'} at {best['rate']:g}"
            cells.append(f"**{cell}**" if best == choice else cell)
        lines.append([data, head, f"{knob.replace('_', ' ')} {', '.join(cells)}"])
    return str(markdown(lines))


def settings(row: dict[str, Any]) -> str:
    tau = row["temperature"]
    parts = [f"rate {row['rate']:g}"]
    parts += [f"τ = {tau:g}" if isinstance(tau, float) else f"τ {tau or 'default'}"] if row["head"] != "linear" else []
    parts += [f"decay {row['weight_decay']:g}"] if row["weight_decay"] is not None else []
    return ", ".join(parts)
