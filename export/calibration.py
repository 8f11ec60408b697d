"""Temperature scaling: one factor on the logits, so that the probabilities match the accuracy.

Source: Guo, Pleiss, Sun & Weinberger 2017, arXiv 1706.04599, section 4.2. The factor s = 1/T > 0
minimises the negative log-likelihood of held-out labels y under softmax(s z),

    NLL(s) = mean of  log Σ_k exp(s z_k) − s z_y,     NLL′(s) = mean of  Σ_k p_k z_k − z_y,
    NLL″(s) = mean of  Σ_k p_k z_k² − (Σ_k p_k z_k)²  ≥ 0,

which is convex in s. Labels and cosines do not change. Heads with ‖h‖ = τ and unit rows need it most: τ bounds their
largest probability, so that they are underconfident for a small τ.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp, softmax

from .errors import ExportError, InputError

BINS = 15  # of the calibration error, as in the paper
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """A factor on the logits, and its effect on the images that it was fitted on.

    Attributes
    ----------
    factor : float
        Multiplies the logits: 1/T of the paper.
    images : int
    bounded : bool
        Whether every image was classified correctly. Then no finite factor minimises the loss, and the factor is the
        one with the mean loss of N correct predictions and one guess, log(K)/(N+1).
    nll_before, nll_after : float
        Mean negative log-likelihood, in nats.
    ece_before, ece_after : float
        Expected calibration error, 0…1.
    split : str
        The split that the images come from; empty if unknown.

    Examples
    --------
    >>> found = fit_calibration([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]], [0, 0, 0, 1])  # overconfident
    >>> found.factor < 1, found.images, found.nll_after < found.nll_before
    (True, 4, True)
    """

    factor: float
    images: int
    bounded: bool
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float
    split: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, rounded except for the factor."""
        return {name: round(x, 6) if name[:3] in ("nll", "ece") else x for name, x in asdict(self).items()}

    def __str__(self) -> str:
        images = " ".join(f"{self.images} {self.split} images".split())
        if self.bounded:
            images += ", all of them classified correctly: the factor is bounded, as if one more image were a guess"
        return (
            f"calibration   logits × {self.factor:.4g}, fitted on {images}\n"
            f"                error {100 * self.ece_before:.2f} % before, {100 * self.ece_after:.2f} % after; "
            f"NLL {self.nll_before:.4f}, {self.nll_after:.4f}"
        )


def fit_calibration(logits: ArrayLike, labels: ArrayLike) -> Calibration:
    """Fit the factor on held-out images: Newton's method, kept inside a bracket by bisection, in float64.

    Parameters
    ----------
    logits : (N, K)
    labels : (N,) integers in 0…K−1

    Raises
    ------
    InputError
        If shapes disagree, or values are out of range.
    ExportError
        If no positive factor has a smaller loss than equal probabilities.

    Examples
    --------
    >>> logits = [[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]
    >>> found = fit_calibration(logits, [0, 0, 0, 1])  # accuracy 0.75, so p should be 0.75
    >>> round(float(1 / (1 + np.exp(-2 * found.factor))), 6)
    0.75
    """
    z, y = _valid(logits, labels)
    N, K = z.shape
    z = z - z[np.arange(N), y][:, None]  # relative to the logit of the true class
    if z.mean() >= 0:  # NLL′(0)
        raise ExportError(
            f"a factor on the logits cannot calibrate this classifier: on {N} images it is no better than guessing"
        )
    ties = np.log((z == 0).sum(axis=1)).mean()  # the infimum of the NLL if no logit exceeds that of the true class
    bounded = bool(z.max() <= 0)
    if bounded:
        target = ties + (np.log(K) - ties) / (N + 1)
        factor = _root(z, lambda nll, slope, _: (nll - target, slope), sign=-1)
    else:
        factor = _root(z, lambda _, slope, curvature: (slope, curvature), sign=1)
    predicted = np.argmax(z, axis=1)
    before, after = softmax(z, axis=1), softmax(factor * z, axis=1)
    return Calibration(
        factor=factor,
        images=N,
        bounded=bounded,
        nll_before=_derivatives(z, 1.0)[0],
        nll_after=_derivatives(z, factor)[0],
        ece_before=calibration_error(before.max(axis=1), predicted == y),
        ece_after=calibration_error(after.max(axis=1), predicted == y),
    )


