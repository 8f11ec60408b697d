"""Curves over the epochs, as matplotlib figures: one per metric, and one picture of six."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from ....common.text import shortened
from .data_sets import DataSet
from .groups import Group
from .metrics import BY_NAME, PICTURE, Curve
from .style import LINES, MARKERS, STYLE, legend, legend_columns, logarithmic, looks, one_column

PICTURE_WIDTH, PICTURE_HEIGHT = 11.0, 6.2  # inches, for each data set


def curve_figures(groups: Sequence[Group], curves: Sequence[Curve]) -> Iterator[tuple[str, Figure]]:
    """A figure for each curve that has values."""
    for curve in curves:
        figure = one_column(2.9)
        axes = figure.add_subplot()
        if draw_curve(axes, groups, curve):
            legend(figure, axes)
            yield curve.metric, figure


def draw_curve(axes: Axes, groups: Sequence[Group], curve: Curve) -> bool:
    """Draw the median over seeds with the range, a line per group and split; returns whether there were values.

    The held-out split drawn is test, or val for a group without test data; `LINES` has the line styles.
    """
    drawn = False
    for group, look in zip(groups, looks(groups), strict=True):
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
                color=look.colour,
                linestyle=LINES.get(split, "-"),
                linewidth=1.1 if held_out else 1.6,
                marker=look.marker if len(x) < 25 or look.marker != MARKERS[0] else "",
                markevery=max(1, len(x) // 12),
                markersize=2.5,
                label="_" if held_out else look.label,
            )
            if len(group.runs) > 1:
                low = np.maximum(low, 1e-3 * middle) if curve.logarithmic else low
                axes.fill_between(x, low, high, color=look.colour, alpha=0.10 if held_out else 0.18, linewidth=0)
    if curve.logarithmic:
        logarithmic(axes)
    axes.set(title=curve.title, xlabel="epoch", ylabel=curve.axis)
    epochs = sorted({int(epoch) for group in groups for epoch in group.epochs})
    axes.xaxis.set_major_locator(FixedLocator(epochs) if len(epochs) == 1 else MaxNLocator(integer=True))
    axes.margins(x=0.02)
    return drawn


def split_caption(groups: Sequence[Group]) -> str:
    """The meaning of the line styles of the drawn splits.

    >>> split_caption([])
    'solid on training data'
    """
    found = {group.held_out for group in groups}
    words = ["solid on training data"]
    words += ["dashed on test data"] if "test" in found else []
    words += ["dotted on validation data"] if "val" in found else []
    return ", ".join(words)


def picture(sets: Sequence[DataSet], captions: Sequence[str]) -> Figure:
    """A summary picture: accuracy, loss, NC1–NC3 and the distance to the nearest ETF, for each data set."""
    with mpl.rc_context(STYLE):
        named = [[look.label for look in looks(found.groups) if not look.label.startswith("_")] for found in sets]
        columns = [legend_columns(labels, PICTURE_WIDTH, size=10) for labels in named]
        lines = [math.ceil(len(labels) / n) for labels, n in zip(named, columns, strict=True)]
        heights = [PICTURE_HEIGHT + 0.21 * (count - 1) + 0.3 * (len(sets) > 1) for count in lines]
        figure = Figure(figsize=(PICTURE_WIDTH, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(sets), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, found, caption, n in zip(parts, sets, captions, columns, strict=True):
            cells = part.subplots(2, 3).ravel()
            for axes, name in zip(cells, PICTURE, strict=True):
                draw_curve(axes, found.groups, BY_NAME[name])
            handles, labels = cells[0].get_legend_handles_labels()
            title: Any = {"title": shortened(found.heading, 110)} if len(sets) > 1 else {}
            bold = {"size": 12, "weight": "bold"}
            part.legend(
                handles, labels, loc="outside upper center", ncols=n, fontsize=10, **title, title_fontproperties=bold
            )
            part.supxlabel(shortened(caption, 200), fontsize=8, color="#52606d")
    return figure
