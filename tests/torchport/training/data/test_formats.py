"""Readers of official file formats refuse damaged and foreign files."""

from __future__ import annotations

import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nearest_etf.torchport.training.data.cifar import read_cifar_binary, read_cifar_python
from nearest_etf.torchport.training.data.idx import read_idx, read_mnist
from nearest_etf.torchport.training.data.split import DataError
from nearest_etf.torchport.training.data.stl10 import read_stl10


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return print, ("ran",)


REFUSED: dict[str, tuple[Callable[[Path], object], bytes, str]] = {
    "foreign idx": (read_idx, b"PNG image", "expected 00 00 08"),
    "idx of floats": (read_idx, bytes([0, 0, 13, 1]) + bytes(4), "expected 00 00 08"),
    "short idx header": (read_idx, bytes([0, 0, 8, 3, 0]), "header of 16 bytes"),
    "short idx": (read_idx, idx_bytes(np.zeros((3, 4), np.uint8))[:-1], r"\(3, 4\), 12 bytes"),
    "short gzip": (read_idx, gzip.compress(idx_bytes(np.zeros(1000, np.uint8)))[:-9], "damaged.*an idx file, whole"),
    "gzip longer than its header states": (
        read_idx,
        gzip.compress(idx_bytes(np.zeros(2, np.uint8)) + bytes(10**6)),
        r"\(2,\), 2 bytes, found more",
    ),
    "idx of a terabyte": (read_idx, struct.pack(">4B2I", 0, 0, 8, 2, 2**20, 2**20), "at most 536870912"),
    "changed gzip": (
        read_idx,
        gzip.compress(idx_bytes(np.zeros(8, np.uint8)), mtime=0)[:-8] + bytes(8),
        "CRC check failed.*an idx file, whole",
    ),
    "short cifar": (read_cifar_binary, bytes(3072), "multiple of 3073"),
    "empty cifar": (read_cifar_binary, b"", "multiple of 3073"),
    "foreign pickle": (read_cifar_python, pickle.dumps([1, 2]), "expected 'data'"),
    "wrong pickle": (read_cifar_python, pickle.dumps({b"data": 3, b"labels": []}), "expected 'data'"),
    "no pickle": (read_cifar_python, b"binary", "damaged or of another kind .* expected a CIFAR python file"),
    "evil pickle": (read_cifar_python, pickle.dumps(Evil()), r"refused.*builtins.print"),
    "short stl10": (lambda path: read_stl10(path, path), bytes(100), "multiple of 27648"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_damaged_and_foreign_files_are_refused(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    read, content, expected = REFUSED[case]
    (tmp_path / "the-file").write_bytes(content)
    with pytest.raises(DataError, match=f"the-file.*{expected}"):
        read(tmp_path / "the-file")
    assert capsys.readouterr().out == ""


def test_labels_must_match_images(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(idx_bytes(np.zeros((2, 5, 5), np.uint8)))
    (tmp_path / "labels").write_bytes(idx_bytes(np.zeros(3, np.uint8)))
    with pytest.raises(DataError, match=r"labels holds \(3,\) labels: expected one for each of 2"):
        read_mnist(tmp_path / "images", tmp_path / "labels")
    with pytest.raises(DataError, match=r"labels holds an array of shape \(3,\)"):
        read_mnist(tmp_path / "labels", tmp_path / "labels")


@pytest.mark.parametrize("read", [read_idx, read_cifar_binary, read_cifar_python])
def test_missing_files_are_named(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(DataError, match="the-file is missing: expected a"):
        read(tmp_path / "the-file")
