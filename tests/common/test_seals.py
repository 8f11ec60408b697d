"""Seals: every change of a sealed file is detected, and files without a seal are accepted."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest

from nearest_etf.common.seals import Damage, check_zip, opened_json, opened_line, seal_zip, sealed_json, sealed_line


def archive(compression: int = zipfile.ZIP_STORED, seal: bool = True) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as members:
        members.writestr("weights", bytes(range(64)))
        members.writestr("empty", b"")
    if seal:
        seal_zip(file)
    return file.getvalue()


def test_every_bit_of_a_sealed_archive_counts() -> None:
    data = archive()
    assert check_zip(io.BytesIO(data))
    with zipfile.ZipFile(io.BytesIO(data)) as members:
        assert members.read("weights") == bytes(range(64))
        assert members.comment.startswith(b"nearest-etf sha256 ")
    prefix = range(len(data) - 83, len(data) - 64)  # of the seal: without it, the archive is valid and unsealed
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            if position in prefix:
                assert not check_zip(io.BytesIO(bytes(changed)))
            else:
                with pytest.raises((Damage, zipfile.BadZipFile)):
                    check_zip(io.BytesIO(bytes(changed)))


@pytest.mark.parametrize("length", [0, 1, 21, 50, 200])
def test_truncated_archives_are_refused(length: int) -> None:
    for data in (archive()[:length], b"\0" * length):
        with pytest.raises((Damage, zipfile.BadZipFile)):
            check_zip(io.BytesIO(data))


def test_an_archive_without_a_seal_is_checked_by_its_crc() -> None:
    data = archive(seal=False)
    assert not check_zip(io.BytesIO(data))
    changed = bytearray(data)
    changed[data.index(bytes(range(64))) + 5] ^= 1
    with pytest.raises(Damage, match="the CRC-32 of weights is wrong"):
        check_zip(io.BytesIO(bytes(changed)))


def test_bombs_are_refused_before_they_are_unpacked() -> None:
    data = archive(zipfile.ZIP_DEFLATED)
    with pytest.raises(Damage, match="it has compressed members"):
        check_zip(io.BytesIO(data))
    assert check_zip(io.BytesIO(data), largest=64)
    with pytest.raises(Damage, match="it declares more bytes than it can hold"):
        check_zip(io.BytesIO(data), largest=63)


@pytest.mark.parametrize("value", [{}, {"a": 1, "b": [0.1, None, True], "ä": {"x": "\u2028"}}, {"n": np.float64(0.3)}])
def test_sealed_json_is_read_in_any_layout(value: dict[str, object]) -> None:
    sealed = sealed_json(value)
    for indent in (None, 2):
        assert opened_json(json.loads(json.dumps(sealed, indent=indent))) == value
    assert opened_json(json.loads(json.dumps(dict(reversed(sealed.items()))))) == value
    assert opened_json([1, {"seal": 3}]) == [1, {"seal": 3}]


@pytest.mark.parametrize("change", [{"a": 2}, {"a": 1.0}, {"a": "1"}, {"seal": None}, {"seal": "sha256 0"}, {"b": 1}])
def test_changed_json_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(
        Damage, match='it has changed since it was written; if the change is meant, delete "seal" in it'
    ):
        opened_json({**sealed_json({"a": 1}), **change})


def test_the_seal_of_a_line_covers_the_lines_before_it() -> None:
    first, after_first = sealed_line({"epoch": 1, "loss": 0.1})
    second, after_second = sealed_line({"epoch": 2}, after_first)
    assert opened_line(json.loads(first)) == ({"epoch": 1, "loss": 0.1}, after_first)
    assert opened_line(json.loads(second), after_first) == ({"epoch": 2}, after_second)
    assert opened_line({"epoch": 2}, after_first) == ({"epoch": 2}, after_second)  # without a seal, as 0.1.0 wrote it
    for row, before in ((json.loads(second), 0), (json.loads(first), after_first), ({"epoch": 2, "crc32": 7}, 0)):
        with pytest.raises(Damage, match="it has changed since it was written"):
            opened_line(row, before)
