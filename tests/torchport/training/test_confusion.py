"""Confusions: counted pairs against plain loops, dense matrices and the accuracy of the evaluation pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nearest_etf.torchport.heads import Classifier, LearnedHead
from nearest_etf.torchport.training.confusion import Confusion, confusion_lines, count_pairs
from nearest_etf.torchport.training.evaluate import evaluate


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("images", "num_classes"), [(0, 2), (1, 2), (50, 3), (400, 40)])
def test_counts_equal_those_of_a_loop(seed: int, images: int, num_classes: int) -> None:
    rng = np.random.default_rng([seed, images])
    true, predicted = rng.integers(0, num_classes, (2, images))
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for t, p in zip(true, predicted, strict=True):
        matrix[t, p] += 1
    confusion = Confusion(count_pairs(true, predicted, num_classes), num_classes)
    np.testing.assert_array_equal(confusion.matrix(), matrix)
    np.testing.assert_array_equal(confusion.images, matrix.sum(1))
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(confusion.accuracy, matrix.diagonal() / matrix.sum(1))
    wrong = matrix - np.diag(matrix.diagonal())
    mistakes = confusion.mistakes(num_classes**2)
    assert sum(count for _, _, count in mistakes) == wrong.sum()
    assert [count for _, _, count in mistakes] == sorted(wrong[wrong > 0].tolist(), reverse=True)
    assert all(wrong[t, p] == count for t, p, count in mistakes)
    worst = confusion.worst(num_classes)
    assert set(worst) == set(np.flatnonzero(wrong.sum(1)).tolist())
    assert confusion.accuracy[worst].tolist() == sorted(confusion.accuracy[worst].tolist())


def test_lines_are_short_and_plain() -> None:
    names = ["two\nlines", "\x1b[31m", "c"]
    worst, mistakes = confusion_lines(Confusion(np.array([[0, 1, 2], [0, 0, 1], [1, 2, 1]]), 3), names)
    assert worst == "least accurate classes: �[31m (0.0 % of 1), two lines (33.3 % of 3)"
    assert mistakes == "most frequent mistakes: two lines taken for �[31m (2), �[31m taken for c (1)"
    assert confusion_lines(Confusion(np.array([[2, 2, 5]]), 3), names) == ["every image is classified correctly"]


@pytest.mark.parametrize("pairs", [np.zeros((2, 2), np.int64), np.array([[0, 3, 1]]), np.array([[-1, 0, 1]])])
def test_invalid_pairs_are_refused(pairs: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected \\(n, 3\\), with classes from 0 to 2"):
        Confusion(pairs, 3)


@pytest.mark.parametrize("num_classes", [3, 1000])
def test_evaluation_counts_what_the_model_predicts(num_classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    model = Classifier(torch.nn.Flatten(), LearnedHead(num_features=64, num_classes=num_classes)).eval()
    images = torch.randn(500, 1, 8, 8, generator=generator)
    labels = torch.randint(num_classes, (500,), generator=generator)
    found = evaluate(model, zip(images.split(70), labels.split(70), strict=True))
    with torch.no_grad():
        predicted = model(images).argmax(1)
    confusion = Confusion(found.pairs, num_classes)
    assert len(found.pairs) <= 500  # however many classes
    assert confusion.pairs[:, 2].sum() == 500
    np.testing.assert_array_equal(found.pairs, count_pairs(labels.numpy(), predicted.numpy(), num_classes))
    assert confusion.matrix().trace() / 500 == pytest.approx(found.figures["accuracy"])
