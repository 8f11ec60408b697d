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
    assert running.batches.tolist() == [1, 2, 0]
    assert running.seen.tolist() == [True, True, False]


@pytest.mark.parametrize("averaging", ["step", "class"])
def test_class_first_seen_late_enters_at_rate_one(averaging):
    running = ClassMeans(2, 3, averaging=averaging)
    for _ in range(50):
        running.update([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    running.update([[3.0, 0.0], [0.0, 3.0]], [2, 1])
    assert running.class_means[:, 2] == pytest.approx([1.5, -1.5])


def test_both_rates_are_the_papers_if_no_class_is_absent():
    rng = np.random.default_rng(0)
    by_step, by_class, papers = ClassMeans(4, 3), ClassMeans(4, 3, averaging="class"), np.zeros((4, 3))
    for step in range(1, 41):
        labels = rng.permutation(np.concatenate([[0, 1, 2], rng.integers(0, 3, size=5)]))
        features = rng.standard_normal((8, 4))
        by_step.update(features, labels)
        by_class.update(features, labels)
        means = np.stack([features[labels == c].mean(0) for c in range(3)], axis=1)
        papers += 2 / (step + 1) * (means - features.mean(0)[:, None] - papers)
    assert by_step.class_means == pytest.approx(papers, abs=1e-15)
    assert by_class.class_means == pytest.approx(papers, abs=1e-15)
    assert np.array_equal(by_step.global_mean, by_class.global_mean)


def test_means_of_rare_classes_have_the_right_length():
    """A thousand classes, batches of 64, fixed centres: by the paper's rule the means are about half as long."""
    rng = np.random.default_rng(0)
    d, K = 16, 1000
    centres = rng.standard_normal((d, K))
    true = centres - centres.mean(axis=1, keepdims=True)
    by_step, by_class, papers = ClassMeans(d, K), ClassMeans(d, K, averaging="class"), np.zeros((d, K))
    for step in range(1, 1001):
        labels = rng.integers(0, K, size=64)
        by_step.update(centres[:, labels].T, labels)
        by_class.update(centres[:, labels].T, labels)
        batch_mean = centres[:, labels].mean(axis=1, keepdims=True)
        present = np.unique(labels)
        papers[:, present] += 2 / (step + 1) * (centres[:, present] - batch_mean - papers[:, present])

    def error(found):
        return np.median(np.linalg.norm(found - true, axis=0) / np.linalg.norm(true, axis=0))

    assert error(papers) > 0.45
    assert error(by_step.class_means) < 0.09
    assert error(by_class.class_means) < 0.03


@pytest.mark.parametrize("averaging", ["step", "class"])
def test_rate_never_falls_below_its_floor(averaging):
    running = ClassMeans(1, 2, averaging=averaging)
    running.steps = 10**6
    running.batches += 10**6
    running.update([[1.0], [3.0]], [0, 1])
    assert running.class_means == pytest.approx(np.array([[-1e-4, 1e-4]]))


@pytest.mark.parametrize("averaging", ["step", "class"])
def test_set_means_are_kept_and_averaging_continues_from_them(averaging):
    rows = np.random.default_rng(0).standard_normal((3, 2))
    running = ClassMeans(2, 3, averaging=averaging)
    running.set_means(rows, counts=[1, 3, 0])
    mean = (rows[0] + 3 * rows[1]) / 4
    assert running.global_mean == pytest.approx(mean)
    assert running.class_means == pytest.approx(np.stack([rows[0] - mean, rows[1] - mean, np.zeros(2)], axis=1))
    assert (running.steps, running.batches.tolist()) == (10, [10, 10, 0])
    before = running.class_means.copy()
    running.update([[1.0, 0.0], [0.0, 1.0]], [0, 2])
    assert running.class_means[:, 0] == pytest.approx(before[:, 0] + 2 / 12 * (np.array([0.5, -0.5]) - before[:, 0]))
    assert running.class_means[:, 2] == pytest.approx([-0.5, 0.5])  # no mean was set for this class


def test_set_means_keeps_a_longer_history_and_a_given_global_mean():
    running = ClassMeans(2, 2)
    for _ in range(40):
        running.update([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    running.set_means([[1.0, 2.0], [3.0, 4.0]], global_mean=[1.0, 1.0])
    assert (running.steps, running.batches.tolist()) == (40, [40, 40])
    assert running.class_means.tolist() == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((2, 3)),), r"shape \(2, 3\); expected \(3, 2\), a row for each class. Pass class_mean_rows.T"),
        ((np.ones((3, 2)), [1, 1]), r"counts has shape \(2,\)"),
        ((np.ones((3, 2)), [0, 0, 0]), "not all zero"),
        ((np.ones((3, 2)), [1, -1, 3]), "not negative"),
        ((np.ones((3, 2)), [1, np.nan, 3]), "counts has"),
        ((np.ones((3, 2)), None, np.ones(3)), r"global_mean has shape \(3,\); expected \(2,\)"),
        ((np.full((3, 2), np.inf),), "NaN or infinite"),
        ((np.ones((3, 2)), None, [np.nan, 0]), "NaN or infinite"),
    ],
)
def test_bad_means_are_refused_and_change_nothing(arguments, message):
    running = ClassMeans(2, 3)
    with pytest.raises(ValueError, match=message):
        running.set_means(*arguments)
    assert running.steps == 0
    assert not running.class_means.any()


def test_absent_classes_may_have_any_mean():
    running = ClassMeans(2, 2)
    running.set_means([[1.0, 1.0], [np.nan, np.nan]], counts=[5, 0])
    assert not running.class_means.any()


def test_unknown_averaging_is_refused():
    with pytest.raises(ValueError, match="averaging = 'batch'; expected one of 'step', 'class'"):
        ClassMeans(2, 2, averaging="batch")  # type: ignore[arg-type]


def test_normalised_has_unit_norm_or_is_zero():
    running = ClassMeans(2, 2)
    assert not running.normalised().any()
    running.update([[0.0, 1.0], [2.0, 3.0]], [0, 1])
    assert np.linalg.norm(running.normalised()) == pytest.approx(1)


def test_rounding_of_constant_features_is_not_normalised():
    running = ClassMeans(7, 10)
    for step in range(5):
        running.update(np.tile(np.linspace(0.1, 0.7, 7), (13, 1)), np.arange(13) % (step + 2))
    assert 0 < np.abs(running.class_means).max() < 1e-15
    assert not running.normalised().any()


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
