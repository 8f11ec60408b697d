"""Classifiers from a tight frame, and tight frames whose vectors have equal norms.

The method projects alternately onto the matrices with columns of equal norm and onto the tight frames. Source: Tropp,
Dhillon, Heath & Strohmer 2005, *Designing structured tight frames via an alternating projection method*; Mimura 1990,
*A construction of spherical 2-design* (existence).
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import svd

from ..common.arguments import real_number, whole_number
from .checks import check_choice, finite_matrix
from .polar import rank_tolerance
from .simplex import centred
from .stiefel import Array

Norms = Literal["unit", "tight", "equal"]
NORMS = ("unit", "tight", "equal")


class EqualNormWarning(RuntimeWarning):
    """The alternating projections ended before the norms were equal."""


def classifier_from_tight_frame(frame: ArrayLike, norms: Norms = "unit") -> Array:
    """The classifier (K, d) of a tight frame (d, K): its columns as rows, scaled.

    For K ≤ d+1 the three choices of `norms` agree: they give the simplex ETF with unit rows.

    Parameters
    ----------
    frame : (d, K)
        A tight frame `F`: `F 1 = 0`, rank r = min(d, K−1).
    norms : {"unit", "tight", "equal"}
        "unit": every row divided by its norm; a row of zeros (a class mean at the global mean) stays zero.
        "tight": `W = √(K/r) Fᵀ`, whose rows have unit norm in the mean square.
        "equal": the rows of `equal_norm_tight_frame(frame)`, of unit norm: both tight and of unit norm.

    Raises
    ------
    ValueError
        If the frame is not a finite matrix, or `norms` is unknown; for "equal", as `equal_norm_tight_frame`.

    Examples
    --------
    >>> from nearest_etf.reference import canonical_tight_frame
    >>> F = canonical_tight_frame(2, 6)
    >>> W = classifier_from_tight_frame(F, "tight")
    >>> np.allclose(W.T @ W, 3 * np.eye(2)), np.allclose((W**2).sum(axis=1).mean(), 1)
    (True, True)
    >>> np.allclose(np.linalg.norm(classifier_from_tight_frame(F), axis=1), 1)
    True
    """
    check_choice("norms", norms, NORMS)
    F = _frame_matrix(frame)
    d, K = F.shape
    if norms == "tight":
        return np.sqrt(K / min(d, K - 1)) * F.T
    if norms == "equal":
        F = equal_norm_tight_frame(F)
    lengths = np.linalg.norm(F, axis=0)
    if not (np.isfinite(lengths) & (lengths > rank_tolerance(F.shape))).any():
        raise ValueError("frame has no column of a tight frame's length; expected a result of nearest_tight_frame.")
    return (F / np.where(lengths > rank_tolerance(F.shape), lengths, np.inf)).T


def equal_norm_tight_frame(
    frame: ArrayLike, *, rounds: int = 1000, tolerance: float = 1e-6, zero_sum: bool = True
) -> Array:
    """A tight frame near the given one whose columns have equal norms √(r/K), by alternating projections.

    Each round scales the columns to equal norms, centres them, and takes the nearest tight frame. The paper does not
    centre. Here the columns must sum to zero, since a common part of a classifier's rows shifts all logits equally. The
    result, scaled to unit norm, is a spherical 2-design. It exists for every K ≥ d+1, except for K = d+2 with odd d and
    for odd K with d = 1 (Mimura 1990).

    Parameters
    ----------
    frame : (d, K)
        A tight frame, or any matrix of rank r = min(d, K−1) after centring. A zero column, whose direction is free,
        starts along an axis.
    rounds : int
        Largest number of rounds.
    tolerance : float
        Bound on the spread of the norms, std/mean.
    zero_sum : bool
        False omits the centring, as in the paper: `FFᵀ = I` with equal norms for K > d+1, but `F 1 ≠ 0`.

    Returns
    -------
    (d, K)
        A tight frame up to rounding, with columns of equal norm up to the tolerance.

    Raises
    ------
    ValueError
        If the frame is not a finite matrix of rank r after centring, or if no equal-norm tight frame of this size
        sums to zero.

    Warns
    -----
    EqualNormWarning
        If the norms are not equal after `rounds` rounds. The method converges linearly, and slowly for K just above
        d+1. From random class means it reaches 1e-6 in 7 rounds at (d, K) = (32, 500), in 28 to 39 at (8, 20), and in
        174 to 247 at (16, 18); at (64, 66) one of five reaches it in 1000 rounds.

    Examples
    --------
    >>> from nearest_etf.reference import canonical_tight_frame
    >>> F = equal_norm_tight_frame(canonical_tight_frame(3, 8))
    >>> np.allclose(F @ F.T, np.eye(3)), np.allclose(np.linalg.norm(F, axis=0), (3 / 8) ** 0.5, atol=1e-5)
    (True, True)
    """
    rounds, tolerance = whole_number("rounds", rounds), real_number("tolerance", tolerance)
    F = _frame_matrix(frame)
    d, K = F.shape
    if zero_sum and K % 2 == 1 and (K - d == 2 or d == 1 < K - 1):
        # A unit vector orthogonal to 1 and to F would have K entries ±1/√K that sum to zero; for d = 1, F's would.
        raise ValueError(
            f"frame has shape ({d}, {K}); no tight frame of {K} vectors of equal norm in {d} dimension"
            f'{"s" if d > 1 else ""} sums to zero. Use norms="unit", zero_sum=False, or one feature more.'
        )
    F, used, spread = alternate(F, rounds, tolerance, zero_sum)
    if spread > tolerance:
        warnings.warn(
            f"the norms of the tight frame still differ by {spread:.1e} (std/mean) after {used} rounds of alternating "
            'projections. Raise `rounds`, loosen `tolerance`, or use norms="unit".',
            EqualNormWarning,
            stacklevel=2,
        )
    return F


def alternate(frame: Array, rounds: int, tolerance: float, zero_sum: bool = True) -> tuple[Array, int, float]:
    """The alternating projections: the tight frame (d, K), the rounds used, and the spread of its norms."""
    F = _nearest_tight(frame, zero_sum)
    axes = np.eye(len(F))[:, np.arange(F.shape[1]) % len(F)]  # (d, K)
    for used in range(rounds + 1):
        lengths = np.linalg.norm(F, axis=0)
        spread = float(lengths.std() / lengths.mean())
        if spread <= tolerance or used == rounds:
            break
        zero = lengths <= rank_tolerance(F.shape)
        F = _nearest_tight(np.where(zero, axes, F / np.where(zero, 1.0, lengths)), zero_sum)
    return F, used, spread


def _frame_matrix(frame: ArrayLike) -> Array:
    """A finite matrix (d, K) of at least two columns."""
    F = finite_matrix("frame", frame)
    if F.shape[0] < 1 or F.shape[1] < 2:
        raise ValueError(f"frame has shape {F.shape}; expected (d, K) with at least 1 feature and 2 classes.")
    return F


def _nearest_tight(F: Array, zero_sum: bool) -> Array:
    """The tight frame nearest to a matrix (d, K) up to scale: the polar factor of `F M`, or of F, at rank r."""
    rank = min(F.shape[0], F.shape[1] - 1)
    left, sigma, right_t = svd(centred(F) if zero_sum else F, full_matrices=False, check_finite=False)
    if rank < 1 or not sigma[rank - 1] > rank_tolerance(F.shape) * sigma[0]:
        found = int(np.sum(sigma > rank_tolerance(F.shape) * sigma[:1]))
        raise ValueError(
            f"frame has shape {F.shape} and rank {found}{' after centring' if zero_sum else ''}; expected rank "
            f"min(d, K−1) = {rank}. Pass the `frame` of a solution of nearest_tight_frame."
        )
    return left[:, :rank] @ right_t[:rank]
