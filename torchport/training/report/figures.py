"""The figures of a report, as matplotlib figures: curves over epochs, and the geometry of a measured checkpoint.

Colours are Okabe & Ito's, told apart in every kind of colour vision and in grey; a head keeps its colour throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from ....reference.collapse import MARGIN_EDGES
from ....reference.procrustes import nearest_etf
from ....reference.simplex import centred_basis
from ..measure import Measurement
from .groups import Array, Group

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
INK, FAINT = "#1f2933", "#9aa5b1"
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


@dataclass(frozen=True)
class Curve:
    """How a metric is drawn over epochs."""

    metric: str  # without train_ or test_
    title: str
    axis: str
    logarithmic: bool = False
    factor: float = 1.0
    parts: tuple[str, ...] = ("train_", "test_")


CURVES = (
    Curve("accuracy", "Top-1 accuracy", "share of images (%)", factor=100),
    Curve("top5", "Top-5 accuracy", "share of images (%)", factor=100),
    Curve("loss", "Loss", "cross-entropy (nats)", logarithmic=True),
    Curve("nc1", "NC1: spread within classes", "within / between variance (no unit)", logarithmic=True),
    Curve("nc2", "NC2: classifier to simplex ETF", "Gram distance (no unit)", logarithmic=True),
    Curve("nc2_means", "NC2: class means to simplex ETF", "Gram distance (no unit)", logarithmic=True),
    Curve("nc3", "NC3: classifier to class means", "distance of W·means to ETF (no unit)", logarithmic=True),
    Curve("nc4", "NC4: nearest class mean disagrees", "share of images (%)", factor=100),
    Curve("cosine_margin", "Cosine margin", "mean difference of cosines"),
    Curve("cosine_margin_std", "Spread of the cosine margin", "standard deviation"),
    Curve("etf_distance_weight", "Classifier to nearest ETF", "squared distance", logarithmic=True),
    Curve("etf_distance_means", "Class means to nearest ETF", "squared distance", logarithmic=True),
    Curve("etf_distance_between", "Between those two ETFs", "squared distance", logarithmic=True),
    Curve("equinorm_weight", "Equal norms: classifier", "std / mean of row norms"),
    Curve("equinorm_means", "Equal norms: class means", "std / mean of norms"),
    Curve("equinorm_difference", "Equal norms: difference", "absolute difference"),
    Curve("bias_offset", "Bias against the global mean", "logits at the global mean (norm)", logarithmic=True),
    Curve("variability_collapse", "Variability-collapse index", "index, 0 is collapse (no unit)", logarithmic=True),
    Curve("cdnv", "Class-distance normalised variance", "CDNV (no unit)", logarithmic=True),
    Curve("numerical_rank", "Numerical rank of a class", "dimensions, mean over classes"),
    Curve("lr", "Learning rate", "step size", parts=("",)),
    Curve("images_per_second", "Speed", "training images per second", parts=("",)),
)
SOLVER_CURVES = (
    Curve("solver_gap", "Solver: optimality gap", "share of the optimum missed", logarithmic=True, parts=("",)),
    Curve(
        "solver_condition", "Solver: condition of A", "largest / smallest singular value", logarithmic=True, parts=("",)
    ),
    Curve("solver_orthogonality", "Solver: orthogonality", "norm of UᵀU − I", logarithmic=True, parts=("",)),
    Curve("solver_fallbacks", "Solver: fallbacks", "steps since the start", parts=("",)),
)
PICTURE = ("accuracy", "nc1", "nc2_means", "nc3", "loss", "etf_distance_means")


def curve_figures(groups: Sequence[Group], curves: Sequence[Curve]) -> Iterator[tuple[str, Figure]]:
    """A figure for each curve that has anything to show."""
    for curve in curves:
        figure = _figure(2.9)
        axes = figure.add_subplot()
        if draw_curve(axes, groups, curve):
            _legend(figure, axes)
            yield curve.metric, figure


def draw_curve(axes: Axes, groups: Sequence[Group], curve: Curve) -> bool:
    """Median lines (train solid, test dashed) with the range over seeds; whether there was anything to draw."""
    drawn = False
    for i, group in enumerate(groups):
        for part in curve.parts:
            spread = group.over_seeds(part + curve.metric)
            kept = np.isfinite(spread["median"])
            if curve.logarithmic:
                kept &= spread["median"] > 0
            if not kept.any():
                continue
            drawn, test = True, part == "test_"
            x = group.epochs[kept]
            low, middle, high = (curve.factor * spread[name][kept] for name in ("min", "median", "max"))
            axes.plot(
                x,
                middle,
                color=colour(i),
                linestyle=(0, (4, 1.5)) if test else "-",
                linewidth=1.1 if test else 1.6,
                marker="o" if len(x) < 25 else "",
                markersize=2.5,
                label="_" if test else group.label,
            )
            if len(group.runs) > 1:
                low = np.maximum(low, 1e-3 * middle) if curve.logarithmic else low
                axes.fill_between(x, low, high, color=colour(i), alpha=0.10 if test else 0.18, linewidth=0)
    if curve.logarithmic:
        _logarithmic(axes)
    axes.set(title=curve.title, xlabel="epoch", ylabel=curve.axis)
    axes.margins(x=0.02)
    return drawn


def _logarithmic(axes: Axes) -> None:
    """A logarithmic axis with plain numbers at its ticks."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 20 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def picture(groups: Sequence[Group], caption: str) -> Figure:
    """One picture that sums a comparison up: accuracy, loss, NC1–NC3 and the distance to the nearest ETF."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 6.2), layout="constrained")
        cells = figure.subplots(2, 3).ravel()
        by_name = {curve.metric: curve for curve in CURVES}
        for axes, name in zip(cells, PICTURE, strict=True):
            draw_curve(axes, groups, by_name[name])
        handles, labels = cells[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=max(1, len(labels)), fontsize=10)
        figure.supxlabel(caption, fontsize=8, color="#52606d")
    return figure


def gram_figure(label: str, hue: str, measured: Measurement, class_names: Sequence[str]) -> Figure:
    """Cosines between the rows of W, and between the centred class means of the training data."""
    figure = _figure(2.45)
    figure.subplots_adjust(left=0.07, right=0.86, bottom=0.1, top=0.95)
    panels = {"classifier W": measured.arrays["weight"], "class means": centred_means(measured)}
    for axes, (name, rows) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        cosines = cosine_matrix(rows)
        image = axes.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="antialiased")
        K = len(cosines)
        if K <= 12 and max(map(len, class_names)) <= 3:
            axes.set_xticks(range(K), class_names)
            axes.set_yticks(range(K), class_names)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set(title=f"{label}: {name}", xlabel="class")
        axes.grid(False)
        axes.tick_params(labelsize=6.5, length=2)
    figure.colorbar(image, cax=figure.add_axes((0.885, 0.25, 0.018, 0.55)), label="cosine", ticks=[-1, 0, 1])
    return figure


def cosine_spread_figure(groups: Sequence[Group], measured: Sequence[Measurement | str]) -> Figure:
    """Cosines between different classes as distributions: what the heat maps show, readable for any K."""
    figure = _figure(2.9)
    axes = figure.add_subplot()
    K = 2
    for i, (group, m) in enumerate(zip(groups, measured, strict=True)):
        if isinstance(m, str):
            continue
        for rows, dashed in ((centred_means(m), False), (m.arrays["weight"], True)):
            cosines = cosine_matrix(rows)
            K = len(cosines)
            off_diagonal = np.sort(cosines[~np.eye(K, dtype=bool)])
            share = np.linspace(0, 100, len(off_diagonal))
            style = (0, (4, 1.5)) if dashed else "-"
            axes.plot(off_diagonal, share, color=colour(i), linestyle=style, label="_" if dashed else group.label)
    axes.axvline(-1 / (K - 1), color=INK, linewidth=0.8, linestyle=":")
    axes.set(title="Cosines between classes", xlabel="cosine", ylabel="share of pairs below (%)")
    _legend(figure, axes)
    return figure


def margin_figure(groups: Sequence[Group], measured: Sequence[Measurement | str]) -> Figure:
    """Distributions of the cosine margin over samples, train solid and test dashed."""
    figure = _figure(2.9)
    axes = figure.add_subplot()
    edges = MARGIN_EDGES[::4]
    K, lowest = 2, 1.0
    for i, (group, m) in enumerate(zip(groups, measured, strict=True)):
        if isinstance(m, str):
            continue
        K = len(m.arrays["weight"])
        for part, style in (("train", "-"), ("test", (0, (4, 1.5)))):
            share = 100 * m.arrays[f"{part}_margins"].reshape(-1, 4).sum(1) / m.arrays[f"{part}_margins"].sum()
            lowest = min(lowest, edges[np.flatnonzero(share)[0]])
            axes.stairs(share, edges, color=colour(i), linestyle=style, label=group.label if part == "train" else "_")
    axes.axvline(K / (K - 1), color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlim(lowest - 0.05, K / (K - 1) + 0.15)
    axes.set(title="Cosine margins", xlabel="cosine to the true class less the largest to another")
    axes.set_ylabel(f"share of images per {edges[1] - edges[0]:.2f} (%)")
    _legend(figure, axes)
    return figure


def distribution_figures(
    groups: Sequence[Group], measured: Sequence[Measurement | str]
) -> Iterator[tuple[str, Figure]]:
    """Cosine margins over samples and cosines over pairs of classes, if any group could be measured."""
    if not all(isinstance(m, str) for m in measured):
        yield "margins", margin_figure(groups, measured)
        yield "cosines", cosine_spread_figure(groups, measured)


def solver_figures(groups: Sequence[Group], measured: Sequence[Measurement | str]) -> Iterator[tuple[str, Figure]]:
    """What the implicit heads' solver said of itself, and the singular values of A."""
    yield from curve_figures(groups, SOLVER_CURVES)
    spectrum = singular_value_figure(groups, measured)
    if spectrum is not None:
        yield "singular-values", spectrum


