"""What the figures share: colours, line styles, sizes, legends.

Colours are those of Okabe & Ito, told apart in every kind of colour vision and in grey.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
INK, FAINT = "#1f2933", "#9aa5b1"
DASHED = (0, (4, 1.5))
LINES: dict[str, Any] = {"train": "-", "val": (0, (1, 1.2)), "test": DASHED}  # of the splits
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # names of classes and folders may hold dollar signs
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "nearest-etf",
    "svg.fonttype": "none",  # text stays text: smaller, searchable, in the page's own font
}
WIDTH = 4.6  # inches: one column on a desktop, the whole width of a phone


def colour(group: int) -> str:
    """The colour of a group, by its position in the report."""
    return COLOURS[group % len(COLOURS)]


def one_column(height: float) -> Figure:
    """A figure of one column; margins are fixed, as a layout engine would take longer than the drawing."""
    figure = Figure(figsize=(WIDTH, height))
    inch = 1 / height
    figure.subplots_adjust(left=0.155, right=0.97, top=1 - 0.3 * inch, bottom=0.72 * inch, wspace=0.28)
    return figure


def legend(figure: Figure, axes: Axes) -> None:
    """The heads below the axes, in one line where they fit."""
    _, labels = axes.get_legend_handles_labels()
    if len(labels) > 0:
        columns = 1 if max(map(len, labels)) > 25 else min(4, len(labels))
        figure.legend(loc="lower center", ncols=columns, handlelength=1.4, columnspacing=1.2)


def logarithmic(axes: Axes) -> None:
    """A logarithmic vertical axis with plain numbers at its ticks."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 20 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
