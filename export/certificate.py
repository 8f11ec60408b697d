"""The evidence that a classifier is a simplex ETF, and the nearest one to its class means.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 3. Without the proximal term the nearest
ETF is `max_U ⟨U, H M⟩`, a linear problem on frames with value `‖H M‖_*`. So `1 − ⟨U, H M⟩/‖H M‖_*` is
never negative, and zero exactly at an optimum; in terms of W it is `1 − √((K−1)/K) ⟨Wᵀ, H M⟩/‖H M‖_*`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..reference import etf_error, nearest_etf


def etf_certificate(weight: ArrayLike, class_means: ArrayLike | None = None) -> dict[str, float]:
    """How far W is from a simplex ETF, and from the one nearest to the class means.

    Parameters
    ----------
    weight : (K, d)
        The classifier, rows are classes.
    class_means : (d, K), optional
        `H`, class means minus the global mean, of any scale.

    Returns
    -------
    dict
        `etf_error` (NC2), `row_norm_error` (largest |‖w‖ − 1|), `etf_distance` (‖W/‖W‖ − E*‖², E* the nearest
        ETF to W) and, with class means, `class_means_distance` (the same with E* the nearest ETF to H) and
        `certificate_gap` (relative).

    Examples
    --------
    >>> from nearest_etf.reference import canonical_etf
    >>> W = canonical_etf(8, 4).T
    >>> max(etf_certificate(W, class_means=3 * W.T).values()) < 1e-7
    True
    """
    W = np.asarray(weight, np.float64)
    K = len(W)
    unit = W / np.linalg.norm(W)
    certificate = {
        "etf_error": etf_error(W),
        "row_norm_error": float(np.abs(np.linalg.norm(W, axis=1) - 1).max()),
        "etf_distance": _distance(unit, nearest_etf(unit.T, method="svd", formulation="gauge-free").classifier),
    }
    if class_means is not None and np.any(class_means):
        H = np.asarray(class_means, np.float64)
        H = (H - H.mean(axis=1, keepdims=True)) / np.linalg.norm(H)
        nearest = nearest_etf(H, method="svd", formulation="gauge-free")
        nuclear = float(np.linalg.svd(H, compute_uv=False).sum())
        certificate["class_means_distance"] = _distance(unit, nearest.classifier)
        certificate["certificate_gap"] = 1 - float(np.sqrt((K - 1) / K) * np.vdot(W.T, H)) / nuclear
    return certificate


def _distance(unit: np.ndarray, etf: np.ndarray) -> float:
    return float(np.linalg.norm(unit - etf / np.linalg.norm(etf)) ** 2)
