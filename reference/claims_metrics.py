"""Claims about the running class means and the metrics of neural collapse."""

from __future__ import annotations

import numpy as np

from .claims import Case, Claim
from .class_means import ClassMeans
from .collapse import neural_collapse


def _running_means(case: Case) -> float | None:
    """Three steps of the moving average against the recurrence written out, one class absent from the second."""
    if case.problem.delta > 0:
        return None
    d, K = case.problem.class_means.shape
    running, H, mean = ClassMeans(d, K), np.zeros((d, K)), np.zeros(d)
    for t in (1, 2, 3):
        labels = np.repeat(np.arange(1 if t == 2 else 0, K), 2)
        features = case.rng.standard_normal((len(labels), d))
        running.update(features, labels)
        alpha = 2 / (t + 1)
        for c in range(K):
            if (labels == c).any():
                centred = features[labels == c].mean(axis=0) - features.mean(axis=0)
                H[:, c] = alpha * centred + (1 - alpha) * H[:, c]
        mean = alpha * features.mean(axis=0) + (1 - alpha) * mean
    return float(max(np.abs(running.class_means - H).max(), np.abs(running.global_mean - mean).max()))


def _collapsed(case: Case) -> float:
    """The metrics of exactly collapsed data under the solution's own classifier: all zero."""
    W = case.solution.classifier
    labels = np.repeat(np.arange(len(W)), 3)
    collapse = neural_collapse(5.0 * W[labels], labels, W)
    zeros = (
        collapse.nc1,
        collapse.nc2,
        collapse.nc2_means,
        collapse.nc3,
        collapse.nc4,
        collapse.etf_distance_means,
    )
    return float(max(zeros))


METRIC_CLAIMS = (
    Claim("class means: moving average", 1e-14, _running_means),
    Claim("metrics of collapsed data", 1e-12, _collapsed),
)
