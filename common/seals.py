"""Seals: checksums that detect changes of a file, stored in the file itself, since files are copied and moved.

JSON objects    a key "seal" with the SHA-256 of all other entries, independent of the layout
JSON lines      a key "crc32" in each line, over it and all lines before it: no line is changed, missing or repeated
zip archives    an archive comment with the SHA-256 of every byte before it; other readers of zip files ignore it

A file without a seal, from an earlier version or another program, is accepted; of an archive, the CRC-32 of the members
is checked instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import IO, Any

SEAL, LINE_SEAL = "seal", "crc32"
COMMENT = b"nearest-etf sha256 "
COMMENT_SIZE = len(COMMENT) + 64
CHANGED = "it has changed since it was written"
CHUNK = 2**20


class Damage(Exception):
    """A defect of a file; the message describes it, and `files.reading` adds the name of the file."""


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sealed_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its seal.

    >>> sealed_json({"epoch": 3})["seal"][:15]
    'sha256 8f5de95b'
    """
    return {**value, SEAL: f"sha256 {_sha256(json.loads(json.dumps(value)))}"}


def opened_json(value: Any) -> Any:
    """The value of a JSON file without its seal.

    Raises
    ------
    Damage
        If the value does not match its seal.
    """
    if not isinstance(value, dict) or SEAL not in value:
        return value
    contents = {name: entry for name, entry in value.items() if name != SEAL}
    if value[SEAL] != f"sha256 {_sha256(contents)}":
        raise Damage(f'{CHANGED}; if the change is meant, delete "{SEAL}" in it')
    return contents


def sealed_line(row: Mapping[str, Any], before: int = 0) -> tuple[str, int]:
    """A line of JSON with its seal, and the checksum from which the next line's seal starts.

    >>> line, after = sealed_line({"epoch": 1})
    >>> opened_line(json.loads(line)) == ({"epoch": 1}, after)
    True
    """
    after = _sum(json.loads(json.dumps(row)), before)
    return json.dumps({**row, LINE_SEAL: f"{after:08x}"}) + "\n", after


def opened_line(row: Mapping[str, Any], before: int = 0) -> tuple[dict[str, Any], int]:
    """A line without its seal, and the checksum from which the next line's seal starts.

    Raises
    ------
    Damage
        If the line, or a line before it, does not match its seal.
    """
    contents = {name: entry for name, entry in row.items() if name != LINE_SEAL}
    after = _sum(contents, before)
    if LINE_SEAL in row and row[LINE_SEAL] != f"{after:08x}":
        raise Damage(f'{CHANGED}; if the change is meant, delete "{LINE_SEAL}" from this line on')
    return contents, after


def _sum(row: dict[str, Any], before: int) -> int:
    return zlib.crc32(json.dumps(row).encode(), before)


def seal_zip(file: IO[bytes]) -> None:
    """Add the seal to a complete zip archive without a comment, open for reading and writing."""
    file.seek(-2, os.SEEK_END)
    file.write(COMMENT_SIZE.to_bytes(2, "little"))  # the last field of a zip file: the length of its comment
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.seek(0, os.SEEK_END)
    file.write(COMMENT + digest.encode())


def zip_seal(path: str | os.PathLike[str]) -> str:
    """The digest in the seal of a zip archive, not verified; empty if there is no seal, or no regular file.

    It identifies an archive without reading all of it, and independently of time stamps.
    """
    if not os.path.isfile(path):
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - COMMENT_SIZE))
        tail = file.read()
    return tail.removeprefix(COMMENT).decode("ascii", "replace") if tail.startswith(COMMENT) else ""


def check_zip(file: IO[bytes], largest: int | None = None) -> bool:
    """Check a zip archive against its seal, or its members against their CRC-32; returns whether there is a seal.

    Parameters
    ----------
    file : binary file
        Open for reading; its position is the beginning afterwards.
    largest : int, optional
        Limit on the bytes of all members together. By default, members must be uncompressed, and the size of the file
        is the limit.

    Raises
    ------
    Damage
        If the archive was changed, or exceeds the limit.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - COMMENT_SIZE))
    tail = file.read(COMMENT_SIZE)
    file.seek(0)
    sealed = tail.startswith(COMMENT)
    if sealed:
        digest = hashlib.sha256()
        for start in range(0, size - COMMENT_SIZE, CHUNK):
            digest.update(file.read(min(CHUNK, size - COMMENT_SIZE - start)))
        if tail != COMMENT + digest.hexdigest().encode():
            raise Damage(CHANGED)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if largest is None and any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise Damage("it has compressed members")
        if sum(member.file_size for member in members) > (size if largest is None else largest):
            raise Damage("it declares more bytes than it can hold")
        if not sealed and (changed := archive.testzip()):
            raise Damage(f"the CRC-32 of {changed} is wrong")
    file.seek(0)
    return sealed
