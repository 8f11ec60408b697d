"""Fewer images, imbalanced classes and wrong labels, drawn with the seed."""

from __future__ import annotations

import numpy as np
import pytest

from nearest_etf.torchport.training.data.modify import balanced_weights, class_sizes, modified
from nearest_etf.torchport.training.data.split import DataError, Split


def test_imbalance_and_noise() -> None:
    balanced = Split(np.zeros((300, 1, 1, 1), np.uint8), np.repeat(np.arange(3), 100))
    thinned = modified(balanced, 3, seed=0, imbalance="exponential", ratio=100.0, samples_per_class=50)
    assert np.bincount(thinned.labels).tolist() == class_sizes(50, 3, "exponential", 100.0) == [50, 5, 1]
    noisy = modified(balanced, 3, seed=0, label_noise=0.2)
    assert (noisy.labels != balanced.labels).sum() == 60
    again = modified(balanced, 3, seed=0, label_noise=0.2)
    np.testing.assert_array_equal(noisy.labels, again.labels)
    with pytest.raises(DataError, match="a class has only 100 images"):
        modified(balanced, 3, seed=0, samples_per_class=101)


def test_balanced_weights_give_every_class_the_same_sum() -> None:
    labels = np.repeat([0, 1, 3], [60, 30, 10])
    weights = balanced_weights(labels, 4)
    np.testing.assert_allclose(np.bincount(labels, weights[labels], minlength=4), [25, 25, 0, 25])
    assert weights[labels].sum() == pytest.approx(len(labels) * 3 / 4)  # a class without images has no share
    np.testing.assert_array_equal(balanced_weights(np.arange(6) % 3, 3), np.ones(3))
