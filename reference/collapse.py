"""Metrics of neural collapse, computed directly from their formulas, in float64, from all features at once.

Sources: Papyan, Han & Donoho 2020, arXiv 2008.08186 (NC1–NC4, equinorm); Zhu et al. 2021, arXiv 2105.02375
(the normalised forms of NC2 and NC3); Galanti, György & Hutter 2021, arXiv 2112.15121 (CDNV); Xu & Liu 2023,
arXiv 2306.03440 (the variability-collapse index); Markou, Ajanthan & Gould 2024, arXiv 2411.01248 (cosine
margin).

Conventions:

- `μ_c` is the mean of class c, and `μ_G` the mean of the class means. Every class has the same weight, so that
  imbalanced data do not look asymmetric; for balanced data `μ_G` is the mean of the samples.
- `H̄` (d, K) has columns `μ_c − μ_G`; `Σ_W` is the mean of `(x − μ_c)(x − μ_c)ᵀ` over samples; `Σ_B = H̄H̄ᵀ/K`;
  `Σ_T = Σ_W + Σ_B`.
- A class without samples, and its row of W, is left out of all metrics of means. A class with one sample has no
  spread.
- `CUTOFF` separates structure from rounding. An eigenvalue of a covariance below this share of the largest is zero;
  two class means coincide if their relative distance is below its root, and all of them if `‖H̄‖_F` is below this
  share of the norm of the class means.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh, svdvals
from scipy.spatial.distance import cdist, pdist

from .arrays import as_array, real_array
from .procrustes import nearest_etf
from .riemannian import Status
from .simplex import centring
from .stiefel import Array

CUTOFF = 1e-12
MARGIN_EDGES = np.linspace(-2.0, 2.0, 201)  # a difference of two cosines lies in [−2, 2]


@dataclass(frozen=True)
class NeuralCollapse:
    """Metrics of the collapse of a classifier and its features. Zero is full collapse unless stated otherwise.

    A metric that is undefined for the data, or was not measured, is nan.

    Attributes
    ----------
    nc1 : float
        `tr(Σ_W Σ_B†)/K`, never negative; infinite where all class means coincide.
    nc2, nc2_means : float
        `‖WWᵀ/‖WWᵀ‖_F − M/√(K−1)‖_F`, and the same for `H̄ᵀ`; 1 where all class means coincide.
    nc3 : float
        `‖W H̄/‖W H̄‖_F − M/√(K−1)‖_F`; 1 where all class means coincide.
    nc4 : float
        Share of samples on which the nearest class mean and the network disagree.
    bias_offset : float
        `‖W μ_G + b‖₂`.
    equinorm_weight, equinorm_means : float
        Standard deviation over mean of the norms of W's rows, and of H̄'s columns.
    equinorm_difference : float
        The absolute difference of the two.
    cosine_margin, cosine_margin_std : float
        Mean and standard deviation over samples of the cosine to the true class minus the largest cosine
        to another class, between `x − μ_G` and the rows of `M W`. At full collapse the mean is K/(K−1).
    etf_distance_weight, etf_distance_means : float
        `‖W/‖W‖_F − E*‖_F²`, E* the nearest simplex ETF of unit norm, and the same for H̄. Undefined for
        d < K−1.
    etf_distance_between : float
        `‖E*_W − E*_H̄‖_F²`. Undefined if one of them is not unique.
    numerical_rank : float
        `(‖X_c‖_*/‖X_c‖_F)²` of the features of a class, averaged over classes; 1 at full collapse.
    variability_collapse : float
        `1 − tr(Σ_T† Σ_B)/rank Σ_B`, in 0…1; 1 where all class means coincide.
    cdnv : float
        `(v_c + v_c′)/(2‖μ_c − μ_c′‖²)` averaged over pairs of classes, `v_c` the mean squared distance to
        `μ_c`; infinite where two class means coincide.
    margin_histogram : (200,) int64
        Number of samples whose cosine margin lies in each interval of `MARGIN_EDGES`.

    Examples
    --------
    >>> features = np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> found = neural_collapse(features, [0, 0, 1, 1], [[1.0, 0.0], [-1.0, 0.0]])
    >>> found.nc1, found.nc4, round(found.cdnv, 6)
    (0.0, 0.0, 0.0025)
    """

    nc1: float
    nc2: float
    nc2_means: float
    nc3: float
    nc4: float
    bias_offset: float
    equinorm_weight: float
    equinorm_means: float
    equinorm_difference: float
    cosine_margin: float
    cosine_margin_std: float
    etf_distance_weight: float
    etf_distance_means: float
    etf_distance_between: float
    numerical_rank: float
    variability_collapse: float
    cdnv: float
    margin_histogram: NDArray[np.int64] = field(repr=False, compare=False)


def neural_collapse(
    features: ArrayLike, labels: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None
) -> NeuralCollapse:
    """All metrics of neural collapse, for logits `W x + b`.

    Parameters
    ----------
    features : (N, d)
        Rows are samples: the input of the classifier.
    labels : (N,)
        Integers in 0…K−1. At least two classes must have a sample.
    weight : (K, d)
        `W`, rows are classes. A transposed matrix is refused, except at d = K, where the shapes agree.
    bias : (K,), optional
        `b`, zero by default.

    Raises
    ------
    ValueError
        If shapes disagree, an entry is not finite, a label is out of range, fewer than two classes have
        samples, or W is zero.

    Examples
    --------
    >>> from nearest_etf.reference import simplex_etf
    >>> labels = np.repeat(np.arange(4), 5)
    >>> collapsed = simplex_etf(4)[labels]
    >>> measured = neural_collapse(collapsed, labels, simplex_etf(4))
    >>> measured.nc1 < 1e-15, measured.nc3 < 1e-15, round(measured.cosine_margin, 6)
    (True, True, 1.333333)
    """
    X, y, W, b = _checked(features, labels, weight, bias)
    # Scaled to units of their own, features and weights have no squares that overflow or underflow. Only the bias
    # depends on these units.
    unit_of_features, unit_of_weight = _power_of_two(X), _power_of_two(W)
    X, W = X / unit_of_features, W / unit_of_weight
    with np.errstate(over="ignore"):
        b = b / unit_of_features / unit_of_weight
    if not np.isfinite(b).all():
        raise ValueError("bias outweighs W x by more than float64 can compare: rescale features or weight.")
    present = np.unique(y)
    K = len(present)
    class_mean_rows = np.stack([X[y == c].mean(axis=0) for c in present])  # (K, d)
    global_mean = class_mean_rows.mean(axis=0)
    H = (class_mean_rows - global_mean).T  # (d, K)
    if np.linalg.norm(H) <= CUTOFF * np.linalg.norm(class_mean_rows):
        H = np.zeros_like(H)
    spread = X - class_mean_rows[np.searchsorted(present, y)]  # (N, d)
    variances = np.array([np.square(spread[y == c]).sum(axis=1).mean() for c in present])
    sigma_w = spread.T @ spread / len(X)
    sigma_b = H @ H.T / K

    W_present = W[present]
    etf_weight, etf_means = _unit_etf(W_present.T), _unit_etf(H)
    etf_all = etf_weight if len(W) == K else _unit_etf(W.T)
    both_unique = etf_weight.unique and etf_means.unique
    equinorm_weight = _variation(np.linalg.norm(W, axis=1))
    equinorm_means = _variation(np.linalg.norm(H, axis=0))
    margins = _cosine_margins(X - global_mean, y, W - W.mean(axis=0))
    nearest = present[np.argmin(cdist(X, class_mean_rows), axis=1)]

    return NeuralCollapse(
        nc1=_trace_ratio(sigma_w, sigma_b) / K,
        nc2=_etf_error(W @ W.T),
        nc2_means=_etf_error(H.T @ H),
        nc3=_etf_error(W_present @ H),
        nc4=float(np.mean(nearest != np.argmax(X @ W.T + b, axis=1))),
        bias_offset=float(np.linalg.norm(W @ global_mean + b)) * unit_of_features * unit_of_weight,
        equinorm_weight=equinorm_weight,
        equinorm_means=equinorm_means,
        equinorm_difference=abs(equinorm_weight - equinorm_means),
        cosine_margin=float(margins.mean()),
        cosine_margin_std=float(margins.std()),
        etf_distance_weight=_squared_distance(_unit(W.T), etf_all.etf),
        etf_distance_means=_squared_distance(_unit(H), etf_means.etf),
        etf_distance_between=_squared_distance(etf_weight.etf, etf_means.etf) if both_unique else np.nan,
        numerical_rank=float(np.mean([_numerical_rank(X[y == c]) for c in present])),
        variability_collapse=_variability_collapse(sigma_w, H),
        cdnv=_cdnv(H.T, variances),
        margin_histogram=np.histogram(margins, MARGIN_EDGES)[0],
    )


def _power_of_two(values: Array) -> float:
    """The largest power of two not above the largest absolute entry; 1 if all entries are zero."""
    return float(np.ldexp(0.5, np.frexp(np.abs(values).max(initial=0.0))[1])) if values.any() else 1.0


def _trace_ratio(sigma_w: Array, sigma_b: Array) -> float:
    """`tr(Σ_W Σ_B†)` as the sum of the non-negative terms `uᵀΣ_W u/λ` over the eigenpairs of Σ_B."""
    values, vectors = _range(sigma_b)
    if len(values) == 0:
        return np.inf
    within = np.einsum("di,dc,ci->i", vectors, sigma_w, vectors, optimize=True)
    return float((np.maximum(within, 0.0) / values).sum())


def _variability_collapse(sigma_w: Array, H: Array) -> float:
    """The index, with `tr(Σ_T† Σ_B)` as the sum of `‖uᵀH̄‖²/(Kλ)` over the eigenpairs of Σ_T."""
    sigma_b = H @ H.T / H.shape[1]
    rank = len(_range(sigma_b)[0])
    values, vectors = _range(sigma_w + sigma_b)
    between = np.square(vectors.T @ H).mean(axis=1)
    return max(0.0, 1.0 - float((between / values).sum()) / rank) if rank else 1.0


def _range(sigma: Array) -> tuple[Array, Array]:
    """The positive eigenvalues of a covariance (r,), and their eigenvectors (d, r)."""
    values, vectors = eigh(sigma)
    kept = values > CUTOFF * max(values[-1], np.finfo(np.float64).tiny)
    return values[kept], vectors[:, kept]


def _etf_error(gram: Array) -> float:
    """`‖G/‖G‖_F − M/√(K−1)‖_F`."""
    K = len(gram)
    return float(np.linalg.norm(_unit(gram) - centring(K) / np.sqrt(K - 1)))


@dataclass(frozen=True)
class _UnitETF:
    etf: Array  # (d, K), unit Frobenius norm
    unique: bool


def _unit_etf(G: Array) -> _UnitETF:
    """The simplex ETF of unit Frobenius norm nearest to G (d, K); nan if d < K−1."""
    d, K = G.shape
    if d < K - 1:
        return _UnitETF(np.full((d, K), np.nan), False)
    nearest = nearest_etf(G, method="svd", formulation="gauge-free")
    return _UnitETF(nearest.frame @ centring(K) / np.sqrt(K - 1), nearest.status is not Status.NOT_UNIQUE)


def _squared_distance(a: Array, b: Array) -> float:
    return float(np.square(a - b).sum())


def _unit(G: Array) -> Array:
    """G divided by its Frobenius norm; a zero matrix stays zero."""
    norm = np.linalg.norm(G)
    return G / norm if norm > 0 else G


def _variation(norms: Array) -> float:
    """Standard deviation over mean."""
    return float(norms.std() / norms.mean()) if norms.any() else np.nan


def _cosine_margins(centred: Array, labels: NDArray[np.int64], centred_weight: Array) -> Array:
    """Cosine to the true class minus the largest to another, (N,); the cosine of a zero vector is 0."""
    lengths = np.linalg.norm(centred, axis=1)[:, None] * np.linalg.norm(centred_weight, axis=1)  # (N, K)
    products = centred @ centred_weight.T
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    rows = np.arange(len(labels))
    true = cosines[rows, labels]
    cosines[rows, labels] = -np.inf
    return true - cosines.max(axis=1)


def _numerical_rank(X: Array) -> float:
    values = svdvals(_unit(X))
    return float(values.sum() ** 2) if values[0] > 0 else 1.0


def _cdnv(class_mean_rows: Array, variances: Array) -> float:
    first, second = np.triu_indices(len(class_mean_rows), k=1)
    squared_distances = pdist(class_mean_rows, "sqeuclidean")
    squared_norms = np.square(class_mean_rows).sum(axis=1)
    if np.any(squared_distances <= CUTOFF * (squared_norms[first] + squared_norms[second])):
        return np.inf
    return float(((variances[first] + variances[second]) / (2 * squared_distances)).mean())


def _checked(
    features: ArrayLike, labels: ArrayLike, weight: ArrayLike, bias: ArrayLike | None
) -> tuple[Array, NDArray[np.int64], Array, Array]:
    X, W, y = real_array("features", features), real_array("weight", weight), as_array("labels", labels)
    if X.ndim != 2 or W.ndim != 2 or X.shape[1] != W.shape[1]:
        remedy = ""
        if X.ndim == W.ndim == 2 and X.shape[1] == len(W):
            remedy = " Rows of weight are classes: pass weight.T if your columns are."
        elif X.ndim == W.ndim == 2 and len(X) == W.shape[1]:
            remedy = " Rows of features are samples: pass features.T if your columns are."
        raise ValueError(f"features {X.shape} and weight {W.shape}; expected (N, d) and (K, d) with one d.{remedy}")
    b = np.zeros(len(W)) if bias is None else real_array("bias", bias)
    if b.shape != (len(W),):
        raise ValueError(f"bias has shape {b.shape}; expected ({len(W)},), one entry per row of weight.")
    if y.shape != X.shape[:1] or y.dtype.kind not in "iu":
        raise ValueError(f"labels are {y.dtype} {y.shape}; expected integers ({len(X)},), one per sample.")
    for name, values in (("features", X), ("weight", W), ("bias", b)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} contains {int(np.sum(~np.isfinite(values)))} NaN or infinite entries.")
    if len(y) and (y.min() < 0 or y.max() >= len(W)):
        raise ValueError(f"labels span {y.min()}…{y.max()}; expected 0…{len(W) - 1}, the rows of weight.")
    if len(np.unique(y)) < 2:
        raise ValueError(f"labels hold {len(np.unique(y))} class(es); neural collapse compares at least two.")
    if not W.any():
        raise ValueError("weight is zero; its angles and its nearest ETF are undefined.")
    return X, y.astype(np.int64), W, b
