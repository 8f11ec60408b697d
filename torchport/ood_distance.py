"""Scores for out-of-distribution data from distances to training features, on their device.

They are those of `reference.ood_distance`, which has formulas and sources. Larger scores indicate in-distribution
samples. Half precision is converted to float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.arguments import whole_number
from ..reference.collapse import CUTOFF
from .arguments import check_dense, check_device, check_finite, check_floats
from .class_means import at_least_single
from .hyperspherical import unit_rows
from .targets import INTEGERS

BLOCK_ENTRIES = 2**24  # entries of the matrix of cosines that are in memory at a time: 64 MB in float32


@torch.no_grad()
def class_gaussians(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Class means (K, d), and the covariance (d, d) within classes that all classes share, in float64.

    Parameters
    ----------
    features : (N, d)
        Features of training data.
    labels : (N,) integers of any type
        In 0…K−1, each class at least once.
    num_classes : int
        K.

    Raises
    ------
    ValueError
        If shapes disagree, a label is out of range, or a class has no sample.

    Examples
    --------
    >>> class_gaussians(torch.tensor([[0.0], [2.0], [5.0], [7.0]]), torch.tensor([0, 0, 1, 1]), 2)[1]
    tensor([[1.]], dtype=torch.float64)
    """
    check_floats("features", features, "a floating-point matrix (N, d)", values=True)
    check_dense("labels", labels, "an integer tensor (N,)")
    check_device("labels", labels, features)
    whole_number("num_classes", num_classes, 1)
    if features.ndim != 2 or labels.shape != features.shape[:1] or labels.dtype not in INTEGERS or not features.numel():
        raise ValueError(
            f"features {tuple(features.shape)}, labels {tuple(labels.shape)} {labels.dtype}; expected (N, d), (N,) int."
        )
    X, y = features.double(), labels.long()
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels are in {low}…{high}; expected 0…{num_classes - 1}.")
    counts = torch.bincount(y, minlength=num_classes)
    if not counts.all():
        empty = int((counts == 0).nonzero()[0])
        raise ValueError(f"class {empty} has no sample; expected at least one of each of {num_classes} classes.")
    means = X.new_zeros(num_classes, X.shape[1]).index_add_(0, y, X) / counts[:, None]
    residuals = X - means[y]
    return means, residuals.T @ residuals / len(X)


def mahalanobis_score(features: Tensor, class_mean_rows: Tensor, covariance: Tensor) -> Tensor:
    """`max_c −(h − μ_c)ᵀ Σ⁺ (h − μ_c)`, (N,), computed in float64 and returned in the dtype of the features.

    Parameters
    ----------
    features : (N, d)
    class_mean_rows : (K, d)
    covariance : (d, d)
        Σ, from `class_gaussians`; directions in which it vanishes are ignored.

    Raises
    ------
    ValueError
        If shapes disagree, or the covariance is zero.

    Examples
    --------
    >>> mahalanobis_score(torch.tensor([[3.0, 0.0]]), torch.eye(1, 2), torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
    tensor([-1.])
    """
    check_floats("features", features, "a floating-point matrix (N, d)", values=True)
    check_floats("class_mean_rows", class_mean_rows, "a floating-point matrix (K, d)", beside=features)
    check_floats("covariance", covariance, "a floating-point matrix (d, d)", beside=features)
    if features.ndim != 2 or class_mean_rows.ndim != 2 or class_mean_rows.shape[1] != features.shape[1]:
        raise ValueError(
            f"features {tuple(features.shape)} and class_mean_rows {tuple(class_mean_rows.shape)}; expected (N, d) and "
            "(K, d) with one d."
        )
    d = features.shape[1]
    if covariance.shape != (d, d):
        raise ValueError(f"covariance has shape {tuple(covariance.shape)}; expected ({d}, {d}).")
    check_finite("covariance", covariance)
    values, vectors = torch.linalg.eigh(covariance.double())
    kept = values > CUTOFF * values[-1].clamp_min(torch.finfo(torch.float64).tiny)
    if not kept.any():
        raise ValueError("covariance is zero: features do not vary within their classes.")
    whitening = vectors[:, kept] / values[kept].sqrt()  # (d, r)
    X, means = features.double() @ whitening, class_mean_rows.to(whitening) @ whitening
    nearest = torch.cdist(X, means, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    return -(X - means[nearest]).square().sum(1).to(at_least_single(features.dtype))


def nearest_neighbour_score(features: Tensor, training_features: Tensor, k: int = 50) -> Tensor:
    """`−‖z − z_(k)‖`, (N,), with z_(k) the k-th nearest training feature, all of unit norm.

    Parameters
    ----------
    features : (N, d)
    training_features : (M, d)
    k : int
        In 1…M. The paper tunes it: 50 for CIFAR-10, 200 for CIFAR-100, 1000 for ImageNet.

    Raises
    ------
    ValueError
        If shapes disagree, or k is out of range.

    Notes
    -----
    The neighbour is found by cosines, in blocks of 64 MB; its distance is the norm of the difference, which is accurate
    for close neighbours too.

    Examples
    --------
    >>> nearest_neighbour_score(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.6, 0.8], [0.6, -0.8]]), k=2)
    tensor([-1.6000])
    """
    check_floats("features", features, "a floating-point matrix (N, d)")
    check_floats("training_features", training_features, "a floating-point matrix (M, d)", beside=features)
    if features.ndim != 2 or training_features.ndim != 2 or features.shape[1] != training_features.shape[1]:
        raise ValueError(
            f"features {tuple(features.shape)} and training_features {tuple(training_features.shape)}; expected (N, d) "
            "and (M, d) with one d."
        )
    if not 1 <= whole_number("k", k) <= len(training_features):
        raise ValueError(f"k = {k}; expected 1…{len(training_features)}, the number of training features.")
    Z = unit_rows(features.to(at_least_single(features.dtype)))
    T = unit_rows(training_features.to(Z))
    lengths = T.square().sum(1)  # 1, or 0 for a zero feature
    scores = []
    for z in Z.split(max(1, BLOCK_ENTRIES // len(T))):
        index = (2 * z @ T.T - lengths).topk(k, dim=1).indices[:, -1]
        scores.append(-(z - T[index]).norm(dim=1))
    return torch.cat(scores)
