"""Scores for out-of-distribution (OOD) data from W, b and the class means of a trained classifier.

Sources: Hendrycks & Gimpel 2016, arXiv 1610.02136 (maximum softmax probability); Hendrycks et al. 2019, arXiv
1911.11132 (maximum logit); Liu et al. 2020, arXiv 2010.03759 (energy); Ben Ammar et al. 2023, arXiv 2310.06823 (NECO);
Liu & Qin 2023, arXiv 2311.01479 (NCI).

Larger scores indicate in-distribution samples. Features are the input of the classifier: for a head with normalised
features they are `head.normalise(features)`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import svd
from scipy.special import logsumexp
from scipy.stats import rankdata

from ..common.arguments import real_number, whole_number
from .arrays import real_array
from .collapse import CUTOFF
from .hyperspherical import unit_rows
from .stiefel import Array


def max_softmax_score(features: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None) -> Array:
    """The largest class probability, (N,), for logits `W h + b`: the baseline of the other scores.

    Parameters
    ----------
    features : (N, d)
    weight : (K, d)
    bias : (K,), optional

    Raises
    ------
    ValueError
        If shapes disagree or an entry is not finite.

    Examples
    --------
    >>> max_softmax_score([[0.0, 0.0]], np.eye(2)).tolist()
    [0.5]
    """
    logits = _logits(*_checked(features, weight, bias))
    return np.exp(logits.max(axis=1) - logsumexp(logits, axis=1))


def max_logit_score(features: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None) -> Array:
    """The largest logit, (N,).

    Parameters
    ----------
    features, weight, bias
        As for `max_softmax_score`.

    Raises
    ------
    ValueError
        As `max_softmax_score`.

    Examples
    --------
    >>> max_logit_score([[3.0, 1.0]], np.eye(2)).tolist()
    [3.0]
    """
    return _logits(*_checked(features, weight, bias)).max(axis=1)


def energy_score(
    features: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, temperature: float = 1.0
) -> Array:
    """The negative energy `T log Σ exp(logit/T)`, (N,), Liu et al. 2020, eq. 4.

    Parameters
    ----------
    features, weight, bias
        As for `max_softmax_score`.
    temperature : float
        T; the score tends to the largest logit as T falls to zero.

    Raises
    ------
    ValueError
        As `max_softmax_score`, or if T is not a positive number.

    Examples
    --------
    >>> bool(np.isclose(energy_score([[0.0, 0.0]], np.eye(2))[0], np.log(2)))
    True
    """
    temperature = real_number("temperature", temperature, positive=True)
    return temperature * logsumexp(_logits(*_checked(features, weight, bias)) / temperature, axis=1)


def class_subspace(rows: ArrayLike) -> Array:
    """An orthonormal basis (d, r) of the span of the centred class means, or of W's centred rows; r ≤ min(d, K−1).

    At full collapse both equal the span of the ETF and of the first K−1 principal components of the features.

    Parameters
    ----------
    rows : (K, d)
        Class means or W, not centred; rows are classes.

    Raises
    ------
    ValueError
        If the shape is wrong, an entry is not finite, or all rows coincide.

    Examples
    --------
    >>> class_subspace(np.eye(3, 5)).shape
    (5, 2)
    """
    X = finite_matrix(rows, "rows")
    top = np.abs(X).max()
    X = X / (top or 1.0)
    centred = X - X.mean(axis=0)
    _, values, right = svd(centred, full_matrices=False)
    kept = values > max(CUTOFF**0.5 * values[0], CUTOFF * np.linalg.norm(X))
    if not kept.any():
        raise ValueError("all rows coincide; they span no subspace.")
    return right[kept].T


def principal_subspace(features: ArrayLike, rank: int) -> Array:
    """The first principal components of features, (d, rank): the subspace of the NECO paper.

    Parameters
    ----------
    features : (N, d)
        Features of training data.
    rank : int
        In 1…min(N, d); K−1 at full collapse.

    Raises
    ------
    ValueError
        If the shape or the rank is wrong, or an entry is not finite.

    Examples
    --------
    >>> np.abs(principal_subspace([[2.0, 0.0], [-2.0, 0.1], [0.0, 0.0]], 1)).round(2).tolist()
    [[1.0], [0.02]]
    """
    X = finite_matrix(features, "features")
    if not 1 <= whole_number("rank", rank) <= min(X.shape):
        raise ValueError(f"rank = {rank}; expected 1…{min(X.shape)} for features of shape {X.shape}.")
    return svd(X - X.mean(axis=0), full_matrices=False)[2][:rank].T


def neco_score(features: ArrayLike, subspace: ArrayLike, centre: ArrayLike | None = None) -> Array:
    """NECO: the share `‖Vᵀz‖/‖z‖` of a feature that lies in a subspace, `z = h − centre`, (N,) in 0…1.

    With the subspace of the classes and the global mean as centre, it is 1 at full collapse for every sample of the
    classes, and 0 for a sample orthogonal to the subspace. A feature at the centre scores 0. The score is invariant
    under scale and rotation.

    Parameters
    ----------
    features : (N, d)
    subspace : (d, r)
        V, orthonormal columns: `class_subspace` of the class means or of W, or the paper's `principal_subspace`. If
        r = d, as for K > d, every feature scores 1.
    centre : (d,), optional
        The global mean, for the subspaces above; zero by default.

    Notes
    -----
    On some networks the paper multiplies the score by the largest logit: see `max_logit_score`.

    Raises
    ------
    ValueError
        If shapes disagree, an entry is not finite, or the columns are not orthonormal.

    Examples
    --------
    >>> neco_score([[3.0, 0.0, 4.0]], np.eye(3, 2)).tolist()
    [0.6]
    """
    X, V = finite_matrix(features, "features"), real_array("subspace", subspace)
    if V.ndim != 2 or len(V) != X.shape[1]:
        raise ValueError(f"subspace has shape {V.shape}; expected ({X.shape[1]}, r), columns that span it.")
    if not np.allclose(V.T @ V, np.eye(V.shape[1]), atol=1e-4):
        raise ValueError("columns of subspace are not orthonormal; class_subspace gives such a basis.")
    z = unit_rows(X - _vector(centre, X.shape[1], "centre"))
    return np.minimum(np.linalg.norm(z @ V, axis=1), 1.0)


def nci_score(
    features: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    global_mean: ArrayLike,
    norm_weight: float = 0.0,
    order: float = 1,
) -> Array:
    """NCI: `w_cᵀz/‖z‖ + α‖h‖_p`, (N,), c the predicted class and `z = h − μ_G`.

    The first term is the cosine between centred feature and weight vector, times the norm of the weight vector. At full
    collapse with unit rows it has its largest value 1. It is invariant under rotation and under a common scale of
    features, bias and mean. The second term depends on the scale and, for p ≠ 2, on the axes.

    Parameters
    ----------
    features, weight, bias
        As for `max_softmax_score`.
    global_mean : (d,)
        μ_G, the mean of training features.
    norm_weight : float
        α; the paper tunes it. For features of equal length and p = 2 the second term is constant.
    order : float
        p ≥ 1.

    Raises
    ------
    ValueError
        If shapes disagree, an entry is not finite, or p < 1.

    Examples
    --------
    >>> nci_score([[3.0, 1.0]], np.eye(2), global_mean=[0.0, 1.0]).tolist()
    [1.0]
    """
    norm_weight = real_number("norm_weight", norm_weight)
    if isinstance(order, str) or not order >= 1:
        raise ValueError(f"order = {order}; expected the order p ≥ 1 of a norm.")
    X, W, b = _checked(features, weight, bias)
    predicted = W[_logits(X, W, b).argmax(axis=1)]  # (N, d)
    z = unit_rows(X - _vector(global_mean, X.shape[1], "global_mean"))
    return (z * predicted).sum(axis=1) + norm_weight * np.linalg.norm(X, ord=order, axis=1)


def auroc(scores_in: ArrayLike, scores_out: ArrayLike) -> float:
    """The share of pairs in which the in-distribution sample scores higher; a tie counts one half.

    The area under the ROC curve, by ranks (Mann & Whitney 1947): 1 is perfect, 0.5 is chance.

    Parameters
    ----------
    scores_in, scores_out : (N,), (M,)
        Larger for in-distribution.

    Raises
    ------
    ValueError
        If one of them is empty, not a vector, or contains NaN.

    Examples
    --------
    >>> auroc([3.0, 2.0], [2.0, 1.0])
    0.875
    """
    inside, outside = _scores(scores_in, "scores_in"), _scores(scores_out, "scores_out")
    ranks = rankdata(np.concatenate([inside, outside]))
    n, m = len(inside), len(outside)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def fpr95(scores_in: ArrayLike, scores_out: ArrayLike) -> float:
    """The share of OOD samples accepted at the largest threshold that accepts 95 % of the in-distribution samples.

    A sample is accepted if its score is at least the threshold. 0 is perfect, 1 is worst.

    Parameters
    ----------
    scores_in, scores_out : (N,) and (N′,)
        As for `auroc`.

    Raises
    ------
    ValueError
        As `auroc`.

    Examples
    --------
    >>> fpr95(np.arange(100), [4.0, 5.0, 6.0, 7.0])
    0.75
    """
    outside = _scores(scores_out, "scores_out")
    return float(np.mean(outside >= acceptance_threshold(scores_in)))


def acceptance_threshold(scores_in: ArrayLike, share: float = 0.95) -> float:
    """The largest threshold that at least the given share of the in-distribution scores (N,) reach.

    Raises
    ------
    ValueError
        If there are no scores, one is NaN, or the share is not in (0, 1].

    Examples
    --------
    >>> acceptance_threshold(np.arange(100)), acceptance_threshold(np.arange(100), 0.5)
    (5.0, 50.0)
    """
    inside = _scores(scores_in, "scores_in")
    if not 0 < share <= 1:
        raise ValueError(f"share = {share}; expected a number in (0, 1].")
    accepted = math.ceil(round(share * len(inside), 9))  # rounded, since share · N may exceed an integer by rounding
    return float(np.sort(inside)[len(inside) - accepted])


def _logits(X: Array, W: Array, b: Array) -> Array:
    return X @ W.T + b


def _checked(features: ArrayLike, weight: ArrayLike, bias: ArrayLike | None) -> tuple[Array, Array, Array]:
    X, W = finite_matrix(features, "features"), finite_matrix(weight, "weight")
    if X.shape[1] != W.shape[1]:
        remedy = " Rows of weight are classes: pass weight.T if your columns are." if X.shape[1] == len(W) else ""
        raise ValueError(f"features {X.shape} and weight {W.shape}; expected (N, d) and (K, d) with one d.{remedy}")
    return X, W, _vector(bias, len(W), "bias")


def finite_matrix(values: ArrayLike, name: str) -> Array:
    """The value as a float64 matrix; ValueError if it is not a matrix, is empty, or has an entry that is not finite."""
    X = real_array(name, values)
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"{name}: shape {X.shape}; expected a non-empty matrix.")
    if not np.isfinite(X).all():
        raise ValueError(f"{name}: {int(np.sum(~np.isfinite(X)))} NaN or infinite entries.")
    return X


def _vector(values: ArrayLike | None, size: int, name: str) -> Array:
    """The vector (size,), zero by default."""
    v = np.zeros(size) if values is None else real_array(name, values)
    if v.shape != (size,) or not np.isfinite(v).all():
        raise ValueError(f"{name}: shape {v.shape}; expected ({size},) with finite entries.")
    return v


def _scores(values: ArrayLike, name: str) -> NDArray[np.float64]:
    s = real_array(name, values)
    if s.ndim != 1 or len(s) == 0 or np.isnan(s).any():
        raise ValueError(f"{name}: shape {s.shape}; expected a vector of at least one score, none of them NaN.")
    return s
