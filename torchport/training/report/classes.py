"""Accuracy per class and confusion matrices of the runs' results: as tables, and as figures of up to 30 classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ....common.text import shortened, shown
from ..confusion import Confusion
from .style import INK, WIDTH
from .tables import Table, percentage

MOST_DRAWN = 30  # classes of a matrix
MOST_NARROW = 12  # classes of a matrix in one column
MOST_LISTED = 15  # classes, or mistakes, where there are more than can be drawn
NAME = 16  # letters of a class's name beside a matrix


@dataclass(frozen=True)
class Judged:
    """The result of a group's typical run, class by class.

    Attributes
    ----------
    label : str
        Of the group.
    checkpoint : str
        "best", "last" or "recalibrated".
    split : str
        The images on which it is judged.
    class_names : tuple of str
    confusion : Confusion
    """

    label: str
    checkpoint: str
    split: str
    class_names: tuple[str, ...]
    confusion: Confusion

    @property
    def drawn(self) -> bool:
        """Whether its classes are few enough for a matrix."""
        return self.confusion.num_classes <= MOST_DRAWN


def confusion_figure(judged: Judged) -> Figure | None:
    """Images by true and predicted class, coloured by their share of the true class; None for too many classes."""
    if not judged.drawn:
        return None
    counts, names = judged.confusion.matrix(), [shortened(name, NAME) for name in judged.class_names]
    K = len(counts)
    width = WIDTH if K <= MOST_NARROW else 2 * WIDTH
    margin = 0.45 + 0.058 * max(map(len, names))  # inches, left and below
    cell = min(0.6, (width - margin - 0.1) / K)
    height = margin + K * cell + 0.3
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((margin / width, margin / height, K * cell / width, K * cell / height))
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    right = np.eye(K, dtype=bool)[..., None]
    colours = np.where(right, mpl.colormaps["Blues"](0.8 * share), mpl.colormaps["Reds"](0.8 * share))  # (K, K, 4)
    axes.imshow(np.where(counts[..., None] > 0, colours, 1.0), interpolation="nearest")
    for true, predicted in np.argwhere(counts > 0):
        axes.text(
            *(predicted, true, f"{counts[true, predicted]}"),
            ha="center",
            va="center",
            fontsize=7 if cell > 0.25 else 5.5,
            color="white" if share[true, predicted] > 0.55 else INK,
        )
    axes.set_xticks(range(K), names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(K), names)
    axes.set(xlabel="predicted", ylabel="true")
    axes.tick_params(labelsize=7, length=0)
    axes.grid(False)
    title = f"{shortened(judged.label, 30)}, {judged.checkpoint}.pt"
    figure.suptitle(title, x=0.01, y=1 - 0.06 / height, ha="left", va="top", fontsize=9.5, weight="bold")
    return figure


def class_table(results: Sequence[Judged]) -> Table:
    """Accuracy of each class in per cent, a column per group; for many classes, the least accurate ones on average."""
    accuracies = np.stack([judged.confusion.accuracy for judged in results])  # (groups, K)
    classes = np.arange(accuracies.shape[1])
    if len(classes) > MOST_DRAWN:
        classes = np.argsort(accuracies.mean(0), kind="stable")[:MOST_LISTED]
    images, names = results[0].confusion.images, results[0].class_names
    rows = [
        [shown(names[k]), str(images[k]), *("–" if np.isnan(x) else percentage(x) for x in accuracies[:, k])]
        for k in classes
    ]
    return [["class", "images", *(judged.label for judged in results)], *rows]


def mistakes_table(judged: Judged) -> Table:
    """The most frequent mistakes, with their share of the true class."""
    images, names = judged.confusion.images, judged.class_names
    rows = [
        [shown(names[true]), shown(names[predicted]), str(count), percentage(count / images[true])]
        for true, predicted, count in judged.confusion.mistakes(MOST_LISTED)
    ]
    return [["true", "predicted", "images", "% of the true class"], *rows]


def matrix_table(judged: Judged) -> Table:
    """The confusion matrix: true classes as rows, predicted ones as columns."""
    names = [shown(name) for name in judged.class_names]
    rows = [[name, *map(str, row)] for name, row in zip(names, judged.confusion.matrix(), strict=True)]
    return [["true \\ predicted", *names], *rows]


def detail_tables(results: Sequence[Judged]) -> list[tuple[str, Table]]:
    """Tables with their captions: accuracy per class of all, then mistakes or the matrix of each."""
    if not results:
        return []
    most = "" if results[0].drawn else f", the {MOST_LISTED} lowest on average"
    tables = [(f"Accuracy per class in per cent{most}", class_table(results))]
    for judged in results:
        if judged.drawn:
            tables.append((f"{judged.label}: confusion matrix as a table", matrix_table(judged)))
        else:
            tables.append((f"{judged.label}: most frequent mistakes", mistakes_table(judged)))
    return tables