def calibration_error(confidences: ArrayLike, right: ArrayLike) -> float:
    """The expected calibration error (ECE), from the largest probabilities (N,) and the correctness of the labels (N,).

    `ECE = Σ_m |B_m|/N · |acc(B_m) − conf(B_m)|` over 15 bins `B_m` of equal width, ((m−1)/15, m/15] (Guo et al. 2017,
    eq. 3): the mean distance between confidence and accuracy.

    >>> round(calibration_error([0.9, 0.9, 0.9, 0.9], [True, True, True, False]), 6)
    0.15
    """
    p, correct = np.asarray(confidences, np.float64), np.asarray(right, np.float64)
    of_bin = np.clip(np.ceil(p * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = np.bincount(of_bin, weights=correct - p, minlength=BINS)
    return float(np.abs(gaps).sum() / len(p))


def checked_factor(calibration: Calibration | float | None) -> float | None:
    """The factor of a calibration; a number is the factor itself.

    Raises
    ------
    ExportError
        If the factor is not positive and finite.
    """
    factor = calibration.factor if isinstance(calibration, Calibration) else calibration
    if factor is None:
        return None
    if isinstance(factor, bool) or not isinstance(factor, Real) or not 0 < factor < np.inf:
        raise ExportError(f"calibration is {factor!r}: expected a positive number, or what fit_calibration returns")
    return float(factor)


def _derivatives(z: Array, s: float) -> tuple[float, float, float]:
    """NLL, NLL′ and NLL″ at s, for logits z relative to that of the true class."""
    p = softmax(s * z, axis=1)
    mean = (p * z).sum(axis=1)
    variance = (p * np.square(z - mean[:, None])).sum(axis=1)
    return float(logsumexp(s * z, axis=1).mean()), float(mean.mean()), float(variance.mean())


def _root(z: Array, function: Any, sign: int) -> float:
    """The positive root of a monotone function of (NLL, NLL′, NLL″), which returns its value and slope.

    `sign` is 1 for an increasing function, and −1 for a decreasing one. The bracket grows from 1/max|z| by doubling.
    """

    def at(s: float) -> tuple[float, float]:
        value, slope = function(*_derivatives(z, s))
        return sign * value, sign * slope

    low, high = 0.0, 1 / float(np.abs(z).max())
    while at(high)[0] < 0:
        low, high = high, 2 * high
    s = (low + high) / 2
    for _ in range(200):
        value, slope = at(s)
        low, high = (s, high) if value < 0 else (low, s)
        step = value / slope if slope > 0 else np.inf
        following = s - step if low < s - step < high else (low + high) / 2
        if abs(following - s) <= 1e-14 * s:
            break
        s = following
    return float(s)


def _valid(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, NDArray[np.int64]]:
    z, y = np.asarray(logits, np.float64), np.asarray(labels)
    if z.ndim != 2 or not len(z) or z.shape[1] < 2 or not np.isfinite(z).all():
        raise InputError(f"logits have shape {z.shape}: expected (N, K), finite, N > 0 and K > 1")
    if y.shape != z.shape[:1] or y.dtype.kind not in "iu":
        raise InputError(f"labels have shape {y.shape} and dtype {y.dtype}: expected ({len(z)},) integers")
    if y.min() < 0 or y.max() >= z.shape[1]:
        raise InputError(f"labels go from {y.min()} to {y.max()}: expected 0…{z.shape[1] - 1}")
    return z, y.astype(np.int64)
