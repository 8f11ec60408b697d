"""A run's metrics over its epochs as one picture, and as scalars of TensorBoard where that is installed.

Neither is ever a reason for a run to fail.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PANELS = ("loss", "accuracy", "nc1", "nc2", "nc2_means", "nc3")
RUNNING = ("loss", "accuracy")  # measured on training batches as they pass, too
PARTS = ("train", "test", "running", "solver")


def draw_curves(rows: Sequence[Mapping[str, float]], path: Path) -> str:
    """Draw loss, accuracies and NC1–NC3 over epochs into a PNG.

    Parameters
    ----------
    rows : sequence of dict
        A run's metrics, an entry per epoch.
    path : path
        Replaced whole or not at all.

    Returns
    -------
    str
        Why there is no picture; empty if there is one.
    """
    try:
        # Here, because a run's other processes do not draw, and matplotlib takes a while to import.
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from .report.figures import COLOURS, CURVES, STYLE, draw_curve
        from .report.runs import Group, Run

        group = Group("train, eval mode", (Run(path.parent, {}, {}, [dict(row) for row in rows]),))
        curves = {curve.metric: curve for curve in CURVES}
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(11, 6.2))
            figure.subplots_adjust(left=0.07, right=0.985, top=0.9, bottom=0.075, hspace=0.38, wspace=0.32)
            for axes, name in zip(figure.subplots(2, 3).ravel(), PANELS, strict=True):
                draw_curve(axes, [group], curves[name])
                if name in RUNNING:
                    shown = [(row["epoch"], curves[name].factor * row[f"running_{name}"]) for row in rows]
                    style = {"color": COLOURS[1], "linewidth": 1, "marker": "." if len(rows) < 25 else ""}
                    axes.plot(*zip(*shown, strict=True), label="train, running", zorder=1, **style)
                    axes.plot([], [], color=COLOURS[0], linestyle="--", linewidth=1.1, label="test, eval mode")
            handles, labels = figure.axes[1].get_legend_handles_labels()
            figure.legend(handles, labels, loc="upper center", ncols=len(labels), fontsize=10)
            temporary = path.with_name(path.name + ".tmp")
            FigureCanvasAgg(figure).print_png(temporary)
            os.replace(temporary, path)
    except Exception as error:
        return f"{path.name} could not be drawn: {type(error).__name__}: {error}"
    return ""


def scalar_writer(folder: Path, first_epoch: int) -> Any:
    """TensorBoard's writer, or None where TensorBoard is missing; a resumed run's later points are forgotten."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(folder), purge_step=first_epoch)
    except Exception:  # some version of it that this torch cannot use
        return None


def tag(metric: str) -> str:
    """A metric's name in TensorBoard, which draws what stands before a slash together.

    >>> tag("train_accuracy"), tag("images_per_second")
    ('train/accuracy', 'run/images_per_second')
    """
    part, _, name = metric.partition("_")
    return f"{part}/{name}" if part in PARTS else f"run/{metric}"
