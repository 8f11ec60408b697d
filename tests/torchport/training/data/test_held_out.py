"""Shares of classes held out: whole images, at least one on either side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nearest_etf.torchport.training.data.held_out import hold_out, uncovered
from nearest_etf.torchport.training.data.images import ImageData
from nearest_etf.torchport.training.data.split import DataError, Split


def numbered(*sizes: int) -> ImageData:
    """Classes of these sizes, mixed; the pixel of an image is its number."""
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
    train = Split(np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1), labels)
    return ImageData("numbers", train, None, None, tuple("abcdef"[: len(sizes)]), (0.0,), (1.0,))


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.2, [20, 2, 1, 1]), (0.01, [1, 1, 1, 1]), (0.9, [90, 9, 2, 1]), (0.5, [50, 5, 2, 1])]
)
def test_shares_of_unequal_classes(fraction: float, expected: list[int]) -> None:
    data = numbered(100, 10, 3, 2)
    divided = hold_out(data, fraction, seed=4)
    assert isinstance(divided.train, Split)
    assert isinstance(divided.val, Split)
    assert np.bincount(divided.val.labels).tolist() == expected
    assert set(divided.train.images.flat).isdisjoint(divided.val.images.flat)
    assert len(divided.train) + len(divided.val) == len(data.train)
    for split in (divided.train, divided.val):  # in their old order, with their own labels
        numbers = split.images.ravel()
        assert np.all(np.diff(numbers) > 0)
        np.testing.assert_array_equal(split.labels, data.train.labels[numbers])


def test_all_images_of_a_class_are_equally_likely() -> None:
    data = numbered(10, 20)
    held_out = [hold_out(data, 0.3, seed).val for seed in range(400)]
    counts = np.bincount(np.concatenate([split.images.ravel() for split in held_out if isinstance(split, Split)]))
    assert np.abs(counts - 120).max() < 5 * np.sqrt(400 * 0.3 * 0.7)


def test_a_class_of_one_image_is_named_and_an_absent_one_is_not() -> None:
    with pytest.raises(DataError, match="numbers: class 'b' has a single training image"):
        hold_out(numbered(10, 1, 10), 0.2, seed=0)
    data = hold_out(numbered(10, 0, 10), 0.2, seed=0)
    assert data.val is not None
    assert np.bincount(data.val.labels).tolist() == [2, 0, 2]
    with pytest.raises(DataError, match="has a validation split"):
        hold_out(data, 0.2, seed=0)


def test_classes_that_held_out_data_lack_are_named() -> None:
    data = numbered(*[9] * 6)
    assert uncovered(data) == [
        "no validation data: the last epoch is the result (--val-fraction 0.1 holds out a tenth)"
    ]
    val = data.train.take(np.flatnonzero(data.train.labels == 2))
    assert uncovered(replace(data, val=val, test=data.train)) == [
        "validation data have no images of 5 of 6 classes: 'a', 'b', 'd', 'e', 'f'"
    ]
    (note,) = uncovered(replace(data, val=data.train, test=data.train.take(np.array([], np.int64))))
    assert note == "test data have no images of 6 of 6 classes: 'a', 'b', 'c', 'd', 'e' and 1 more"
    assert uncovered(hold_out(data, 0.2, seed=0)) == []
