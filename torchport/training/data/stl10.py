"""STL-10 in its official binary files (https://cs.stanford.edu/~acoates/stl10)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....common.files import read_bytes
from .split import DataError

SIDE = 96
LARGEST = 2**29  # bytes; the official files have 2.2e8


def read_stl10(images: Path, labels: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 96, 96, 3) and labels (N,) in 0…9 of one split.

    Raises
    ------
    DataError
        If a file has the wrong length, or a label is not 1…10.
    """
    pixels, classes = (
        np.frombuffer(read_bytes(path, "a binary STL-10 file", DataError, LARGEST), np.uint8)
        for path in (images, labels)
    )
    record = 3 * SIDE * SIDE
    if not len(pixels) or len(pixels) % record:
        raise DataError(f"{images} has {len(pixels)} bytes: expected a multiple of {record}, one per image")
    if len(classes) != len(pixels) // record:
        raise DataError(
            f"{labels} has {len(classes)} bytes: expected a label for each of {len(pixels) // record} images"
        )
    if classes.min() < 1 or classes.max() > 10:
        raise DataError(f"{labels} holds labels {classes.min()}…{classes.max()}: expected 1…10")
    columns_first = pixels.reshape(-1, 3, SIDE, SIDE)  # (N, C, W, H)
    return np.ascontiguousarray(columns_first.transpose(0, 3, 2, 1)), classes.astype(np.int64) - 1
