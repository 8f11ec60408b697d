"""The record of a run's data, and the detection of changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nearest_etf.torchport.training.data.fingerprint import compare_data, recorded
from nearest_etf.torchport.training.data.images import ImageData
from nearest_etf.torchport.training.data.load import load_data
from nearest_etf.torchport.training.data.split import DataError, Split


def data(count: int = 6, classes: tuple[str, ...] = ("cat", "dog"), held_out: int = 0, shade: int = 0) -> ImageData:
    """Grey images in memory."""

    def split(size: int) -> Split:
        return Split(np.full((size, 2, 2, 1), shade, np.uint8), np.arange(size) % len(classes))

    return ImageData("greys", split(count), split(held_out) if held_out else None, None, classes, (0.0,), (1.0,))


def test_equal_data_are_not_a_change() -> None:
    assert compare_data(recorded(data()), recorded(data())) == ""


@pytest.mark.parametrize(
    ("now", "found"),
    [
        (data(shade=1), "greys has changed since the run was trained: other training images"),
        (data(count=4), "greys has changed since the run was trained: other training images (4, 6 then)"),
        (
            data(held_out=2),
            "greys has changed since the run was trained: other validation images (2, 0 then); held-out images "
            "may include images that it was trained on",
        ),
    ],
)
def test_changed_images_are_one_line(now: ImageData, found: str) -> None:
    assert compare_data(recorded(data()), recorded(now)) == found


@pytest.mark.parametrize(
    ("now", "found"),
    [
        (("cat", "dog", "emu"), "'emu' is new"),
        (("cat",), "'dog' is missing"),
        (("dog", "cat"), "the same names in another order"),
        (tuple("abcdefgh"), "'cat', 'dog' are missing, 'a', 'b', 'c', 'd', 'e' and 3 more are new"),
    ],
)
def test_other_classes_are_refused_with_what_differs(now: tuple[str, ...], found: str) -> None:
    with pytest.raises(DataError, match=f"other classes than the run was trained on: {found}; give them the names"):
        compare_data(recorded(data()), recorded(data(classes=now)))


def test_without_fingerprints_classes_are_compared() -> None:
    old = data().preprocessing()  # what checkpoints of version 0.1.0 hold
    assert compare_data(old, recorded(data(count=4))) == ""
    with pytest.raises(DataError, match="'emu' is new"):
        compare_data(old, recorded(data(classes=("cat", "dog", "emu"))))


def test_a_folder_s_location_is_recorded_outside_its_fingerprint(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "photos" / name / "0.png")
    before = recorded(load_data(str(tmp_path / "photos"), image_size=8))
    moved = (tmp_path / "photos").rename(tmp_path / "moved")
    after = recorded(load_data(str(moved), image_size=8))
    assert (before["path"], after["path"]) == (str(tmp_path / "photos"), str(moved))
    assert compare_data(before, after) == ""
    assert recorded(replace(data()))["path"] is None
