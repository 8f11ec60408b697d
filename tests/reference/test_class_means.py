import numpy as np
import pytest

from nearest_etf.reference import ClassMeans


def test_first_step_takes_the_batch_and_later_ones_average():
    rng = np.random.default_rng(0)
    running = ClassMeans(4, 3)
    history = []
    for _ in range(3):
        features, labels = rng.standard_normal((12, 4)), np.arange(12) % 3
        running.update(features, labels)
        means = np.stack([features[labels == c].mean(0) for c in range(3)], axis=1)
        history.append((means - features.mean(0)[:, None], features.mean(0)))
    # α = 1, 2/3, 1/2: the weights of the three batches come to 1/6, 1/3, 1/2
    for found, batches in zip((running.class_means, running.global_mean), zip(*history, strict=True), strict=True):
        expected = sum(weight * batch for weight, batch in zip((1 / 6, 1 / 3, 1 / 2), batches, strict=True))
        assert found == pytest.approx(expected)


def test_absent_class_keeps_its_column_and_unseen_class_is_zero():
    running = ClassMeans(2, 3)
    running.update([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    before = running.class_means.copy()
    running.update([[4.0, 4.0]], [1])
    assert running.class_means[:, 0] == pytest.approx(before[:, 0])
    assert running.class_means[:, 2] == pytest.approx(0)
    assert running.seen.tolist() == [True, True, False]


def test_rate_never_falls_below_its_floor():
    running = ClassMeans(1, 2)
    running.steps = 10**6
    running.update([[1.0], [3.0]], [0, 1])
    assert running.class_means == pytest.approx(np.array([[-1e-4, 1e-4]]))


def test_normalised_has_unit_norm_or_is_zero():
    running = ClassMeans(2, 2)
    assert not running.normalised().any()
    running.update([[0.0, 1.0], [2.0, 3.0]], [0, 1])
    assert np.linalg.norm(running.normalised()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.ones((2, 3)), [0, 1], r"features has shape \(2, 3\); expected \(N, 2\)"),
        (np.ones((2, 5)), np.zeros(5, int), "pass features.T"),
        (np.ones((0, 2)), np.zeros(0, int), "N ≥ 1"),
        (np.ones((2, 2)), [0, 3], r"0…2 for 3 classes"),
        (np.ones((2, 2)), [-1, 0], "labels lie in -1…0"),
        (np.ones((2, 2)), [0.0, 1.0], "integers"),
        (np.full((2, 2), np.nan), [0, 1], "NaN or infinite entries in 2 rows"),
    ],
)
def test_bad_batches_are_refused_and_change_nothing(features, labels, message):
    running = ClassMeans(2, 3)
    with pytest.raises(ValueError, match=message):
        running.update(features, labels)
    assert running.steps == 0
    assert not running.class_means.any()
