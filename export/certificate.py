"""The evidence that a classifier is a simplex ETF, and the nearest one to its class means.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 3. Without the proximal term the nearest
ETF is `max_U ⟨U, H M⟩`, a linear problem on frames with value `‖H M‖_*`. So `1 − ⟨U, H M⟩/‖H M‖_*` is
never negative, and zero exactly at an optimum; in terms of W it is `1 − √((K−1)/K) ⟨Wᵀ, H M⟩/‖H M‖_*`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..reference import etf_error, nearest_etf
from .errors import ExportError

# The largest etf_error that the heads' methods let pass. The loosest method, products in float32, accepts a frame with
# ‖UᵀU − I‖_F ≤ 1e3 eps √K, so that etf_error ≤ 1e3 eps √(K/(K−1)) ≤ 1.7e-4; as a rule it is 1e-7. An EMA with decay
# 0.9999 stays within it, too: its own rounding takes even an ETF that never changes to 5e-5.
SOLVED_TO = 2e-4

# What makes W an ETF again, by the kind of head that has to be one.
REMEDIES = {
    "implicit": "call head.refresh(), which solves again from the running class means",
    "fixed": "load its weight from a model to which neither happened, then call head.refresh() for the bias",
}


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
        `row_norm_error` (largest |‖w‖ − 1|); unless W is zero `etf_error` (NC2) and, where an ETF of that size
        exists, `etf_distance` (‖W/‖W‖ − E*‖², E* the nearest ETF to W); with class means `class_means_distance` (the
        same with E* the nearest ETF to H) and `certificate_gap` (relative).

    Examples
    --------
    >>> from nearest_etf.reference import canonical_etf
    >>> W = canonical_etf(8, 4).T
    >>> max(etf_certificate(W, class_means=3 * W.T).values()) < 1e-7
    True
    """
    W = np.asarray(weight, np.float64)
    K, d = W.shape
    certificate = {"row_norm_error": float(np.abs(np.linalg.norm(W, axis=1) - 1).max())}
    if not W.any():
        return certificate
    unit = W / np.linalg.norm(W)
    certificate["etf_error"] = etf_error(W)
    if d >= K - 1:
        nearest = nearest_etf(unit.T, method="svd", formulation="gauge-free")
        certificate["etf_distance"] = _distance(unit, nearest.classifier)
    if class_means is not None and np.any(class_means):
        H = np.asarray(class_means, np.float64)
        H = (H - H.mean(axis=1, keepdims=True)) / np.linalg.norm(H)
        nearest = nearest_etf(H, method="svd", formulation="gauge-free")
        nuclear = float(np.linalg.svd(H, compute_uv=False).sum())
        certificate["class_means_distance"] = _distance(unit, nearest.classifier)
        certificate["certificate_gap"] = 1 - float(np.sqrt((K - 1) / K) * np.vdot(W.T, H)) / nuclear
    return certificate


def etf_bound(eps: float) -> float:
    """The largest etf_error of a classifier that was solved for in float32 and stored with machine epsilon `eps`.

    Rounding every entry by at most eps/2 of itself changes `WWᵀ` by at most `2 ‖W‖₂ ‖ΔW‖_F ≤ eps ‖W‖₂ ‖W‖_F`, which of
    a simplex ETF is `eps ‖WWᵀ‖_F`: so much is added for half precision.

    >>> [f"{etf_bound(eps):.1e}" for eps in (2**-23, 2**-10, 2**-7)]  # float32, float16, bfloat16
    ['2.0e-04', '1.2e-03', '8.0e-03']
    """
    return SOLVED_TO + eps


def require_etf(weight: ArrayLike, kind: str, eps: float) -> None:
    """Refuse W (K, d) of a `fixed` or `implicit` head that is no simplex ETF with rows of length one.

    Raises
    ------
    ExportError
        If its etf_error is beyond `etf_bound(eps)`, or the length of its rows, in the root mean square, is as far from
        one: of two classes any opposite rows have an etf_error of zero.
    """
    W = np.asarray(weight, np.float64)
    error, bound = etf_error(W) if W.any() else np.inf, etf_bound(eps)
    length = float(np.linalg.norm(W) / np.sqrt(len(W)))
    if not (error <= bound and abs(length - 1) <= bound):
        raise ExportError(
            f"the {kind} head's classifier is no simplex ETF: etf_error {error:.1e} and rows of length {length:.4f}; "
            f"expected at most {bound:.1e}, and as near to 1. An average over models (EMA, SWA, FedAvg) does that, and "
            f"half precision on the way: {REMEDIES[kind]}"
        )


def _distance(unit: np.ndarray, etf: np.ndarray) -> float:
    return float(np.linalg.norm(unit - etf / np.linalg.norm(etf)) ** 2)