def singular_value_figure(groups: Sequence[Group], measured: Sequence[Measurement | str]) -> Figure | None:
    """Singular values of A for the implicit heads."""
    figure = _figure(2.9)
    axes = figure.add_subplot()
    drawn = False
    for i, (group, m) in enumerate(zip(groups, measured, strict=True)):
        if not isinstance(m, str) and "singular_values" in m.arrays:
            values = m.arrays["singular_values"]
            index = np.arange(1, len(values) + 1)
            axes.semilogy(index, values, color=colour(i), marker="o", markersize=3, label=group.label)
            drawn = True
    if not drawn:
        return None
    axes.set(title="Singular values of A", xlabel="index", ylabel="σ (no unit)")
    _legend(figure, axes)
    return figure


def means_figure(label: str, hue: str, measured: Measurement, class_names: Sequence[str]) -> Figure | None:
    """Class means and classifier, seen along the nearest simplex ETF: in 3-d for K = 4, else in 2-d.

    The frame of the ETF nearest to the class means is turned so that its vertices show as a regular polygon (for
    K = 4 as a tetrahedron); what deviates from the outline deviates from the ETF.
    """
    H, W = centred_means(measured), measured.arrays["weight"]
    K, d = H.shape
    if d < K - 1 or not np.isfinite(H).all():
        return None
    frame = nearest_etf(H.T, solver="polar", formulation="gauge-free").frame  # (d, K)
    vertices = _vertices(K)  # (K, k)
    figure = _figure(3.9)
    axes: Any = figure.add_subplot(projection="3d" if vertices.shape[1] == 3 else None)
    ideal, means, rows = (
        points / np.sqrt(np.square(points).sum(1).mean() + 1e-300)
        for points in (vertices, H @ frame @ vertices, (W - W.mean(0)) @ frame @ vertices)
    )
    outline = [(i, j) for i in range(K) for j in range(i) if K <= 4] or [(i, (i + 1) % K) for i in range(K)]
    for i, j in outline:
        axes.plot(*ideal[[i, j]].T, color=FAINT, linewidth=1.0, linestyle=":")
    for point in means if K <= 30 else ():
        axes.plot(*np.stack([0 * point, point]).T, color=hue, linewidth=0.7, alpha=0.5)
    axes.plot(*means.T, "o", color=hue, markersize=6 if K <= 30 else 3, label="class means")
    axes.plot(*rows.T, "x", color=INK, markersize=6 if K <= 30 else 3, label="rows of W")
    if K <= 30:
        for name, point in zip(class_names, 1.17 * means, strict=True):
            axes.text(*point, name, ha="center", va="center", fontsize=7.5)
    axes.set_title(f"{label}: class means")
    axes.set_aspect("equal")
    if vertices.shape[1] == 3:
        axes.set_box_aspect(None, zoom=1.35)
    axes.set_axis_off()
    axes.margins(0.12)
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.1, top=0.92)
    figure.legend(loc="lower center", ncols=2)
    return figure


