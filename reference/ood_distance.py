"""Scores for out-of-distribution data from distances to training features: the baselines of NECO and NCI.

Sources: Lee et al. 2018, arXiv 1807.03888, eqs. 1 and 2 (Mahalanobis distance with one covariance for all classes; here
from the last features, without the paper's input noise); Sun et al. 2022, arXiv 2204.06507 (k-th nearest neighbour).

Both are negative distances: as in `ood`, larger scores indicate in-distribution samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh
from scipy.spatial.distance import cdist

from ..common.arguments import whole_number
from .arrays import as_array
from .collapse import CUTOFF
from .hyperspherical import unit_rows
from .ood import finite_matrix
from .stiefel import Array

BLOCK = 512  # number of features whose distances are in memory at a time


def class_gaussians(features: ArrayLike, labels: ArrayLike, num_classes: int) -> tuple[Array, Array]:
    """Class means (K, d), and the covariance (d, d) within classes that all classes share.

    `Σ = (1/N) Σ_c Σ_{i of c} (h_i − μ_c)(h_i − μ_c)ᵀ`, Lee et al. 2018, eq. 1.

    Parameters
    ----------
    features : (N, d)
        Features of training data.
    labels : (N,) int
        In 0…K−1, each class at least once.
    num_classes : int
        K.

    Raises
    ------
    ValueError
        If shapes disagree, an entry is not finite, or a class has no sample.

    Examples
    --------
    >>> means, covariance = class_gaussians([[0.0], [2.0], [5.0], [7.0]], [0, 0, 1, 1], 2)
    >>> means.tolist(), covariance.tolist()
    ([[1.0], [6.0]], [[1.0]])
    """
    X, y = finite_matrix(features, "features"), as_array("labels", labels)
    whole_number("num_classes", num_classes, 1)
    if y.shape != X.shape[:1] or y.dtype.kind not in "iu":
        raise ValueError(f"labels have shape {y.shape} and dtype {y.dtype}; expected {len(X)} integers.")
    if y.min() < 0 or y.max() >= num_classes:
        raise ValueError(f"labels are in {y.min()}…{y.max()}; expected 0…{num_classes - 1}.")
    empty = sorted(set(range(num_classes)) - set(y.tolist()))
    if empty:
        raise ValueError(f"class {empty[0]} has no sample; expected at least one of each of {num_classes} classes.")
    means = np.stack([X[y == c].mean(axis=0) for c in range(num_classes)])
    residuals = X - means[y]
    return means, residuals.T @ residuals / len(X)


def mahalanobis_score(features: ArrayLike, class_mean_rows: ArrayLike, covariance: ArrayLike) -> Array:
    """`max_c −(h − μ_c)ᵀ Σ⁺ (h − μ_c)`, (N,), Lee et al. 2018, eq. 2.

    Σ⁺ is the pseudo-inverse: directions without variance within classes, such as those of inactive units, are ignored.
    If Σ has full rank, the score is invariant under invertible linear maps.

    Parameters
    ----------
    features : (N, d)
    class_mean_rows : (K, d)
    covariance : (d, d)
        Σ, from `class_gaussians`.

    Raises
    ------
    ValueError
        If shapes disagree, an entry is not finite, or the covariance is zero or not symmetric.

    Examples
    --------
    >>> mahalanobis_score([[3.0, 0.0]], [[1.0, 0.0], [9.0, 0.0]], np.diag([4.0, 1.0])).tolist()
    [-1.0]
    """
    X, means = finite_matrix(features, "features"), finite_matrix(class_mean_rows, "class_mean_rows")
    S = finite_matrix(covariance, "covariance")
    d = X.shape[1]
    if means.shape[1] != d or S.shape != (d, d):
        raise ValueError(f"class_mean_rows {means.shape}, covariance {S.shape}; expected (K, {d}) and ({d}, {d}).")
    if not np.allclose(S, S.T, rtol=1e-6, atol=1e-6 * np.abs(S).max()):
        raise ValueError("covariance is not symmetric; expected the covariance from class_gaussians.")
    values, vectors = eigh((S + S.T) / 2)
    kept = values > CUTOFF * max(values[-1], np.finfo(np.float64).tiny)
    if not kept.any():
        raise ValueError("covariance is zero: features do not vary within their classes.")
    whitening = vectors[:, kept] / np.sqrt(values[kept])  # (d, r)
    return -cdist(X @ whitening, means @ whitening, "sqeuclidean").min(axis=1)


def nearest_neighbour_score(features: ArrayLike, training_features: ArrayLike, k: int = 50) -> Array:
    """`−‖z − z_(k)‖`, (N,), with z_(k) the k-th nearest training feature, all of unit norm, Sun et al. 2022, eq. 1.

    In −2…0, invariant under rotation and under the norm of every feature; a zero feature stays zero.

    Parameters
    ----------
    features : (N, d)
    training_features : (M, d)
    k : int
        In 1…M. The paper tunes it: 50 for CIFAR-10, 200 for CIFAR-100, 1000 for ImageNet.

    Raises
    ------
    ValueError
        If shapes disagree, an entry is not finite, or k is out of range.

    Examples
    --------
    >>> nearest_neighbour_score([[3.0, 4.0]], [[0.6, 0.8], [0.6, -0.8]], k=2).tolist()
    [-1.6]
    """
    X, T = finite_matrix(features, "features"), finite_matrix(training_features, "training_features")
    if X.shape[1] != T.shape[1]:
        raise ValueError(f"features {X.shape} and training_features {T.shape}; expected (N, d) and (M, d) with one d.")
    if not 1 <= whole_number("k", k) <= len(T):
        raise ValueError(f"k = {k}; expected 1…{len(T)}, the number of training features.")
    Z, T = unit_rows(X), unit_rows(T)
    blocks = np.split(Z, range(BLOCK, len(Z), BLOCK))
    return np.concatenate([-np.partition(cdist(z, T), k - 1, axis=1)[:, k - 1] for z in blocks])
