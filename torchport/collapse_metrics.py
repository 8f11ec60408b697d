"""The formulas of neural collapse for accumulated statistics, in blocks instead of K×K matrices.

They are those of `reference.collapse`. Rows are classes: `class_mean_rows` is `H̄ᵀ` (K, d), class means minus their
mean, like W (K, d).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.collapse import CUTOFF
from .collapse_batches import unit_of
from .procrustes import nearest_etf


def numerical_rank(features: Tensor, labels: Tensor) -> float:
    """`(‖X_c‖_*/‖X_c‖_F)²` of the features of a class, averaged over the classes present.

    The one metric that a stream cannot provide in memory O(Kd + d²): it needs all features (N, d) at once.

    Parameters
    ----------
    features : (N, d)
    labels : (N,) integers

    Examples
    --------
    >>> round(numerical_rank(torch.eye(4), torch.zeros(4, dtype=torch.int64)), 6)
    4.0
    """
    ranks = []
    for c in labels.unique():
        values = torch.linalg.svdvals(unit(features[labels == c].double()))
        ranks.append(values.sum() ** 2 if values[0] > 0 else values.new_ones(()))
    return float(torch.stack(ranks).mean())


def eigenpairs(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (d,), ascending, and -vectors (d, d).

    torch's divide and conquer may not converge for covariances of far fewer samples than dimensions (90 photos with
    1280 features); then QR iteration is used.
    """
    try:
        values, vectors = torch.linalg.eigh(symmetric)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        from scipy.linalg import eigh

        values, vectors = (torch.from_numpy(x).to(symmetric) for x in eigh(symmetric.cpu().numpy(), driver="ev"))
    return values, vectors


def between_class_spectrum(class_mean_rows: Tensor) -> tuple[Tensor, Tensor]:
    """The range of `Σ_B = H̄H̄ᵀ/K`, by the smaller Gram matrix: eigenvalues (r,) and -vectors (d, r)."""
    K, d = class_mean_rows.shape
    gram = class_mean_rows.T @ class_mean_rows if d < K else class_mean_rows @ class_mean_rows.T
    values, vectors = eigenpairs(gram / K)
    kept = values > CUTOFF * values[-1].clamp_min(torch.finfo(gram.dtype).tiny)
    values, vectors = values[kept], vectors[:, kept]
    if d >= K:
        vectors = class_mean_rows.T @ vectors
        vectors = vectors / vectors.norm(dim=0)
    return values, vectors


def variability_collapse(sigma_w: Tensor, class_mean_rows: Tensor, rank: int) -> float:
    """`1 − tr(Σ_T† Σ_B)/rank Σ_B`, with `tr(Σ_T† Σ_B) = Σ ‖uᵀH̄‖²/(Kλ)` over the eigenpairs of Σ_T."""
    if rank == 0:
        return 1.0
    K = len(class_mean_rows)
    values, vectors = eigenpairs(sigma_w + class_mean_rows.T @ class_mean_rows / K)
    kept = values > CUTOFF * values[-1]
    between = (class_mean_rows @ vectors[:, kept]).square().sum(0) / K
    return max(0.0, 1.0 - float((between / values[kept]).sum()) / rank)


def etf_error(left: Tensor, right: Tensor) -> float:
    """`‖G/‖G‖_F − M/√(K−1)‖_F` for `G = left rightᵀ` (K, K), in blocks of at most d rows."""
    K, d = left.shape
    norm = torch.stack([(left[i : i + d] @ right.T).square().sum() for i in range(0, K, d)]).sum().sqrt()
    scale = 1.0 / norm if norm > 0 else torch.zeros_like(norm)
    error = 0.0
    for start in range(0, K, d):
        difference = scale * (left[start : start + d] @ right.T) + 1.0 / (K * (K - 1) ** 0.5)
        difference.diagonal(start).sub_((K - 1) ** -0.5)
        error += float(difference.square().sum())
    return error**0.5


def unit_etf(G: Tensor) -> tuple[Tensor, bool]:
    """The simplex ETF of unit Frobenius norm nearest to G (K, d), rows are classes, and whether it is unique.

    All entries are nan if d < K−1.
    """
    K, d = G.shape
    if d < K - 1:
        return torch.full_like(G, torch.nan), False
    frame = nearest_etf(unit(G).T, formulation="gauge-free", method="svd")
    values = torch.linalg.svdvals(G - G.mean(0))  # at most K−1 of them are not zero, since rows are centred
    unique = values[K - 2] > max(K, d) * torch.finfo(G.dtype).eps * values[0]
    return frame.T / (K - 1) ** 0.5, bool(unique)


def cdnv(class_mean_rows: Tensor, variances: Tensor) -> float:
    """Mean over pairs of `(v_c + v_c′)/(2‖h_c − h_c′‖²)`, in blocks of at most d rows."""
    K, d = class_mean_rows.shape
    squared_norms = class_mean_rows.square().sum(1)
    total = 0.0
    for start in range(0, K, d):
        rows = slice(start, start + d)
        lengths = squared_norms[rows, None] + squared_norms
        squared_distances = lengths - 2 * class_mean_rows[rows] @ class_mean_rows.T
        squared_distances = squared_distances.where(squared_distances > CUTOFF * lengths, 0.0)
        squared_distances.diagonal(start).fill_(torch.inf)
        total += float((0.5 * (variances[rows, None] + variances) / squared_distances).nan_to_num(nan=torch.inf).sum())
    return total / (K * (K - 1))


def squared_distance(a: Tensor, b: Tensor) -> float:
    """`‖a − b‖_F²`."""
    return float((a - b).square().sum())


def unit(G: Tensor) -> Tensor:
    """G divided by its Frobenius norm; a zero matrix stays zero."""
    G = G / unit_of(G)  # so that no square overflows or underflows
    norm = G.norm()
    return G / norm if norm > 0 else G


def variation(norms: Tensor) -> float:
    """Standard deviation over mean."""
    return float(norms.std(correction=0) / norms.mean())
