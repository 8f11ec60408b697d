"""The common style of the figures: colours, line styles, sizes, legends.

Colours are those of Okabe & Ito, distinguishable with every kind of colour vision and in grey.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ....common.text import shortened, shown
from .groups import Group

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
MARKERS = ("o", "s")
MOST_TOLD_APART = len(COLOURS) * len(MARKERS)  # groups; of more, all lines of a head look the same
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
LETTER, LINE, HANDLE = 0.074, 0.165, 0.42  # inches in a legend: mean letter, line height, line sample
LONGEST = 44  # letters in a legend or a title


@dataclass(frozen=True)
class Look:
    """How a group is drawn.

    Attributes
    ----------
    label : str
        In legends; starts with "_" where another group of the same look has the entry.
    colour, marker : str
    """

    label: str
    colour: str
    marker: str


def looks(groups: Sequence[Group]) -> list[Look]:
    """A look for each group: colours, then colours with another marker; of too many groups, a colour for each head."""
    if len(groups) <= MOST_TOLD_APART:
        return [
            Look(_entry(group.label), COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS)])
            for i, group in enumerate(groups)
        ]
    heads = [shown(group.runs[0].settings.get("head", "run")) for group in groups]
    counts, found = Counter(heads), list[Look]()
    for i, head in enumerate(heads):
        k = list(counts).index(head)
        label = "_" if head in heads[:i] else f"{shortened(head, LONGEST - 16)} ({counts[head]} lines)"
        found.append(Look(label, COLOURS[k % len(COLOURS)], MARKERS[k // len(COLOURS) % len(MARKERS)]))
    return found


def _entry(label: str) -> str:
    """A label in a legend, which matplotlib leaves out if it starts with "_"."""
    short = shortened(label, LONGEST)
    return f" {short}" if short.startswith("_") else short


def one_column(height: float) -> Figure:
    """A figure of one column; margins are fixed, as a layout engine would take longer than the drawing."""
    figure = Figure(figsize=(WIDTH, height))
    inch = 1 / height
    figure.subplots_adjust(left=0.155, right=0.97, top=1 - 0.3 * inch, bottom=0.72 * inch, wspace=0.28)
    return figure


def legend(figure: Figure, axes: Axes) -> None:
    """The groups below the axes, in as many columns as fit; the figure grows by their lines."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    columns = legend_columns(labels, WIDTH)
    extra = LINE * (math.ceil(len(labels) / columns) - 1)
    height = figure.get_figheight()
    figure.set_figheight(height + extra)
    figure.subplots_adjust(top=1 - 0.3 / (height + extra), bottom=(0.72 + extra) / (height + extra))
    figure.legend(handles, labels, loc="lower center", ncols=columns, handlelength=1.4, columnspacing=1.2)


def legend_columns(labels: Sequence[str], width: float, size: float = 8) -> int:
    """In how many columns labels of that font size fit into a width in inches.

    >>> legend_columns(["learned", "fixed", "implicit"], 4.6), legend_columns(["implicit · τ=5 · lr 0.1"] * 3, 4.6)
    (3, 2)
    """
    column = size / 8 * (HANDLE + LETTER * max(map(len, labels), default=0))
    return max(1, min(len(labels), int(width / column)))


def drawable(text: str) -> str:
    """A text with escapes in place of the letters that the figures' font lacks, and would draw as empty boxes.

    >>> print(drawable("Vögel, τ, 猫"))
    Vögel, τ, \\u732b
    """
    known = get_font(findfont(FontProperties())).get_charmap()
    escaped = (letter.encode("ascii", "backslashreplace").decode("ascii") for letter in text)
    return "".join(
        letter if ord(letter) in known or letter.isspace() else escape
        for letter, escape in zip(text, escaped, strict=True)
    )


def save(figure: Figure, file: Any, kind: str, **options: Any) -> None:
    """Write a figure as svg, whose text the reader's fonts draw, or as png or pdf, with `drawable` text."""
    if kind != "svg":
        for axes in figure.findobj(Axes):
            for axis in (axes.xaxis, axes.yaxis):
                labels = [label.get_text() for label in axis.get_ticklabels()]
                if labels != (escaped := [drawable(label) for label in labels]):
                    axis.set_ticks(axis.get_majorticklocs(), escaped)
        for text in figure.findobj(Text):
            text.set_text(drawable(text.get_text()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(file, format=kind, **options)


def logarithmic(axes: Axes) -> None:
    """A logarithmic vertical axis with plain numbers at its ticks."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 20 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
