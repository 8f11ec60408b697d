"""The score for out-of-distribution (OOD) images in an exported file, and its threshold.

- Scores: those of `reference.ood` and `reference.ood_distance` (formulas and sources there). Larger scores indicate
  in-distribution images. Class means, subspace and covariance come from training images and are constants of the file.
- Threshold: it accepts a given share of validation images.

NECO is the default, by the evidence of benchmarks/studies/ood.py (small networks, three seeds):

- Among digits, MNIST and Fashion-MNIST its AUROC was above that of the maximum softmax probability for every pair, head
  and seed.
- On parts of CIFAR, where no score was good, it was above for CIFAR-10 against CIFAR-100, and below in the other
  direction.
- The Mahalanobis distance was still better on most of the greyscale pairs, but with the linear head it was worse than
  the softmax on both pairs of CIFAR.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..reference import (
    class_gaussians,
    class_subspace,
    mahalanobis_score,
    nci_score,
    neco_score,
)
from ..reference.ood import acceptance_threshold
from ..torchport.training.data.images import AnySplit, readable
from .errors import CheckError, ExportError
from .from_run import TrainedModel, evenly

SCORES = ("neco", "nci", "mahalanobis")
MOST_IMAGES = 10_000  # of a split, evenly spread
# Directions of a covariance with a smaller share of the largest variance are left out. In float32 a feature is rounded
# by 6e-8 of its length, which is 1e-4 standard deviations of a direction with this share.
LEAST_VARIANCE = 1e-6
ROUNDING = 1e-5  # relative error of a score in float32
Array = NDArray[np.float64]


@dataclass(frozen=True)
class OodScore:
    """An OOD score with its constants and its threshold.

    Attributes
    ----------
    name : {"neco", "nci", "mahalanobis"}
    constants : dict of arrays
        `subspace` (d, r) and `centre` (d,); or `global_mean` (d,); or `class_mean_rows` (K, d) and `covariance` (d, d).
    threshold : float
        Images with at least this score are accepted.
    share : float
        Least share of accepted images among those that the threshold was computed from.
    images : int
        Their number.
    split : str
        Their split: "val", or "train" for a run without validation images.

    Examples
    --------
    >>> features, labels = np.eye(6)[[0, 1, 0, 1]] + 0.1 * np.eye(6)[[2, 3, 4, 5]], [0, 1, 0, 1]
    >>> score = fit_ood("nci", features, labels, features, np.eye(2, 6), np.zeros(2))
    >>> score.name, score.images, sorted(score.constants)
    ('nci', 4, ['global_mean'])
    """

    name: str
    constants: dict[str, Array]
    threshold: float
    share: float
    images: int
    split: str

    def __call__(self, features: ArrayLike, weight: ArrayLike, bias: ArrayLike) -> Array:
        """Scores (N,) of the classifier's input (N, d), computed by the reference in float64."""
        if self.name == "neco":
            return neco_score(features, **self.constants)
        if self.name == "nci":
            return nci_score(features, weight, bias, global_mean=self.constants["global_mean"])
        return mahalanobis_score(features, **self.constants)

    def describe(self) -> dict[str, Any]:
        """The entry `ood` of the file's metadata."""
        return {
            "score": self.name,
            "larger": "more like the training images",
            "threshold": self.threshold,
            "share": self.share,
            "images": self.images,
            "split": self.split,
        }

    def __str__(self) -> str:
        return (
            f"OOD score {self.name}: threshold {self.threshold:.4g}, which accepts {100 * self.share:.0f} % of "
            f"{self.images} {self.split} images"
        )


