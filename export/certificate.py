"""A certificate of the classifier W: its distance from a simplex ETF or a tight frame, and from the class means.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 3. With r = min(d, K−1), a simplex ETF for K ≤ d+1 and
a tight frame for K > d+1 are `Wᵀ = √(K/r) F` with a partial isometry F of rank r. Without the proximal term, the one
nearest to H maximises `⟨F, H M⟩`, and the maximum is `‖H M‖_*`. So `1 − √(r/K) ⟨Wᵀ, H M⟩/‖H M‖_*` is never negative for
such a W, and zero exactly at an optimum.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from numpy.typing import ArrayLike

from ..reference import etf_error, frame_geometry, nearest_tight_frame
from .errors import ExportError

# The largest etf_error that the heads' methods accept. The loosest method, products in float32, accepts a frame with
# ‖UᵀU − I‖_F ≤ 1e3 eps √K, so that etf_error ≤ 1e3 eps √(K/(K−1)) ≤ 1.7e-4; as a rule it is 1e-7. An EMA with decay
# 0.9999 stays below it, too: its rounding alone takes an ETF that never changes to 5e-5.
SOLVED_TO = 2e-4

TIGHT = 1e-2  # the largest tightness_error for which certificate_gap is defined; above the error of half precision

# How to restore the classifier, by the kind of the head.
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
        - `row_norm_error`: largest |‖w‖ − 1|. If W is zero, this is the only entry.
        - `etf_error`: NC2.
        - the fields of `reference.FrameGeometry`.
        - `etf_distance`, for K ≤ d+1: ‖W/‖W‖ − E*‖² with E* the nearest ETF to W.
        - `class_means_distance`, with class means: the same with E* the nearest ETF to H, for K > d+1 the nearest
          tight frame.
        - `certificate_gap`, with class means and a tight W: the relative gap of the module's docstring.

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

    Rounding every entry by a relative error of at most eps/2 changes `WWᵀ` by at most
    `2 ‖W‖₂ ‖ΔW‖_F ≤ eps ‖W‖₂ ‖W‖_F`, which is `eps ‖WWᵀ‖_F` for a tight frame. The bound is the sum of both errors.

    >>> [f"{etf_bound(eps):.1e}" for eps in (2**-23, 2**-10, 2**-7)]  # float32, float16, bfloat16
    ['2.0e-04', '1.2e-03', '8.0e-03']
    """
    return SOLVED_TO + eps


def require_kind(weight: ArrayLike, kind: str, norms: str | None, eps: float) -> None:
    """Refuse a W (K, d) without the structure that this kind of head solves for; other kinds of heads may have any W.

    - fixed, implicit, and tight-frame for K ≤ d+1: a simplex ETF;
    - tight-frame for K > d+1 with norms="tight": a tight frame;
    - tight-frame for K > d+1 with other norms, and class-mean: rows of length one, or zero.

    Raises
    ------
    ExportError
        If the etf_error or the tightness_error exceeds `etf_bound(eps)`, or the length of the rows differs from one by
        more than that. The length of a frame's rows is their root mean square; it is checked, too, because any two
        opposite rows have an etf_error of zero.
    """
    if kind not in REMEDIES:
        return
    W, bound = np.asarray(weight, np.float64), etf_bound(eps)
    K, d = W.shape
    unit_rows = kind == "class-mean" or (kind == "tight-frame" and d < K - 1 and norms != "tight")
    fault = _fault_of_rows(W, bound) if unit_rows else _fault_of_frame(W, bound)
    if fault:
        raise ExportError(
            f"the {kind} head's classifier {fault}. Averaging over models (EMA, SWA, FedAvg) and conversion to half "
            f"precision have this effect: {REMEDIES[kind]}"
        )


def _fault_of_rows(W: np.ndarray, bound: float) -> str:
    """The deviation of W from rows of length one or zero; empty if within the bound."""
    lengths = np.linalg.norm(W, axis=1)
    worst = max(lengths[lengths > 0], key=lambda length: abs(length - 1), default=1.0)
    return "" if abs(worst - 1) <= bound else f"has rows of length {worst:.4f}; expected 1 to within {bound:.1e}"


def _fault_of_frame(W: np.ndarray, bound: float) -> str:
    """The deviation of W from a simplex ETF or, for K > d+1, from a tight frame; empty if within the bound."""
    K, d = W.shape
    name, figure, error = "simplex ETF", "etf_error", etf_error(W) if W.any() else np.inf
    if d < K - 1:
        name, figure, error = "tight frame", "tightness_error", _tightness_error(W)
    length = float(np.linalg.norm(W) / np.sqrt(K))
    if error <= bound and abs(length - 1) <= bound:
        return ""
    found = f"is not a {name}: {figure} {error:.1e} and rows of length {length:.4f}"
    return f"{found}; expected at most {bound:.1e}, and 1 to within {bound:.1e}"


def _tightness_error(W: np.ndarray) -> float:
    """`FrameGeometry.tightness_error` for K > d+1, without the K×K cosines of `frame_geometry`."""
    values = np.square(np.linalg.svd(W, compute_uv=False))
    return float(np.linalg.norm(values - values.mean()) / np.linalg.norm(values)) if W.any() else np.inf


def _etf_error_of_many(unit: np.ndarray) -> float:
    """`etf_error` of W (K, d), K > d+1, with unit Frobenius norm, without a K×K matrix.

    `‖G/‖G‖ − M/√(K−1)‖² = 2 − 2 ⟨G, M⟩/(‖G‖ √(K−1))` with G = WWᵀ cancels only near zero, which rank d < K−1 excludes.
    """
    gram = float(np.linalg.norm(unit.T @ unit))
    along = float(np.square(unit - unit.mean(axis=0)).sum())  # ⟨G, M⟩ = ‖M W‖²
    return float(np.sqrt(2 - 2 * along / (gram * np.sqrt(len(unit) - 1))))


def _distance(unit: np.ndarray, frame: np.ndarray) -> float:
    return float(np.linalg.norm(unit.T - frame / np.linalg.norm(frame)) ** 2)
