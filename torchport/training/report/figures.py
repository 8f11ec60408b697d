"""Curves over the epochs, as matplotlib figures: one per metric, and one picture of six."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .groups import Group
from .metrics import BY_NAME, PICTURE, Curve
from .style import LINES, STYLE, colour, legend, logarithmic, one_column


def curve_figures(groups: Sequence[Group], curves: Sequence[Curve]) -> Iterator[tuple[str, Figure]]:
    """A figure for each curve for which there are values."""
    for curve in curves:
        figure = one_column(2.9)
        axes = figure.add_subplot()
        if draw_curve(axes, groups, curve):
            legend(figure, axes)
            yield curve.metric, figure


def draw_curve(axes: Axes, groups: Sequence[Group], curve: Curve) -> bool:
    """Draw the median over seeds with the range, a line per group and split; returns whether there were values.

    Of the held-out splits test is drawn, or val where a group has no test data: `LINES` has their line styles.
    """
    drawn = False
    for i, group in enumerate(groups):
        splits = [split for split in ("train", group.held_out) if split] if curve.by_split else [""]
        for split in splits:
            spread = group.over_seeds(f"{split}_{curve.metric}" if split else curve.metric)
            kept = np.isfinite(spread["median"])
            if curve.logarithmic:
                kept &= spread["median"] > 0
            if not kept.any():
                continue
            drawn, held_out = True, split in ("val", "test")
            x = group.epochs[kept]
            low, middle, high = (curve.factor * spread[name][kept] for name in ("min", "median", "max"))
            axes.plot(
                x,
                middle,
                color=colour(i),
                linestyle=LINES.get(split, "-"),
                linewidth=1.1 if held_out else 1.6,
                marker="o" if len(x) < 25 else "",
                markersize=2.5,
                label="_" if held_out else group.label,
            )
            if len(group.runs) > 1:
                low = np.maximum(low, 1e-3 * middle) if curve.logarithmic else low
                axes.fill_between(x, low, high, color=colour(i), alpha=0.10 if held_out else 0.18, linewidth=0)
    if curve.logarithmic:
        logarithmic(axes)
    axes.set(title=curve.title, xlabel="epoch", ylabel=curve.axis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.02)
    return drawn


def split_caption(groups: Sequence[Group]) -> str:
    """What the line styles stand for, of the splits that are drawn.

    >>> split_caption([])
    'solid on training data'
    """
    found = {group.held_out for group in groups}
    words = ["solid on training data"]
    words += ["dashed on test data"] if "test" in found else []
    words += ["dotted on validation data"] if "val" in found else []
    return ", ".join(words)


def picture(groups: Sequence[Group], caption: str) -> Figure:
    """One picture that sums a comparison up: accuracy, loss, NC1–NC3 and the distance to the nearest ETF."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 6.2), layout="constrained")
        cells = figure.subplots(2, 3).ravel()
        for axes, name in zip(cells, PICTURE, strict=True):
            draw_curve(axes, groups, BY_NAME[name])
        handles, labels = cells[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=max(1, len(labels)), fontsize=10)
        figure.supxlabel(caption, fontsize=8, color="#52606d")
    return figure
