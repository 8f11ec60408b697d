"""Running class means, the input of the nearest ETF during training.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248. At step t = 1, 2, …

    H_t = α_t · (batch class means − batch global mean) + (1 − α_t) · H_{t−1},    α_t = max(2/(t+1), 1e-4),

and the same average for the global mean. The input of (P) is `H_t/‖H_t‖_F`. A class that is absent from a batch
keeps its column. A class not seen yet has a zero column (the uncentred global mean in the authors' code). A class seen
for the first time takes the batch's column at rate 1; with rate α_t it would stay too short for thousands of steps.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ..common.arguments import whole_number
from .arrays import as_array, real_array
from .checks import check_choice
from .riemannian import EPS
from .stiefel import Array, safe_frobenius

Averaging = Literal["step", "class"]
AVERAGING: tuple[Averaging, ...] = ("step", "class")
SMALLEST_RATE = 1e-4
MEANS_AS_OLD_AS = 10  # batches: the age of given means in the average (results/kept-means.json)


class ClassMeans:
    """Moving averages of the centred class means and of the global mean.

    Parameters
    ----------
    num_features, num_classes : int
        d and K.
    averaging : {"step", "class"}
        The rate of a class that the batch holds:

        - "step": the paper's `α_t` for every class, and 1 for a class seen for the first time;
        - "class": `α_c = max(2/(n_c+1), 1e-4)`, with n_c the number of batches that held class c, this one included.
          The means have less bias, but more noise, where most batches lack most classes.

        Both are equal if every batch holds every class.

    Attributes
    ----------
    class_means : (d, K)
        `H_t`, not normalised; columns are classes.
    global_mean : (d,)
        `μ_G`, the running mean of all samples, at the rate α_t.
    batches : (K,) int64
        n_c, the number of batches that held the class.
    steps : int
        t, the number of batches.

    Raises
    ------
    ValueError
        If `averaging` is unknown.

    Examples
    --------
    >>> running = ClassMeans(2, 2)
    >>> running.update([[0.0, 1.0], [2.0, 3.0]], [0, 1])
    >>> running.class_means
    array([[-1.,  1.],
           [-1.,  1.]])
    """

    def __init__(self, num_features: int, num_classes: int, *, averaging: Averaging = "step") -> None:
        check_choice("averaging", averaging, AVERAGING)
        num_features, num_classes = whole_number("num_features", num_features), whole_number("num_classes", num_classes)
        self.averaging = averaging
        self.class_means: Array = np.zeros((num_features, num_classes))
        self.global_mean: Array = np.zeros(num_features)
        self.batches = np.zeros(num_classes, dtype=np.int64)
        self.steps = 0

    @property
    def seen(self) -> np.ndarray:
        """Classes with a sample in any batch so far, (K,) bool."""
        return self.batches > 0

    def update(self, features: ArrayLike, labels: ArrayLike) -> None:
        """Add one batch to the averages.

        Parameters
        ----------
        features : (N, d)
            Rows are samples.
        labels : (N,) integers in 0…K−1

        Raises
        ------
        ValueError
            If a shape is wrong, the batch is empty, a label is out of range or a feature is not finite. The
            averages do not change.
        """
        h, y = self._checked(features, labels)
        K = self.class_means.shape[1]
        counts = np.bincount(y, minlength=K)  # (K,)
        sums = np.zeros_like(self.class_means)
        np.add.at(sums.T, y, h)
        present = counts > 0
        batch_mean = h.mean(axis=0)  # (d,)
        if not np.isfinite(sums).all():
            raise ValueError("features are too large: their sum over a class overflows float64. Scale them down.")
        centred = sums[:, present] / counts[present] - batch_mean[:, None]

        self.steps += 1
        self.batches += present
        step_rate = max(2.0 / (self.steps + 1), SMALLEST_RATE)  # α_t
        if self.averaging == "step":
            rates = np.where(self.batches == 1, 1.0, step_rate)
        else:
            rates = np.maximum(2.0 / (self.batches + 1), SMALLEST_RATE)
        self.class_means[:, present] += rates[present] * (centred - self.class_means[:, present])
        self.global_mean += step_rate * (batch_mean - self.global_mean)

    def set_means(
        self, class_mean_rows: ArrayLike, counts: ArrayLike | None = None, global_mean: ArrayLike | None = None
    ) -> None:
        """Replace the running means by exact ones; averaging continues from there, as if after ten batches.

        Parameters
        ----------
        class_mean_rows : (K, d)
            Means per class, not centred; rows are classes.
        counts : (K,), optional
            Number of samples of each class, the weights of the global mean. A class without samples counts as not
            seen. Default: equal numbers.
        global_mean : (d,), optional
            Default: the weighted mean of the class means.

        Raises
        ------
        ValueError
            If a shape is wrong, an entry is not finite, or no class has samples.

        Examples
        --------
        >>> running = ClassMeans(num_features=3, num_classes=2)
        >>> running.set_means([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> running.global_mean, running.steps
        (array([0.5, 0.5, 0. ]), 10)
        """
        rows = real_array("class_mean_rows", class_mean_rows)
        d, K = self.class_means.shape
        if rows.shape != (K, d):
            remedy = " Pass class_mean_rows.T: its rows must be the classes." if rows.shape == (d, K) else ""
            raise ValueError(
                f"class_mean_rows has shape {rows.shape}; expected ({K}, {d}), a row for each class.{remedy}"
            )
        n = np.ones(K) if counts is None else real_array("counts", counts)
        if n.shape != (K,) or not np.isfinite(n).all() or (n < 0).any() or not n.sum() > 0:
            raise ValueError(
                f"counts has shape {n.shape} and sum {n.sum():g}; expected ({K},) numbers of samples, not negative "
                "and not all zero."
            )
        seen = n > 0
        rows = np.where(seen[:, None], rows, 0.0)
        mean = n / n.sum() @ rows if global_mean is None else real_array("global_mean", global_mean)
        if mean.shape != (d,):
            raise ValueError(f"global_mean has shape {mean.shape}; expected ({d},).")
        if not (np.isfinite(rows).all() and np.isfinite(mean).all()):
            raise ValueError("class_mean_rows or global_mean contain NaN or infinite entries of classes with samples.")
        self.class_means = np.where(seen, rows.T - mean[:, None], 0.0)
        self.global_mean = mean.copy()
        self.batches = np.where(seen, np.maximum(self.batches, MEANS_AS_OLD_AS), 0)
        self.steps = max(self.steps, MEANS_AS_OLD_AS)

    def normalised(self) -> Array:
        """`H/‖H‖_F` (d, K), the input of (P); zero if all means are equal up to the rounding of `μ_G`."""
        norm, K = safe_frobenius(self.class_means), len(self.batches)
        rounding = 16 * EPS * safe_frobenius(self.global_mean) * np.sqrt(K)
        return self.class_means / norm if norm > rounding else np.zeros_like(self.class_means)

    def _checked(self, features: ArrayLike, labels: ArrayLike) -> tuple[Array, np.ndarray]:
        h, y = real_array("features", features), as_array("labels", labels)
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
                f"features contains NaN or infinite entries in {int((~np.isfinite(h)).any(axis=1).sum())} rows."
            )
        return h, y
