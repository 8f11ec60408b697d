"""Four classes in three dimensions on their way to the tetrahedron, with each head: python -m docs.pictures.tetrahedron

Data: the digits 0 to 3. Network: two layers, three features, the same seed for every head. Dots are unit features, thin
lines the directions of the centred class means, thick lines the unit rows of the classifier. The angles are those
between the rows; in a regular tetrahedron all are 109.5°.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from nearest_etf import (
    Classifier,
    ClassMeanHead,
    FixedETFHead,
    ImplicitETFHead,
    LearnedHead,
    LinearHead,
    TightFrameHead,
)

PICTURE = Path(__file__).parent / "tetrahedron.gif"
STEPS = (*range(12), *range(12, 36, 3), *range(36, 121, 6))  # drawn steps of the optimizer
SHOWN, COLOURS, TAU = 24, ("#0072B2", "#D55E00", "#009E73", "#AA4499"), 10.0
Array = NDArray[np.float64]


class Moment(NamedTuple):
    """One head at one step: unit features (4, SHOWN, 3), class means (4, 3) and rows (4, 3)."""

    features: Array
    means: Array
    rows: Array


def heads() -> dict[str, Any]:
    return {
        "linear": LinearHead(3, 4),
        "learned": LearnedHead(3, 4, TAU),
        "class mean": ClassMeanHead(3, 4, TAU),
        "fixed ETF": FixedETFHead(3, 4, TAU),
        "implicit ETF": ImplicitETFHead(3, 4, TAU, formulation="gauge-free"),
        "tight frame": TightFrameHead(3, 4, TAU),
    }


def trained(head: Any) -> list[Moment]:
    """Train, and record every drawn step."""
    digits = load_digits(n_class=4)
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    shown = torch.stack([torch.nonzero(labels == k).flatten()[:SHOWN] for k in range(4)])
    torch.manual_seed(3)
    model = Classifier(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3)), head)
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    moments = []
    for step in range(max(STEPS) + 1):
        index = torch.randperm(len(labels))[:128]
        loss = F.cross_entropy(model(images[index], labels[index]), labels[index])
        if step in STEPS:
            with torch.no_grad():
                unit = F.normalize(model.backbone(images), dim=1).double()
                means = torch.stack([unit[labels == k].mean(0) for k in range(4)])
                means = F.normalize(means - means.mean(0), dim=1)
                rows = F.normalize(head.weight.double(), dim=1)
            moments.append(Moment(unit[shown].numpy(), means.numpy(), rows.numpy()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return moments


def turned(points: Array, angle: float) -> Array:
    """Points turned about the vertical axis and seen from slightly above: coordinates right, up, towards the viewer."""
    c, s, tilt = np.cos(angle), np.sin(angle), 0.35
    x, y, z = points[..., 0] * c - points[..., 1] * s, points[..., 0] * s + points[..., 1] * c, points[..., 2]
    return np.stack([x, z * np.cos(tilt) - y * np.sin(tilt), z * np.sin(tilt) + y * np.cos(tilt)], axis=-1)


def draw(axes: Axes, name: str, moment: Moment, angle: float) -> None:
    axes.set(xlim=(-1.16, 1.16), ylim=(-1.32, 1.3), aspect="equal")
    axes.axis("off")
    axes.add_patch(Circle((0, 0), 1.0, facecolor="#f4f6f8", edgecolor="#c9ced6", linewidth=0.8))
    rows, means, features = (turned(part, angle) for part in (moment.rows, moment.means, moment.features))
    for i in range(4):
        for j in range(i):
            axes.plot(*zip(rows[i, :2], rows[j, :2], strict=True), color="#9aa3af", linewidth=0.7, zorder=2)
    for k, colour in enumerate(COLOURS):
        near = features[k, :, 2] > 0
        for front, alpha, size in ((False, 0.3, 7), (True, 0.85, 10)):
            part = features[k, near == front]
            axes.scatter(part[:, 0], part[:, 1], s=size, color=colour, alpha=alpha, linewidths=0, zorder=2 + 3 * front)
        axes.plot([0, means[k, 0]], [0, means[k, 1]], color=colour, linewidth=1.1, zorder=3)
        axes.plot([0, rows[k, 0]], [0, rows[k, 1]], color=colour, linewidth=3.2, solid_capstyle="round", zorder=4)
    cosines = (moment.rows @ moment.rows.T)[np.triu_indices(4, 1)]
    least, most = np.degrees(np.arccos(np.clip([cosines.max(), cosines.min()], -1, 1)))
    axes.text(0, 1.13, name, ha="center", fontsize=11.5, fontweight="bold", color="#1f2933")
    angles = f"{most:.1f}°" if most - least < 0.1 else f"{least:.0f}° to {most:.0f}°"
    axes.text(0, -1.27, f"angles {angles}", ha="center", fontsize=9.5, color="#52606d")


def main() -> None:
    runs = {}
    for name in heads():
        torch.manual_seed(3)
        runs[name] = trained(heads()[name])
    frames = []
    last = len(STEPS) - 1
    for count, at in enumerate([*range(len(STEPS)), *[last] * 6]):  # the last step stays for six more frames
        figure, panels = plt.subplots(2, 3, figsize=(7.2, 5.6), dpi=92)
        figure.subplots_adjust(0, 0, 1, 0.93, 0, 0.06)
        for axes, (name, moments) in zip(panels.flat, runs.items(), strict=True):
            draw(axes, name, moments[at], 0.5 + 0.045 * count)
        figure.text(0.5, 0.955, f"step {STEPS[at]}", ha="center", fontsize=10.5, color="#52606d")
        content = io.BytesIO()
        figure.savefig(content)
        plt.close(figure)
        frames.append(Image.open(content).convert("RGB"))
    palette = frames[-1].quantize(32)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [140] * (len(indexed) - 1) + [2500]
    indexed[0].save(PICTURE, save_all=True, append_images=indexed[1:], duration=times, loop=0, optimize=True)
    print(f"{PICTURE}: {len(indexed)} frames, {PICTURE.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
