"""The geometry of a frame: its tightness, the spread of its norms, its angles, and bounds on them.

Source: Welch 1974 (the bound on absolute cosines); Rankin 1955 (on signed cosines: simplex and orthoplex); Conway,
Hardin & Sloane 1996 (both as packings); Strohmer & Heath 2003 (equality in Welch's bound: equiangular tight frames);
Benedetto & Fickus 2003 (tight frames as minimisers of the frame potential).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import svdvals

from .arrays import real_array
from .stiefel import Array

BLOCK = 1024  # rows of the Gram matrix that are in memory at a time


@dataclass(frozen=True)
class FrameGeometry:
    """The figures of `frame_geometry`.

    Attributes
    ----------
    tightness_error : float
        `min ‖WᵀW − c Π‖_F / ‖WᵀW‖_F` over c and the orthogonal projectors Π of rank r = min(d, K−1): less than 1, and
        zero exactly for tight frames of rank r, such as a simplex ETF. `WWᵀ` gives the same value, since its nonzero
        eigenvalues are the same.
    norm_spread : float
        std/mean of the norms of the rows.
    largest_cosine, largest_absolute_cosine : float
        Over pairs of different rows; the cosines of a zero row are 0.
    cosine_bound : float
        Lower bound on the largest cosine of K vectors in R^d: −1/(K−1) for K ≤ d+1, attained only by the simplex ETF,
        and 0 for K > d+1, attained if and only if K ≤ 2d (for example by the orthoplex).
    welch_bound : float
        Lower bound on the largest absolute cosine of K vectors in R^d: `√((K−d)/(d(K−1)))`, and 0 for K ≤ d. For K ≥ d
        it is attained only by equiangular tight frames.

    Examples
    --------
    >>> from nearest_etf.reference import simplex_etf
    >>> found = frame_geometry(simplex_etf(4))
    >>> round(found.largest_cosine, 6), round(found.cosine_bound, 6), found.tightness_error < 1e-12
    (-0.333333, -0.333333, True)
    """

    tightness_error: float
    norm_spread: float
    largest_cosine: float
    largest_absolute_cosine: float
    cosine_bound: float
    welch_bound: float


def frame_geometry(weight: ArrayLike) -> FrameGeometry:
    """How far the rows of W are from a tight, equal-norm and equiangular frame.

    Parameters
    ----------
    weight : (K, d)
        Rows are classes. Any number is valid, so a transposed matrix is not recognised.

    Raises
    ------
    ValueError
        If W is not a finite matrix of at least two rows, or is zero.

    Examples
    --------
    >>> from nearest_etf.reference import simplex_etf
    >>> simplex = frame_geometry(simplex_etf(5))
    >>> round(simplex.tightness_error, 12), round(simplex.norm_spread, 12), round(simplex.largest_cosine, 12)
    (0.0, 0.0, -0.25)
    >>> orthoplex = frame_geometry(np.vstack([np.eye(3), -np.eye(3)]))
    >>> orthoplex.largest_cosine, orthoplex.cosine_bound, round(orthoplex.tightness_error, 12)
    (0.0, 0.0, 0.0)
    """
    W = real_array("weight", weight)
    if W.ndim != 2 or W.shape[0] < 2 or W.shape[1] < 1:
        raise ValueError(
            f"weight has shape {W.shape}; expected a matrix (K, d) whose rows are classes, at least two of them."
        )
    scale = float(np.abs(W).max())
    if not np.isfinite(scale) or scale == 0.0:
        raise ValueError(f"weight has largest entry {scale}; expected finite entries that are not all zero.")
    W = W / scale
    K, d = W.shape
    values = np.square(svdvals(W, check_finite=False))  # the eigenvalues of WᵀW and WWᵀ, descending
    rank = min(d, K - 1)
    ideal = np.where(np.arange(len(values)) < rank, values[:rank].mean(), 0.0)
    norms = np.linalg.norm(W, axis=1)
    largest, absolute = _largest_cosines(W / np.where(norms > 0, norms, 1.0)[:, None])
    return FrameGeometry(
        tightness_error=float(np.linalg.norm(values - ideal) / np.linalg.norm(values)),
        norm_spread=float(norms.std() / norms.mean()),
        largest_cosine=largest,
        largest_absolute_cosine=absolute,
        cosine_bound=-1.0 / (K - 1) if d >= K - 1 else 0.0,
        welch_bound=float(np.sqrt((K - d) / (d * (K - 1)))) if d < K else 0.0,
    )


def _largest_cosines(unit_rows: Array) -> tuple[float, float]:
    """The largest signed and the largest absolute inner product of different rows, a block of rows at a time."""
    largest, absolute = -1.0, 0.0
    for start in range(0, len(unit_rows), BLOCK):
        cosines = unit_rows[start : start + BLOCK] @ unit_rows.T  # (block, K)
        absolute_cosines = np.abs(cosines)
        own = np.arange(len(cosines))
        cosines[own, start + own] = -1.0
        absolute_cosines[own, start + own] = 0.0
        largest = max(largest, float(cosines.max()))
        absolute = max(absolute, float(absolute_cosines.max()))
    return min(largest, 1.0), min(absolute, 1.0)
