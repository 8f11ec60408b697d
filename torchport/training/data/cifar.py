"""CIFAR-10 and CIFAR-100 in their official files, binary or Python (https://www.cs.toronto.edu/~kriz).

A binary record is one label byte (CIFAR-10) or two, coarse and fine (CIFAR-100), then 3072 bytes: red, green
and blue planes of 32×32. The Python files are pickles, read by an unpickler that rebuilds arrays of bytes and nothing
else.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....common.files import read_bytes, reading
from .split import DataError

PIXELS = 3 * 32 * 32
LARGEST = 2**29  # bytes; the official files have 1.5e8
Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]

# CIFAR-100's classes in the order of its fine labels, as its fine_label_names.txt has them.
_FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
FINE_LABEL_NAMES = tuple(_FINE.split())


def read_cifar_binary(path: Path, label_bytes: int = 1) -> Labelled:
    """Images (N, 32, 32, 3) and labels (N,) of a binary file; the last label byte is the class.

    Raises
    ------
    DataError
        If the file is not a whole number of records.
    """
    content = np.frombuffer(read_bytes(path, "a binary CIFAR file", DataError, LARGEST), np.uint8)
    record = label_bytes + PIXELS
    if not len(content) or len(content) % record:
        raise DataError(f"{path} has {len(content)} bytes: expected a multiple of {record}, one per record")
    records = content.reshape(-1, record)
    return _as_images(records[:, label_bytes:]), records[:, label_bytes - 1].astype(np.int64)


def read_cifar_python(path: Path, label_key: bytes = b"labels") -> Labelled:
    """Images (N, 32, 32, 3) and labels (N,) of a Python file; `label_key` is b"fine_labels" for CIFAR-100.

    Raises
    ------
    DataError
        If the file is not a pickle, names anything but NumPy arrays, or does not hold images and labels.
    """
    packed = read_bytes(path, "a CIFAR python file", DataError, LARGEST)
    with reading(path, "a CIFAR python file", DataError):
        content = _ArraysOnly(io.BytesIO(packed), encoding="bytes").load()
    array = content.get(b"data") if isinstance(content, dict) else None
    pixels = array.values if isinstance(array, _Bytes) else None
    labels = content.get(label_key) if isinstance(content, dict) else None
    if (
        pixels is None
        or not isinstance(labels, list)
        or not all(type(label) is int and 0 <= label < 256 for label in labels)
        or pixels.shape != (len(labels), PIXELS)
        or not len(labels)
    ):
        raise DataError(
            f"{path} is not a CIFAR python file: expected 'data' of (N, {PIXELS}) bytes, "
            f"and as many {label_key.decode()!r}"
        )
    return _as_images(pixels), np.array(labels, np.int64)


def _as_images(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


class _Bytes:
    """The stand-in for a NumPy array of bytes in a pickle."""

    values: NDArray[np.uint8] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, columns_first, values = state
        if not isinstance(dtype, _DType) or columns_first or not isinstance(values, bytes):
            raise pickle.UnpicklingError("refused, since a CIFAR python file has arrays of bytes, row by row")
        self.values = np.frombuffer(values, np.uint8).reshape(shape)


class _DType:
    """The stand-in for NumPy's type of bytes."""

    def __setstate__(self, state: Any) -> None:
        """Ignore the state: it repeats the name, and a wrong one could corrupt memory."""


class _ArraysOnly(pickle._Unpickler):
    """Rebuilds arrays of bytes and plain containers; a pickle that names anything else is refused.

    NumPy's names map to the two stand-ins above, because NumPy's own classes trust the state in a pickle. The unpickler
    is the one in Python, because the one in C allocates whatever a pickle announces.
    """

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy", "ndarray"): self._refuse,
            ("numpy", "dtype"): self._dtype,
            ("numpy.core.multiarray", "_reconstruct"): self._array,
            ("numpy._core.multiarray", "_reconstruct"): self._array,
            ("_codecs", "encode"): self._encoded,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"refused, since a CIFAR python file needs no {module}.{name}")
        return known[module, name]

    def _array(self, *_: Any) -> _Bytes:
        return _Bytes()

    def _dtype(self, name: Any, *_: Any) -> _DType:
        if name not in ("u1", "|u1", b"u1", b"|u1"):
            raise pickle.UnpicklingError(f"refused, since a CIFAR python file has bytes and no {str(name)[:20]!r}")
        return _DType()

    def _encoded(self, text: Any, encoding: Any) -> bytes:
        if encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("refused, since bytes are packed as latin1")
        return bytes(text) if isinstance(text, bytes) else str(text).encode("latin1")

    def _refuse(self, *_: Any) -> Any:
        raise pickle.UnpicklingError("refused, since a CIFAR python file makes arrays in another way")
