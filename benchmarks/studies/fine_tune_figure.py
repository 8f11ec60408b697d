"""The figure of study B, from the rows of its result files: docs/fine-tuning.png.

    python benchmarks/studies/fine_tune_figure.py

Left: accuracy over training, for the two budgets of the centre: medians over the seeds at the epochs named in advance,
with the range for the implicit and the linear head. Right: paired differences of the implicit head to the learned and
to the linear head in every setting: one dot per seed, and the mean with its 95 % interval.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
from pathlib import Path
from typing import Any

from fine_tune import CURVES  # type: ignore[import-not-found]
from fine_tune_tables import Rows, accuracies, reported, settings_of  # type: ignore[import-not-found]
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from paired import paired  # type: ignore[import-not-found]
from PIL import Image

COLOURS = {"implicit": "#c2410c", "fixed": "#ca8a04", "learned": "#2563eb", "probe": "#6b7280", "linear": "#111827"}
STYLES = {"implicit": "-", "fixed": "-", "learned": "-", "probe": ":", "linear": "--"}
STEPS = {4: 40, 20: 200}  # of the centre
BANDS = ("implicit", "linear")  # heads with a range
OPPONENTS, COLOURS_KEPT = ("learned", "linear"), 64
NAMES = {"centre": "CIFAR-10, 50 per class", "10 per class": "CIFAR-10, 10 per class"}
NAMES |= {"200 per class": "CIFAR-10, 200 per class", "CIFAR-100, 20 classes": "CIFAR-100 (20 classes), 25"}
NAMES |= {"Fashion-MNIST": "Fashion-MNIST, 50 per class"}


def curves(axes: Axes, rows: Rows, epochs: int) -> None:
    """Plot accuracy over epochs, on the first thousand test images."""
    of_setting = reported(rows, "centre", epochs)
    at = CURVES[epochs]
    for head, colour in COLOURS.items():
        values = [[row["curve"][str(e)] for row in of_setting if row["head"] == head] for e in at]
        if head in BANDS:
            axes.fill_between(at, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.13, lw=0)
        medians = [statistics.median(v) for v in values]
        axes.plot(at, medians, STYLES[head], color=colour, label=head, lw=1.8, marker="o", ms=3)
    axes.set_title(f"{epochs} epochs ({STEPS[epochs]} steps)", fontsize=10)
    axes.set_xlabel("epoch")
    axes.set_xticks([e for e in at if epochs == 4 or e not in (1, 2)])
    axes.set_ylim(0.38, 0.76)
    axes.grid(alpha=0.25, lw=0.6)


def gains(axes: Axes, rows: Rows) -> None:
    """Plot differences in points, one row per setting and budget."""
    settings = [pair for name in NAMES for pair in sorted(settings_of(rows)) if pair[0] == name]
    for place, (factor, epochs) in enumerate(settings):
        of_setting = reported(rows, factor, epochs)
        for shift, opponent in zip((-0.16, 0.16), OPPONENTS, strict=True):
            pair = paired(accuracies(of_setting, "implicit"), accuracies(of_setting, opponent))
            y, colour = place + shift, COLOURS[opponent]
            axes.plot([100 * x for x in pair.differences], [y] * len(pair.differences), "o", color=colour, ms=2.5)
            low, high = (100 * end for end in pair.interval)
            axes.plot([low, high], [y, y], color=colour, lw=1.3)
            axes.plot([100 * pair.mean], [y], "|", color=colour, ms=9, mew=2, label=f"− {opponent}" * (place == 0))
    axes.axvline(0, color="#111827", lw=0.8)
    axes.set_yticks(range(len(settings)), [f"{NAMES[factor]}, {epochs} ep." for factor, epochs in settings], fontsize=8)
    axes.invert_yaxis()
    axes.set_title("implicit minus learned and linear", fontsize=10)
    axes.set_xlabel("points of test accuracy")
    axes.grid(axis="x", alpha=0.25, lw=0.6)
    axes.legend(frameon=False, fontsize=8, loc="upper right")


def figure(rows: Rows) -> Figure:
    drawn = Figure(figsize=(10.5, 3.7), dpi=110, facecolor="white", layout="constrained")
    left, middle, right = drawn.subplots(1, 3, width_ratios=(1, 1.2, 1.35))
    curves(left, rows, 4)
    curves(middle, rows, 20)
    left.set_ylabel("test accuracy")
    middle.legend(frameon=False, fontsize=8, loc="lower right")
    gains(right, rows)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results = [Path("benchmarks/results") / f"fine-tune-{n}.json" for n in (1, 2)]
    parser.add_argument("--json", type=Path, nargs="+", default=results)
    parser.add_argument("--to", type=Path, default=Path("docs/fine-tuning.png"))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for path in options.json:
        rows += json.loads(path.read_text(encoding="utf-8"))["rows"]
    drawn = io.BytesIO()
    figure(rows).savefig(drawn, format="png")
    with Image.open(drawn) as picture:  # a third of the bytes
        picture.convert("RGB").quantize(COLOURS_KEPT).save(options.to, optimize=True)


if __name__ == "__main__":
    main()
