"""The geometry of measured checkpoints, as matplotlib figures: Gram matrices, class means, margins, singular values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ....common.text import shortened, shown
from ....reference.collapse import MARGIN_EDGES
from ....reference.procrustes import nearest_etf
from ....reference.simplex import centred_basis
from ..measurement import Measurement
from .groups import Array
from .style import DASHED, FAINT, INK, LINES, Look, legend, logarithmic, one_column

MOST_NAMED = 30  # classes; more names would overlap


@dataclass(frozen=True)
class Subject:
    """A group's typical run as it is drawn.

    Attributes
    ----------
    label : str
        Of the group.
    look : Look
    class_names : tuple of str
    measurement : Measurement
    """

    label: str
    look: Look
    class_names: tuple[str, ...]
    measurement: Measurement

    @property
    def title(self) -> str:
        """The label, shortened to the width of a figure."""
        return shortened(self.label, 44)

    @property
    def weight(self) -> Array:
        """W, (K, d)."""
        return self.measurement.arrays["weight"]

    @property
    def centred_means(self) -> Array:
        """Class means of the training data less their mean, (K, d)."""
        rows = self.measurement.arrays["train_class_mean_rows"]
        return rows - np.nanmean(rows, axis=0)

    def margins(self, split: str) -> Array:
        """Share of samples per bin of four intervals of `MARGIN_EDGES`, (50,) in per cent; zeros if not measured."""
        counts = self.measurement.arrays.get(f"{split}_margins", np.zeros(len(MARGIN_EDGES) - 1))
        return 100 * counts.reshape(-1, 4).sum(1) / max(counts.sum(), 1)


def gram_figure(subject: Subject) -> Figure:
    """Cosines between the rows of W, and between the centred class means of the training data."""
    figure = one_column(2.65)
    figure.subplots_adjust(left=0.07, right=0.86, bottom=0.1, top=0.88)
    figure.suptitle(subject.title, x=0.01, y=0.985, ha="left", fontsize=9.5, weight="bold")
    names = [shown(name) for name in subject.class_names]
    panels = {"classifier W": subject.weight, "class means": subject.centred_means}
    for axes, (name, rows) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        cosines = cosine_matrix(rows)
        image = axes.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="antialiased")
        K = len(cosines)
        if K <= 12 and max(map(len, names)) <= 3:
            axes.set_xticks(range(K), names)
            axes.set_yticks(range(K), names)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set(title=name, xlabel="class")
        axes.grid(False)
        axes.tick_params(labelsize=6.5, length=2)
    figure.colorbar(image, cax=figure.add_axes((0.885, 0.25, 0.018, 0.55)), label="cosine", ticks=[-1, 0, 1])
    return figure


def means_figure(subject: Subject) -> Figure | None:
    """Class means and classifier, seen along the nearest simplex ETF: in 3-d for K = 4, else in 2-d.

    The frame of the ETF nearest to the class means is turned so that its vertices show as a regular polygon (for
    K = 4 as a tetrahedron); what deviates from the outline deviates from the ETF.
    """
    H, W = subject.centred_means, subject.weight
    K, d = H.shape
    if d < K - 1 or not np.isfinite(H).all():
        return None
    frame = nearest_etf(H.T, method="svd", formulation="gauge-free").frame  # (d, K)
    vertices = _vertices(K)  # (K, k)
    figure = one_column(3.9)
    axes: Any = figure.add_subplot(projection="3d" if vertices.shape[1] == 3 else None)
    ideal, means, rows = (
        points / np.sqrt(np.square(points).sum(1).mean() + 1e-300)
        for points in (vertices, H @ frame @ vertices, (W - W.mean(0)) @ frame @ vertices)
    )
    outline = [(i, j) for i in range(K) for j in range(i) if K <= 4] or [(i, (i + 1) % K) for i in range(K)]
    for i, j in outline:
        axes.plot(*ideal[[i, j]].T, color=FAINT, linewidth=1.0, linestyle=":")
    few = K <= MOST_NAMED
    for point in means if few else ():
        axes.plot(*np.stack([0 * point, point]).T, color=subject.look.colour, linewidth=0.7, alpha=0.5)
    axes.plot(*means.T, "o", color=subject.look.colour, markersize=6 if few else 3, label="class means")
    axes.plot(*rows.T, "x", color=INK, markersize=6 if few else 3, label="rows of W")
    if few:
        for name, point in zip(subject.class_names, 1.17 * means, strict=True):
            axes.text(*point, shortened(name, 16), ha="center", va="center", fontsize=7.5)
    axes.set_title(f"{subject.title}: class means")
    axes.set_aspect("equal")
    if vertices.shape[1] == 3:
        axes.set_box_aspect(None, zoom=1.35)
    axes.set_axis_off()
    axes.margins(0.12)
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.1, top=0.92)
    figure.legend(loc="lower center", ncols=2)
    return figure


def distribution_figures(subjects: Sequence[Subject]) -> Iterator[tuple[str, Figure]]:
    """Cosine margins over samples, and cosines over pairs of classes."""
    if any(subject.margins("train").any() for subject in subjects):
        yield "margins", margin_figure(subjects)
    if subjects:
        yield "cosines", cosine_spread_figure(subjects)


def margin_figure(subjects: Sequence[Subject]) -> Figure:
    """Distributions of the cosine margin over samples, of the training split and the held-out one."""
    figure = one_column(2.9)
    axes = figure.add_subplot()
    edges = MARGIN_EDGES[::4]
    lowest = 1.0
    for subject in subjects:
        splits = subject.measurement.splits
        for split in (name for name in splits if name != "val" or "test" not in splits):
            share = subject.margins(split)
            if share.any():
                lowest = min(lowest, edges[np.flatnonzero(share)[0]])
                label = subject.look.label if split == "train" else "_"
                axes.stairs(share, edges, color=subject.look.colour, linestyle=LINES[split], label=label)
    K = len(subjects[0].weight)
    axes.axvline(K / (K - 1), color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlim(lowest - 0.05, K / (K - 1) + 0.15)
    axes.set(title="Cosine margins", xlabel="cosine to the true class less the largest to another")
    axes.set_ylabel(f"share of images per {edges[1] - edges[0]:.2f} (%)")
    legend(figure, axes)
    return figure


def cosine_spread_figure(subjects: Sequence[Subject]) -> Figure:
    """Cosines between different classes as distributions: what the Gram matrices show, readable for any K."""
    figure = one_column(2.9)
    axes = figure.add_subplot()
    for subject in subjects:
        for rows, dashed in ((subject.centred_means, False), (subject.weight, True)):
            cosines = cosine_matrix(rows)
            off_diagonal = np.sort(cosines[~np.eye(len(cosines), dtype=bool)])
            off_diagonal = off_diagonal[np.isfinite(off_diagonal)]
            share = np.linspace(0, 100, len(off_diagonal))
            style: Any = {"linestyle": DASHED, "label": "_"} if dashed else {"label": subject.look.label}
            axes.plot(off_diagonal, share, color=subject.look.colour, **style)
    axes.axvline(-1 / (len(subjects[0].weight) - 1), color=INK, linewidth=0.8, linestyle=":")
    axes.set(title="Cosines between classes", xlabel="cosine", ylabel="share of pairs below (%)")
    legend(figure, axes)
    return figure


def singular_value_figure(subjects: Sequence[Subject]) -> Figure | None:
    """Singular values of A for the heads that solve; None without such a head."""
    figure = one_column(2.9)
    axes = figure.add_subplot()
    for subject in subjects:
        if "singular_values" in subject.measurement.arrays:
            values = subject.measurement.arrays["singular_values"]
            index = np.arange(1, len(values) + 1)
            axes.plot(
                index,
                values,
                color=subject.look.colour,
                marker=subject.look.marker,
                markersize=3,
                label=subject.look.label,
            )
    if not axes.lines:
        return None
    logarithmic(axes)
    axes.set(title="Singular values of A", xlabel="index", ylabel="σ (no unit)")
    legend(figure, axes)
    return figure


def cosine_matrix(rows: Array) -> Array:
    """Cosines between rows, (K, K)."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(lengths > 0, lengths, 1.0)
    return unit @ unit.T


def _vertices(K: int) -> Array:
    """Centred, orthonormal coordinates that show a simplex as a tetrahedron (K = 4) or a regular polygon, (K, 2|3)."""
    if K == 2:
        return np.array([[1.0, 0.0], [-1.0, 0.0]]) / np.sqrt(2)
    if K == 4:
        return centred_basis(4)
    angles = 2 * np.pi * np.arange(K) / K + np.pi / 2
    return np.sqrt(2 / K) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
