"""A picture of a run's metrics over its epochs; an error while drawing never ends the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...common.files import replacing

PANELS = ("loss", "accuracy", "nc1", "nc2", "nc2_means", "nc3")
RUNNING = ("loss", "accuracy")  # also measured on training batches


def draw_curves(rows: Sequence[Mapping[str, float]], path: Path) -> str:
    """Draw loss, accuracies and NC1–NC3 over epochs into a PNG.

    Parameters
    ----------
    rows : sequence of dict
        A run's metrics, an entry per epoch.
    path : path

    Returns
    -------
    str
        The reason why there is no picture; empty if there is one.
    """
    try:
        # Imported here: a run's other processes do not draw, and a broken matplotlib must not stop a run.
        import matplotlib as mpl
        from matplotlib.figure import Figure

        from .report.figures import draw_curve
        from .report.groups import Group
        from .report.metrics import BY_NAME
        from .report.style import COLOURS, LINES, STYLE
        from .run.reading import Run

        group = Group("train, eval mode", (Run(path.parent, {}, {}, [dict(row) for row in rows]),))
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(11, 6.2))
            figure.subplots_adjust(left=0.07, right=0.985, top=0.9, bottom=0.075, hspace=0.38, wspace=0.32)
            for axes, name in zip(figure.subplots(2, 3).ravel(), PANELS, strict=True):
                draw_curve(axes, [group], BY_NAME[name])
                if name in RUNNING:
                    key = f"running_{name}"  # epoch 0, before the first step, has none
                    shown = [(row["epoch"], BY_NAME[name].factor * row[key]) for row in rows if key in row]
                    style = {"color": COLOURS[1], "linewidth": 1, "marker": "." if len(rows) < 25 else ""}
                    x, y = zip(*shown, strict=True) if shown else ((), ())
                    axes.plot(x, y, label="train, running", zorder=1, **style)
                    if group.held_out:
                        style = {"color": COLOURS[0], "linestyle": LINES[group.held_out], "linewidth": 1.1}
                        axes.plot([], [], label=f"{group.held_out}, eval mode", **style)
            handles, labels = figure.axes[1].get_legend_handles_labels()
            figure.legend(handles, labels, loc="upper center", ncols=len(labels), fontsize=10)
            with replacing(path) as file:
                figure.savefig(file, format="png", dpi=100)
    except Exception as error:
        return f"{path.name} could not be drawn: {type(error).__name__}: {error}"
    return ""
