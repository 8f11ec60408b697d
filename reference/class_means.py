"""Running class means: what the nearest ETF is taken of during training.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 3; design, section 1. At step t = 1, 2, …

    H_t = α_t · (batch class means − batch global mean) + (1 − α_t) · H_{t−1},    α_t = max(2/(t+1), 1e-4),

and the same average for the global mean. Problem (P) is given `H_t/‖H_t‖_F`. A class that is absent from a batch
keeps its column; one never seen has a zero column (the authors' code has the uncentred global mean there).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .stiefel import Array

SMALLEST_RATE = 1e-4


class ClassMeans:
    """Moving averages of the centred class means and of the global mean.

    Parameters
    ----------
    num_features, num_classes : int
        d and K.

    Attributes
    ----------
    means : (d, K)
        `H_t`, not normalised.
    global_mean : (d,)
        `μ_G`, the running mean of all samples.
    seen : (K,) bool
        Which classes have been met.
    steps : int
        t.

    Examples
    --------
    >>> running = ClassMeans(2, 2)
    >>> running.update([[0.0, 1.0], [2.0, 3.0]], [0, 1])
    >>> running.means
    array([[-1.,  1.],
           [-1.,  1.]])
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        self.means: Array = np.zeros((num_features, num_classes))
        self.global_mean: Array = np.zeros(num_features)
        self.seen = np.zeros(num_classes, dtype=bool)
        self.steps = 0

    def update(self, features: ArrayLike, labels: ArrayLike) -> None:
        """Take in one batch.

        Parameters
        ----------
        features : (N, d)
        labels : (N,) integers in 0…K−1

        Raises
        ------
        ValueError
            If a shape is wrong, the batch is empty, a label is out of range or a feature is not finite. Nothing
            is changed then.
        """
        h, y = self._checked(features, labels)
        K = self.means.shape[1]
        counts = np.bincount(y, minlength=K)  # (K,)
        sums = np.zeros_like(self.means)
        np.add.at(sums.T, y, h)
        present = counts > 0
        batch_mean = h.mean(axis=0)  # (d,)
        centred = sums[:, present] / counts[present] - batch_mean[:, None]

        self.steps += 1
        rate = max(2.0 / (self.steps + 1), SMALLEST_RATE)
        self.means[:, present] += rate * (centred - self.means[:, present])
        self.global_mean += rate * (batch_mean - self.global_mean)
        self.seen |= present

    def normalised(self) -> Array:
        """`H/‖H‖_F` (d, K), what (P) is given; zero as long as all means are."""
        norm = float(np.linalg.norm(self.means))
        return self.means / norm if norm > 0 else self.means.copy()

    def _checked(self, features: ArrayLike, labels: ArrayLike) -> tuple[Array, np.ndarray]:
        h, y = np.asarray(features, dtype=np.float64), np.asarray(labels)
        d, K = self.means.shape
        if h.ndim != 2 or h.shape[1] != d or len(h) == 0:
            raise ValueError(f"features has shape {h.shape}; expected (N, {d}) with N ≥ 1.")
        if y.shape != (len(h),) or not np.issubdtype(y.dtype, np.integer):
            raise ValueError(f"labels has shape {y.shape} and dtype {y.dtype}; expected ({len(h)},) integers.")
        if y.min() < 0 or y.max() >= K:
            raise ValueError(f"labels lie in {y.min()}…{y.max()}; expected 0…{K - 1} for {K} classes.")
        if not np.isfinite(h).all():
            raise ValueError(
                f"features holds NaN or infinite entries in {int((~np.isfinite(h)).any(axis=1).sum())} rows."
            )
        return h, y