def fit_ood(
    name: str,
    features: ArrayLike,
    labels: ArrayLike,
    held_out: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike,
    *,
    share: float = 0.95,
    split: str = "val",
) -> OodScore:
    """Fit an OOD score on training features, and its threshold on held-out ones.

    Parameters
    ----------
    name : {"neco", "nci", "mahalanobis"}
    features, labels : (N, d), (N,)
        The classifier's input for training images; for a head with normalised features, `head.normalise(features)`.
    held_out : (M, d)
        The same for in-distribution images outside the training and the test split.
    weight, bias : (K, d), (K,)
    share : float
        Least share of accepted held-out images, in (0, 1].
    split : str
        Name of the held-out split in the file.

    Raises
    ------
    ExportError
        If there is no such score, the share is out of range, or the score is undefined or constant: a class without
        images, class means that span all dimensions, features without variance.

    Examples
    --------
    >>> features, labels = np.eye(6)[[0, 1, 0, 1]] + 0.1 * np.eye(6)[[2, 3, 4, 5]], [0, 1, 0, 1]
    >>> found = fit_ood("neco", features, labels, features, np.eye(2, 6), np.zeros(2))
    >>> bool((found(features, np.eye(2, 6), np.zeros(2)) >= found.threshold).all())
    True
    """
    if name not in SCORES:
        raise ExportError(f"OOD score is {name!r}: expected one of {', '.join(SCORES)}")
    if not 0 < share <= 1:
        raise ExportError(f"share is {share}: expected a number in (0, 1]")
    W = np.asarray(weight, np.float64)
    try:
        means, covariance = class_gaussians(features, labels, len(W))
        constants: dict[str, Array] = {"global_mean": np.asarray(features, np.float64).mean(axis=0)}
        if name == "neco":
            constants = {"subspace": class_subspace(means), "centre": means.mean(axis=0)}
        elif name == "mahalanobis":
            constants = {"class_mean_rows": means, "covariance": _of_enough_variance(covariance)}
        score = OodScore(name, constants, -math.inf, share, len(np.asarray(held_out)), split)
        found = score(held_out, W, bias)
        threshold = acceptance_threshold(found, share)
    except ValueError as error:
        raise ExportError(f"OOD score {name}: {error}") from error
    if name == "neco" and constants["subspace"].shape[1] == W.shape[1]:
        raise ExportError(
            f"OOD score neco is 1 for every image, because the means of {len(W)} classes span all {W.shape[1]} "
            "dimensions of the features: choose another score"
        )
    lower = threshold - ROUNDING * max(1.0, abs(threshold))  # so that float32 rejects none of the accepted images
    return OodScore(name, constants, math.floor(lower * 1e6) / 1e6, share, score.images, split)


def _of_enough_variance(covariance: Array) -> Array:
    """The covariance without the directions of too little variance (LEAST_VARIANCE)."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > LEAST_VARIANCE * values[-1]
    return (vectors[:, kept] * values[kept]) @ vectors[:, kept].T


def ood_of_run(trained: TrainedModel, name: str, share: float = 0.95) -> OodScore:
    """Fit an OOD score on a run's training images, and its threshold on the validation images.

    Without validation images, the threshold comes from training images, and accepts a smaller share of new images. At
    most 10000 images of a split are used.
    """
    held_out = trained.data.val
    head: Any = trained.model.get_submodule("head")
    parts = [_features(trained, trained.data.train)]
    if held_out is not None:
        parts.append(_features(trained, held_out))
    weight, bias = (tensor.detach().double().numpy() for tensor in (head.weight, head.bias))
    split = "train" if held_out is None else "val"
    return fit_ood(name, *parts[0], parts[-1][0], weight, bias, share=share, split=split)


def recorded_ood(trained: TrainedModel, recorded: Mapping[str, Any] | None) -> OodScore | None:
    """The OOD score of a file, computed again from its run; None for a file without a score.

    Raises
    ------
    CheckError
        If the run gives another threshold, for example because its data have changed.
    """
    if recorded is None:
        return None
    score = ood_of_run(trained, recorded["score"], recorded["share"])
    if not math.isclose(score.threshold, recorded["threshold"], rel_tol=1e-4, abs_tol=1e-4):
        raise CheckError(
            f"the file has the OOD threshold {recorded['threshold']}, but the run's {score.split} images give "
            f"{score.threshold}"
        )
    return score


def _features(trained: TrainedModel, split: AnySplit) -> tuple[Array, NDArray[np.int64]]:
    """The classifier's input for a split's images, (N, d), and their labels (N,)."""
    found = list(_batches(trained, split))
    features, labels = zip(*found, strict=True)
    return np.concatenate(features), np.concatenate(labels)


@torch.no_grad()
def _batches(trained: TrainedModel, split: AnySplit) -> Iterator[tuple[Array, NDArray[np.int64]]]:
    head: Any = trained.model.get_submodule("head")
    backbone = trained.model.get_submodule("backbone")
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (trained.mean, trained.std))
    chosen = evenly(len(split), MOST_IMAGES)
    for start in range(0, len(chosen), 250):
        _, images, labels = readable(split, chosen[start : start + 250])
        x = (torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255 - mean) / std
        yield head.normalise(backbone(x)).double().numpy(), labels
