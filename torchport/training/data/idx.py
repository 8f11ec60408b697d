"""MNIST and Fashion-MNIST in their official idx files (http://yann.lecun.com/exdb/mnist), gzipped or not.

An idx file is two zero bytes, a type (8 for unsigned bytes), the number of dimensions, each dimension as a
big-endian 32-bit integer, and then the data.
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....common.files import reading
from .split import DataError


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in an idx file of unsigned bytes.

    Raises
    ------
    DataError
        If the file is no idx file of unsigned bytes, or its length does not fit its header.
    """
    with reading(path, "an idx file, whole, gzipped or not", DataError):
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    if len(content) < 4 or content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 4:
        raise DataError(
            f"{path} is no idx file of unsigned bytes: expected 00 00 08 at its start, found {content[:4].hex(' ')}"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{path} is cut short: expected a header of {start} bytes, found {len(content)}")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path} is damaged: its header promises {shape}, {math.prod(shape)} bytes, found {len(content) - start}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()  # writable


def read_mnist(images: Path, labels: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 28, 28, 1) and labels (N,) of one split of MNIST or Fashion-MNIST."""
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim != 3:
        raise DataError(f"{images} holds an array of shape {pixels.shape}: expected images (N, height, width)")
    if classes.shape != pixels.shape[:1]:
        raise DataError(f"{labels} holds {classes.shape} labels: expected one for each of {len(pixels)} images")
    return pixels[..., None], classes.astype(np.int64)
