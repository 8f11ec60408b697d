"""Confusion of classes: counts of (true, predicted) pairs, accuracy per class. Needs no torch.

Only pairs that occur are stored, at most as many as there are images, so that K = 1000 classes need little memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...common.text import shown

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Confusion:
    """Counts of true and predicted classes on one split.

    Attributes
    ----------
    pairs : (n, 3) int64
        True class, predicted class, number of images; each pair occurs once, with at least one image.
    num_classes : int
        K.

    Raises
    ------
    ValueError
        If `pairs` has another shape, or a class outside 0…K−1.

    Examples
    --------
    >>> confusion = Confusion(np.array([[0, 0, 3], [0, 1, 1], [1, 1, 2]]), num_classes=3)
    >>> confusion.images, confusion.accuracy
    (array([4, 2, 0]), array([0.75, 1.  ,  nan]))
    >>> confusion.matrix().tolist()
    [[3, 1, 0], [0, 2, 0], [0, 0, 0]]
    """

    pairs: Counts
    num_classes: int

    def __post_init__(self) -> None:
        classes = self.pairs[:, :2] if self.pairs.ndim == 2 and self.pairs.shape[1] == 3 else None
        if classes is None or (classes.size and not 0 <= classes.min() <= classes.max() < self.num_classes):
            raise ValueError(
                f"pairs has shape {self.pairs.shape}: expected (n, 3), with classes from 0 to {self.num_classes - 1}"
            )

    @property
    def images(self) -> Counts:
        """Images of each true class, (K,)."""
        counts = np.zeros(self.num_classes, np.int64)
        np.add.at(counts, self.pairs[:, 0], self.pairs[:, 2])
        return counts

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of each class's images that are classified correctly, (K,); nan for a class without images."""
        right = np.zeros(self.num_classes)
        true, predicted, count = self.pairs.T
        right[true[true == predicted]] = count[true == predicted]
        images = self.images
        return np.where(images > 0, right / np.maximum(images, 1), np.nan)

    def matrix(self) -> Counts:
        """Images of each true class (rows) by predicted class (columns), (K, K)."""
        matrix = np.zeros((self.num_classes, self.num_classes), np.int64)
        matrix[self.pairs[:, 0], self.pairs[:, 1]] = self.pairs[:, 2]
        return matrix

    def worst(self, most: int) -> list[int]:
        """Up to `most` classes with misclassified images, the least accurate first.

        >>> Confusion(np.array([[0, 0, 3], [0, 1, 1], [1, 1, 2]]), num_classes=3).worst(5)
        [0]
        """
        accuracy = self.accuracy
        order = np.argsort(accuracy, kind="stable")  # nan last
        return [int(k) for k in order[:most] if accuracy[k] < 1]

    def mistakes(self, most: int, true: int | None = None) -> list[tuple[int, int, int]]:
        """Up to `most` pairs of different classes as (true, predicted, images), the most frequent first.

        `true` restricts them to one true class.
        """
        wrong = self.pairs[self.pairs[:, 0] != self.pairs[:, 1]]
        wrong = wrong if true is None else wrong[wrong[:, 0] == true]
        chosen = wrong[np.argsort(-wrong[:, 2], kind="stable")[:most]]
        return [(int(t), int(p), int(n)) for t, p, n in chosen]


def count_pairs(true: Counts, predicted: Counts, num_classes: int) -> Counts:
    """The `Confusion.pairs` of labels and predictions (N,), by true and then by predicted class.

    >>> count_pairs(np.array([1, 0, 0, 1]), np.array([1, 1, 0, 1]), num_classes=2).tolist()
    [[0, 0, 1], [0, 1, 1], [1, 1, 2]]
    """
    codes, counts = np.unique(true * num_classes + predicted, return_counts=True)
    return np.stack([codes // num_classes, codes % num_classes, counts], axis=1)


def confusion_lines(confusion: Confusion, names: Sequence[str], most: int = 5) -> list[str]:
    """The least accurate classes and the most frequent mistakes, a line each.

    >>> confusion = Confusion(np.array([[0, 0, 3], [0, 1, 1], [1, 1, 2]]), num_classes=2)
    >>> print(*confusion_lines(confusion, ["cat", "dog"]), sep="\\n")
    least accurate classes: cat (75.0 % of 4)
    most frequent mistakes: cat taken for dog (1)
    """
    accuracy, images = confusion.accuracy, confusion.images
    classes = [f"{shown(names[k])} ({100 * accuracy[k]:.1f} % of {images[k]})" for k in confusion.worst(most)]
    mistakes = [f"{shown(names[t])} taken for {shown(names[p])} ({n})" for t, p, n in confusion.mistakes(most)]
    if not mistakes:
        return ["every image is classified correctly"]
    return [f"least accurate classes: {', '.join(classes)}", f"most frequent mistakes: {', '.join(mistakes)}"]
