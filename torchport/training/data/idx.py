"""MNIST and Fashion-MNIST in their official idx files (http://yann.lecun.com/exdb/mnist), gzipped or not.

An idx file is two zero bytes, a type (8 for unsigned bytes), the number of dimensions, each dimension as a
big-endian 32-bit integer, and then the data.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....common.files import opened, reading
from .split import DataError

LARGEST = 2**29  # bytes; the official files have 4.7e7


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in an idx file of unsigned bytes.

    Raises
    ------
    DataError
        If the file is not an idx file of unsigned bytes, or its length does not fit its header.
    """
    with reading(path, "an idx file, whole, gzipped or not", DataError), opened(path) as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        with gzip.open(raw) if gzipped else raw as file:
            content, shape = _content(path, file)
    return np.frombuffer(content, np.uint8).reshape(shape).copy()  # writable


def _content(path: Path, file: io.BufferedIOBase) -> tuple[bytes, tuple[int, ...]]:
    """The data after the header, and its shape; at most one byte more than the header announces is read."""
    header = file.read(4)
    if header[:3] != b"\0\0\x08" or len(header) < 4 or not 1 <= header[3] <= 4:
        raise DataError(
            f"{path} is not an idx file of unsigned bytes: expected 00 00 08 at its start, found {header.hex(' ')}"
        )
    sizes = file.read(4 * header[3])
    if len(sizes) < 4 * header[3]:
        raise DataError(f"{path} is cut short: expected a header of {4 + 4 * header[3]} bytes, found {4 + len(sizes)}")
    shape = struct.unpack(f">{header[3]}I", sizes)
    announced = math.prod(shape)
    if announced > LARGEST:
        raise DataError(f"{path} announces {shape}, {announced} bytes: expected at most {LARGEST}")
    content = file.read(announced + 1)
    if len(content) != announced:
        found = "more" if len(content) > announced else str(len(content))
        raise DataError(f"{path} is damaged: its header announces {shape}, {announced} bytes, found {found}")
    return content, shape


def read_mnist(images: Path, labels: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 28, 28, 1) and labels (N,) of one split of MNIST or Fashion-MNIST."""
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise DataError(f"{images} holds an array of shape {pixels.shape}: expected images (N, height, width)")
    if classes.shape != pixels.shape[:1]:
        raise DataError(f"{labels} holds {classes.shape} labels: expected one for each of {len(pixels)} images")
    return pixels[..., None], classes.astype(np.int64)
