"""Harder training sets, as the literature uses them: fewer images, imbalanced classes, wrong labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from .images import AnySplit
from .split import DataError


def class_sizes(available: int, num_classes: int, kind: str, ratio: float) -> list[int]:
    """How many images each class keeps: all, down to 1/ratio of them along a geometric profile or by a step.

    >>> class_sizes(100, 3, "exponential", 100.0), class_sizes(100, 4, "step", 10.0)
    ([100, 10, 1], [100, 100, 10, 10])
    """
    if kind == "exponential":
        shares = [ratio ** (-k / (num_classes - 1)) for k in range(num_classes)]
    elif kind == "step":
        shares = [1.0 if k < (num_classes + 1) // 2 else 1 / ratio for k in range(num_classes)]
    else:
        shares = [1.0] * num_classes
    return [max(1, round(available * share)) for share in shares]


def balanced_weights(labels: NDArray[np.int64], num_classes: int) -> NDArray[np.float64]:
    """Weights N/(K n_c) of the classes (K,), by which each of them counts as much as any other; 0 for an empty one.

    >>> balanced_weights(np.array([0, 0, 0, 1]), 2).round(2)
    array([0.67, 2.  ])
    """
    sizes = np.bincount(labels, minlength=num_classes)
    return np.where(sizes > 0, len(labels) / (num_classes * np.maximum(sizes, 1)), 0.0)


def modified(
    split: AnySplit,
    num_classes: int,
    *,
    seed: int,
    samples_per_class: int = 0,
    imbalance: str = "none",
    ratio: float = 100.0,
    label_noise: float = 0.0,
) -> AnySplit:
    """A training split with images left out and labels changed at random.

    Parameters
    ----------
    split : Split or FolderSplit
    num_classes : int
    seed : int
        Seed of the choice of images and labels.
    samples_per_class : int
        The largest class keeps at most this many images; 0 for all.
    imbalance : {"none", "exponential", "step"}
    ratio : float
        Largest class size over smallest.
    label_noise : float
        Share of labels replaced by another class, drawn uniformly.

    Raises
    ------
    DataError
        If a class has fewer images than `samples_per_class`.

    Examples
    --------
    >>> from .split import Split
    >>> split = Split(np.zeros((20, 1, 1, 1), np.uint8), np.arange(20) % 2)
    >>> np.bincount(modified(split, 2, seed=0, imbalance="exponential", ratio=5.0).labels).tolist()
    [10, 2]
    """
    rng = np.random.default_rng([seed, num_classes])
    if samples_per_class or imbalance != "none":
        members = [rng.permutation(np.flatnonzero(split.labels == k)) for k in range(num_classes)]
        smallest = min(map(len, members))
        if samples_per_class > smallest:
            raise DataError(f"samples_per_class is {samples_per_class}, but a class has only {smallest} images")
        sizes = class_sizes(samples_per_class or smallest, num_classes, imbalance, ratio)
        kept = np.sort(np.concatenate([m[:size] for m, size in zip(members, sizes, strict=True)]))
        split = split.take(kept)
    if label_noise:
        wrong = rng.choice(len(split), round(label_noise * len(split)), replace=False)
        labels = split.labels.copy()
        labels[wrong] = (labels[wrong] + rng.integers(1, num_classes, len(wrong))) % num_classes
        split = replace(split, labels=labels)
    return split