def _vertices(K: int) -> Array:
    """Centred, orthonormal coordinates that show a simplex as a tetrahedron (K = 4) or a regular polygon, (K, 2|3)."""
    if K == 2:
        return np.array([[1.0, 0.0], [-1.0, 0.0]]) / np.sqrt(2)
    if K == 4:
        return centred_basis(4)
    angles = 2 * np.pi * np.arange(K) / K + np.pi / 2
    return np.sqrt(2 / K) * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def centred_means(measured: Measurement) -> Array:
    """Class means of the training data less their mean, (K, d)."""
    means = measured.arrays["train_means"]
    return means - np.nanmean(means, axis=0)


def cosine_matrix(rows: Array) -> Array:
    """Cosines between rows, (K, K)."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(lengths > 0, lengths, 1.0)
    return unit @ unit.T


def colour(group: int) -> str:
    """The colour of a group, by its place."""
    return COLOURS[group % len(COLOURS)]


def _figure(height: float) -> Figure:
    """A figure of one column; margins are fixed, as a layout engine would take longer than the drawing."""
    figure = Figure(figsize=(WIDTH, height))
    inch = 1 / height
    figure.subplots_adjust(left=0.155, right=0.97, top=1 - 0.3 * inch, bottom=0.72 * inch, wspace=0.28)
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    """The heads below the axes, in one line where they fit."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 0:
        columns = 1 if max(map(len, labels)) > 25 else min(4, len(labels))
        figure.legend(handles, labels, loc="lower center", ncols=columns, handlelength=1.4, columnspacing=1.2)
