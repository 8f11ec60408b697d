"""Malicious images: their size is limited before decoding, and no other program reads them."""

from __future__ import annotations

import os
import resource
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nearest_etf.common import photo
from nearest_etf.common.photo import PhotoError, PhotoTransform, evaluation_view, exact_pixels
from nearest_etf.common.photo_files import find_images

SMALL = PhotoTransform(8, 8)


def png(width: int, height: int, *chunks: tuple[bytes, bytes], colour: int = 2, bits: int = 8) -> bytes:
    """A PNG that declares this size, with further chunks and almost no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", width, height, bits, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


def tiff(*entries: tuple[int, int, int, int], order: str = "<") -> bytes:
    """A TIFF with one directory of these tags (number, type, count, value)."""
    tags = b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries)
    return struct.pack(f"{order}2sHI", b"II", 42, 8) + struct.pack(f"{order}H", len(entries)) + tags + bytes(4)


def text_of(size: int) -> bytes:
    return b"Comment\0\0" + zlib.compress(bytes(size))


SIZES = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
HOSTILE: dict[str, tuple[bytes, str]] = {
    "60,000 × 60,000": (png(60_000, 60_000), "too many pixels"),
    "just above the limit": (png(9460, 9460), r"has 9460×9460 pixels of mode RGB: expected at most 89 megapixels"),
    "transparent": (png(9000, 9000, colour=6), r"mode RGBA: expected at most 67 megapixels"),
    "16 bits": (png(6000, 6000, colour=0, bits=16), r"mode I;16: expected at most 33 megapixels"),
    "a long line": (png(2**31 - 1, 1), "too many pixels"),
    "text that unpacks to 100 MB": (png(8, 8, (b"zTXt", text_of(10**8))), "expected an image"),
    "many texts": (png(8, 8, *[(b"zTXt", text_of(10**6))] * 80), "expected an image"),
    "a profile that unpacks to 1 GB": (png(8, 8, (b"iCCP", text_of(10**8))), "expected an image"),
    "truncated": (png(8, 8)[:40], "expected an image"),
    "TIFF, 10^9 entries of a tag": (tiff(*SIZES, (273, 4, 10**9, 8), (279, 4, 10**9, 8)), "expected an image"),
    "TIFF, a strip beyond the end": (tiff(*SIZES, (273, 4, 1, 2**32 - 1), (279, 4, 1, 2**32 - 1)), "an image"),
    "TIFF of 4·10^9 pixels a side": (tiff((256, 4, 1, 2**32 - 1), (257, 4, 1, 2**32 - 1), *SIZES[2:]), "an image"),
    "TIFF with a circular directory": (
        struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<HI", 0, 8),
        "expected an image",
    ),
    "GIF of 60,000 × 60,000": (b"GIF89a" + struct.pack("<HH3B", 60_000, 60_000, 0, 0, 0), "too many pixels|an image"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", "its format is none of JPEG, PNG"),
    "a Windows metafile": (b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(100), "its format is none of"),
    "nothing": (b"", "its format is none of"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_images_are_refused_in_bounded_time_and_memory(tmp_path: Path, name: str, exact: bool) -> None:
    contents, message = HOSTILE[name]
    (tmp_path / "x.png").write_bytes(contents)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(PhotoError, match=rf"x\.png.*({message})"):
        exact_pixels(tmp_path / "x.png", (8, 8, 3)) if exact else evaluation_view(tmp_path / "x.png", SMALL)
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_only_the_first_of_many_frames_is_read(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(tmp_path / "one.gif")
    one = (tmp_path / "one.gif").read_bytes()
    start = one.index(b",")
    (tmp_path / "many.gif").write_bytes(one[:start] + one[start:-1] * 100_000 + b";")
    began = time.monotonic()
    assert (evaluation_view(tmp_path / "many.gif", SMALL) == 7).all()
    with pytest.raises(PhotoError, match=r"animated \(more than one frame\)"):
        exact_pixels(tmp_path / "many.gif", (8, 8, 3))
    assert time.monotonic() - began < 2


def test_pipes_devices_and_huge_files_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(PhotoError, match="is a pipe or a device"):
            evaluation_view(path, SMALL)
    (tmp_path / "large.png").write_bytes(png(8, 8))
    os.truncate(tmp_path / "large.png", photo.LARGEST + 1)
    with pytest.raises(PhotoError, match="has 1073741825 bytes: expected an image of at most 1073741824"):
        evaluation_view(tmp_path / "large.png", SMALL)


def test_the_size_limit_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo, "LARGEST", 12 * 100 * 100)
    Image.new("RGB", (100, 100)).save(tmp_path / "x.png")
    assert evaluation_view(tmp_path / "x.png", SMALL).shape == (8, 8, 3)
    Image.new("RGB", (100, 101)).save(tmp_path / "x.png")
    with pytest.raises(PhotoError, match="100×101 pixels of mode RGB"):
        evaluation_view(tmp_path / "x.png", SMALL)


def test_folders_nested_a_thousand_deep_are_searched(tmp_path: Path) -> None:
    folders = [str(tmp_path)]
    for _ in range(1200):
        folders.append(folders[-1] + "/a")
        os.mkdir(folders[-1])
    image = Path(folders[-1], "x.png")
    image.write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"")
    try:
        assert [path.name for path in find_images([tmp_path]).paths] == ["x.png", "b.png"]
    finally:  # pytest cannot remove folders this deep
        image.unlink()
        for folder in reversed(folders[1:]):
            os.rmdir(folder)
