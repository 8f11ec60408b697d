"""Running class means, the input of the nearest ETF during training.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 3; design, section 1. At step t = 1, 2, …

    H_t = α_t · (batch class means − batch global mean) + (1 − α_t) · H_{t−1},    α_t = max(2/(t+1), 1e-4),

and the same average for the global mean. The input of (P) is `H_t/‖H_t‖_F`. A class that is absent from a batch
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
    class_means : (d, K)
        `H_t`, not normalised; columns are classes.
    global_mean : (d,)
        `μ_G`, the running mean of all samples.
    seen : (K,) bool
        Classes with a sample in any batch so far.
    steps : int
        t, the number of batches.

    Examples
    --------
    >>> running = ClassMeans(2, 2)
    >>> running.update([[0.0, 1.0], [2.0, 3.0]], [0, 1])
    >>> running.class_means
    array([[-1.,  1.],
           [-1.,  1.]])
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        self.class_means: Array = np.zeros((num_features, num_classes))
        self.global_mean: Array = np.zeros(num_features)
        self.seen = np.zeros(num_classes, dtype=bool)
        self.steps = 0

    def update(self, features: ArrayLike, labels: ArrayLike) -> None:
        """Average one batch in.

        Parameters
        ----------
        features : (N, d)
            Rows are samples.
        labels : (N,) integers in 0…K−1

        Raises
        ------
        ValueError
            If a shape is wrong, the batch is empty, a label is out of range or a feature is not finite. The
            averages stay as they were.
        """
        h, y = self._checked(features, labels)
        K = self.class_means.shape[1]
        counts = np.bincount(y, minlength=K)  # (K,)
        sums = np.zeros_like(self.class_means)
        np.add.at(sums.T, y, h)
        present = counts > 0
        batch_mean = h.mean(axis=0)  # (d,)
        centred = sums[:, present] / counts[present] - batch_mean[:, None]

        self.steps += 1
        rate = max(2.0 / (self.steps + 1), SMALLEST_RATE)
        self.class_means[:, present] += rate * (centred - self.class_means[:, present])
        self.global_mean += rate * (batch_mean - self.global_mean)
        self.seen |= present

    def normalised(self) -> Array:
        """`H/‖H‖_F` (d, K), the input of (P); zero as long as all means are."""
        norm = float(np.linalg.norm(self.class_means))
        return self.class_means / norm if norm > 0 else self.class_means.copy()

    def _checked(self, features: ArrayLike, labels: ArrayLike) -> tuple[Array, np.ndarray]:
        h, y = np.asarray(features, dtype=np.float64), np.asarray(labels)
        d, K = self.class_means.shape
        if h.ndim != 2 or h.shape[1] != d or len(h) == 0:
            remedy = " Rows are samples: pass features.T if your columns are." if h.shape[:1] == (d,) else ""
            raise ValueError(f"features has shape {h.shape}; expected (N, {d}) with N ≥ 1.{remedy}")
        if y.shape != (len(h),) or not np.issubdtype(y.dtype, np.integer):
            raise ValueError(f"labels has shape {y.shape} and dtype {y.dtype}; expected ({len(h)},) integers.")
        if y.min() < 0 or y.max() >= K:
            raise ValueError(f"labels lie in {y.min()}…{y.max()}; expected 0…{K - 1} for {K} classes.")
        if not np.isfinite(h).all():
            raise ValueError(
                f"features holds NaN or infinite entries in {int((~np.isfinite(h)).any(axis=1).sum())} rows."
            )
        return h, y
