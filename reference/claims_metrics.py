"""Claims about the running class means and the metrics of neural collapse."""

from __future__ import annotations

import numpy as np

from .claims import Case, Claim
from .class_means import AVERAGING, ClassMeans
from .collapse import neural_collapse


def _running_means(case: Case) -> float | None:
    """Steps of both moving averages against the recurrence; the first class is absent from every second batch."""
    if case.problem.delta > 0:
        return None
    d, K = case.problem.class_means.shape
    error = 0.0
    for averaging in AVERAGING:
        running = ClassMeans(d, K, averaging=averaging)
        H, mean, batches = np.zeros((d, K)), np.zeros(d), [0] * K
        for t, first in ((1, 1), (2, 0), (3, 1), (4, 0)):
            labels = np.repeat(np.arange(first, K), 2)
            features = case.rng.standard_normal((len(labels), d))
            running.update(features, labels)
            alpha = 2 / (t + 1)
            for c in range(first, K):
                batches[c] += 1
                rate = 2 / (batches[c] + 1) if averaging == "class" else 1.0 if batches[c] == 1 else alpha
                centred = features[labels == c].mean(axis=0) - features.mean(axis=0)
                H[:, c] = rate * centred + (1 - rate) * H[:, c]
            mean = alpha * features.mean(axis=0) + (1 - alpha) * mean
        error = max(error, np.abs(running.class_means - H).max(), np.abs(running.global_mean - mean).max())
    return float(error)


def _collapsed(case: Case) -> float:
    """The metrics of exactly collapsed data and the solution's own classifier, all zero."""
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
    Claim("class means: moving averages", 1e-14, _running_means),
    Claim("metrics of collapsed data", 1e-12, _collapsed),
)
