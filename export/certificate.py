"""The evidence of what a classifier is: a simplex ETF, a tight frame or neither, and how near to its class means.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 3. With r = min(d, K−1), a simplex ETF for K ≤ d+1 and
a tight frame for K > d+1 are `Wᵀ = √(K/r) F` with a partial isometry F of rank r. Without the proximal term the one
nearest to H is `max_F ⟨F, H M⟩`, with value `‖H M‖_*`. So `1 − √(r/K) ⟨Wᵀ, H M⟩/‖H M‖_*` is never negative for such a
W, and zero exactly at an optimum.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from numpy.typing import ArrayLike

from ..reference import etf_error, frame_geometry, nearest_tight_frame
from .errors import ExportError

# The largest etf_error that the heads' methods let pass. The loosest method, products in float32, accepts a frame with
# ‖UᵀU − I‖_F ≤ 1e3 eps √K, so that etf_error ≤ 1e3 eps √(K/(K−1)) ≤ 1.7e-4; as a rule it is 1e-7. An EMA with decay
# 0.9999 stays within it, too: its own rounding takes even an ETF that never changes to 5e-5.
SOLVED_TO = 2e-4

TIGHT = 1e-2  # the largest tightness_error of a classifier that a certificate_gap is given for; beyond half precision's

# What restores a classifier, by the kind of head that has to have one of its kind.
REFRESH = "call head.refresh(), which solves again from the running class means"
REMEDIES = {
    "implicit": REFRESH,
    "fixed": "load its weight from a model to which neither happened, then call head.refresh() for the bias",
    "class-mean": REFRESH,
    "tight-frame": REFRESH,
}


def etf_certificate(weight: ArrayLike, class_means: ArrayLike | None = None) -> dict[str, float]:
    """How far W is from a simplex ETF or a tight frame, and from the one nearest to the class means.

    Parameters
    ----------
    weight : (K, d)
        The classifier, rows are classes.
    class_means : (d, K), optional
        `H`, class means minus the global mean, of any scale.

    Returns
    -------
    dict
        `row_norm_error` (largest |‖w‖ − 1|); unless W is zero `etf_error` (NC2), the figures of
        `reference.FrameGeometry`, and, where an ETF of that size exists, `etf_distance` (‖W/‖W‖ − E*‖², E* the nearest
        ETF to W); with class means `class_means_distance` (the same with E* the nearest ETF to H, for K > d+1 the
        nearest tight frame) and, of a tight W, `certificate_gap` (relative).

    Examples
    --------
    >>> from nearest_etf.reference import canonical_etf
    >>> W = canonical_etf(8, 4).T
    >>> certificate = etf_certificate(W, class_means=3 * W.T)
    >>> max(certificate[name] for name in ("etf_error", "tightness_error", "etf_distance", "certificate_gap")) < 1e-7
    True
    >>> round(certificate["largest_cosine"], 6), round(certificate["cosine_bound"], 6)
    (-0.333333, -0.333333)
    """
    W = np.asarray(weight, np.float64)
    K, d = W.shape
    r = min(d, K - 1)
    certificate = {"row_norm_error": float(np.abs(np.linalg.norm(W, axis=1) - 1).max())}
    if not W.any():
        return certificate
    unit = W / np.linalg.norm(W)
    geometry = asdict(frame_geometry(W))
    certificate |= {"etf_error": etf_error(W) if d >= K - 1 else _etf_error_of_many(unit), **geometry}
    if d >= K - 1:
        certificate["etf_distance"] = _distance(unit, nearest_tight_frame(unit.T, method="svd").frame)
    if class_means is not None and np.any(class_means):
        H = np.asarray(class_means, np.float64)
        H = (H - H.mean(axis=1, keepdims=True)) / np.linalg.norm(H)
        certificate["class_means_distance"] = _distance(unit, nearest_tight_frame(H, method="svd").frame)
        if geometry["tightness_error"] <= TIGHT:
            nuclear = float(np.linalg.svd(H, compute_uv=False).sum())
            certificate["certificate_gap"] = 1 - float(np.sqrt(r / K) * np.vdot(W.T, H)) / nuclear
    return certificate


def etf_bound(eps: float) -> float:
    """The largest etf_error of a classifier that was solved for in float32 and stored with machine epsilon `eps`.

    Rounding every entry by at most eps/2 of itself changes `WWᵀ` by at most `2 ‖W‖₂ ‖ΔW‖_F ≤ eps ‖W‖₂ ‖W‖_F`, which of
    a tight frame is `eps ‖WWᵀ‖_F`: so much is added for half precision.

    >>> [f"{etf_bound(eps):.1e}" for eps in (2**-23, 2**-10, 2**-7)]  # float32, float16, bfloat16
    ['2.0e-04', '1.2e-03', '8.0e-03']
    """
    return SOLVED_TO + eps


def require_kind(weight: ArrayLike, kind: str, norms: str | None, eps: float) -> None:
    """Refuse W (K, d) of a head that is not what this kind of head solves for; other kinds are as they are on purpose.

    A fixed or implicit head is a simplex ETF, and so is a tight-frame head for K ≤ d+1. For K > d+1 a tight-frame head
    with norms="tight" is a tight frame, and else has rows of length one, as a class-mean head has, but for rows of
    zeros.

    Raises
    ------
    ExportError
        If the etf_error or the tightness_error is beyond `etf_bound(eps)`, or the length of the rows is as far from one
        (of a frame, in the root mean square: of two classes any opposite rows have an etf_error of zero).
    """
    if kind not in REMEDIES:
        return
    W, bound = np.asarray(weight, np.float64), etf_bound(eps)
    K, d = W.shape
    unit_rows = kind == "class-mean" or (kind == "tight-frame" and d < K - 1 and norms != "tight")
    fault = _fault_of_rows(W, bound) if unit_rows else _fault_of_frame(W, bound)
    if fault:
        raise ExportError(
            f"the {kind} head's classifier {fault}. An average over models (EMA, SWA, FedAvg) does that, and half "
            f"precision on the way: {REMEDIES[kind]}"
        )


def _fault_of_rows(W: np.ndarray, bound: float) -> str:
    """What is wrong with rows of length one, or zero."""
    lengths = np.linalg.norm(W, axis=1)
    worst = max(lengths[lengths > 0], key=lambda length: abs(length - 1), default=1.0)
    return "" if abs(worst - 1) <= bound else f"has rows of length {worst:.4f}; expected 1 to within {bound:.1e}"


def _fault_of_frame(W: np.ndarray, bound: float) -> str:
    """What is wrong with a simplex ETF or, for K > d+1, a tight frame."""
    K, d = W.shape
    name, figure, error = "simplex ETF", "etf_error", etf_error(W) if W.any() else np.inf
    if d < K - 1:
        name, figure, error = "tight frame", "tightness_error", _tightness_error(W)
    length = float(np.linalg.norm(W) / np.sqrt(K))
    if error <= bound and abs(length - 1) <= bound:
        return ""
    found = f"is no {name}: {figure} {error:.1e} and rows of length {length:.4f}"
    return f"{found}; expected at most {bound:.1e}, and as near to 1"


def _tightness_error(W: np.ndarray) -> float:
    """That of `FrameGeometry` for K > d+1, without its cosines."""
    values = np.square(np.linalg.svd(W, compute_uv=False))
    return float(np.linalg.norm(values - values.mean()) / np.linalg.norm(values)) if W.any() else np.inf


def _etf_error_of_many(unit: np.ndarray) -> float:
    """`etf_error` of W (K, d), K > d+1, at unit Frobenius norm: of its parts alone, since K×K would not fit.

    `‖G/‖G‖ − M/√(K−1)‖² = 2 − 2 ⟨G, M⟩/(‖G‖ √(K−1))` with G = WWᵀ loses digits near zero only, which rank d excludes.
    """
    gram = float(np.linalg.norm(unit.T @ unit))
    along = float(np.square(unit - unit.mean(axis=0)).sum())  # ⟨G, M⟩ = ‖M W‖²
    return float(np.sqrt(2 - 2 * along / (gram * np.sqrt(len(unit) - 1))))


def _distance(unit: np.ndarray, frame: np.ndarray) -> float:
    return float(np.linalg.norm(unit.T - frame / np.linalg.norm(frame)) ** 2)
