"""Official files that are missing: fetched and checked, or asked for by name."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nearest_etf.torchport.training.data.download import Source, data_root, fetch
from nearest_etf.torchport.training.data.split import DataError

CONTENT = random.Random(0).randbytes(300_000)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    """An archive with folder/data.bin in it, on a server of its own."""
    site = tmp_path / "site"
    site.mkdir()
    with tarfile.open(site / "data.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("folder/data.bin")
        entry.size = len(CONTENT)
        archive.addfile(entry, io.BytesIO(CONTENT))
    md5 = hashlib.md5((site / "data.tar.gz").read_bytes()).hexdigest()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/data.tar.gz"
    yield Source("folder", ("data.bin",), ((address, md5),))
    server.shutdown()
    server.server_close()


def test_an_archive_is_fetched_once(tmp_path: Path, source: Source) -> None:
    root = tmp_path / "cache"
    folder = fetch("set", source, root)
    assert (folder / "data.bin").read_bytes() == CONTENT
    assert fetch("set", replace(source, downloads=()), root) == folder


def test_a_wrong_checksum_is_refused(tmp_path: Path, source: Source) -> None:
    wrong = replace(source, downloads=((source.downloads[0][0], "0" * 32),))
    with pytest.raises(DataError, match="MD5 sum is wrong"):
        fetch("set", wrong, tmp_path / "cache")
    assert not (tmp_path / "cache" / "folder").exists()


def test_an_archive_without_the_files_is_refused(tmp_path: Path, source: Source) -> None:
    with pytest.raises(DataError, match=r"folder/other\.bin is missing: expected other\.bin in"):
        fetch("set", replace(source, files=("other.bin",)), tmp_path / "cache")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Makes the server answer with ranges of bytes, and notes which ones it was asked for."""
    asked: list[str | None] = []

    def answer(server: Quiet) -> None:
        content = Path(server.translate_path(server.path)).read_bytes()
        asked.append(server.headers["Range"])
        begin = int((asked[-1] or "bytes=0-")[6:-1])
        if begin >= len(content):
            server.send_error(416)
            return
        server.send_response(206 if begin else 200)
        server.send_header("Content-Length", str(len(content) - begin))
        server.end_headers()
        server.wfile.write(content[begin : len(content) // 2 if asked == [None] else None])  # breaks off at first

    monkeypatch.setattr(Quiet, "do_GET", answer)
    return asked


def test_a_download_that_broke_off_goes_on(tmp_path: Path, source: Source, asked: list[str | None]) -> None:
    root = tmp_path / "cache"
    with pytest.raises(DataError, match="trying again goes on where it stopped"):
        fetch("set", source, root)
    kept = (root / "data.tar.gz.part").stat().st_size
    assert kept > 100_000
    assert (fetch("set", source, root) / "data.bin").read_bytes() == CONTENT
    assert asked == [None, f"bytes={kept}-"]
    assert not (root / "data.tar.gz.part").exists()


def part_of_a_download(root: Path, content: bytes) -> None:
    root.mkdir()
    (root / "data.tar.gz.part").write_bytes(content)


def test_a_part_that_lacks_nothing_is_taken(tmp_path: Path, source: Source, asked: list[str | None]) -> None:
    part_of_a_download(tmp_path / "cache", (tmp_path / "site" / "data.tar.gz").read_bytes())
    assert (fetch("set", source, tmp_path / "cache") / "data.bin").is_file()
    assert len(asked) == 1


def test_a_foreign_part_is_refused_and_removed(tmp_path: Path, source: Source, asked: list[str | None]) -> None:
    part_of_a_download(tmp_path / "cache", b"foreign")
    with pytest.raises(DataError, match="MD5 sum is wrong"):
        fetch("set", source, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
    assert (fetch("set", source, tmp_path / "cache") / "data.bin").is_file()
    assert asked == ["bytes=7-", None]


def test_a_server_without_ranges_sends_the_whole_file(tmp_path: Path, source: Source) -> None:
    part_of_a_download(tmp_path / "cache", b"the beginning of something")
    assert (fetch("set", source, tmp_path / "cache") / "data.bin").read_bytes() == CONTENT


def test_offline_it_says_which_file_to_put_where(tmp_path: Path) -> None:
    source = Source("folder", ("data.bin",), (("http://127.0.0.1:9/data.tar.gz", "0" * 32),))
    with pytest.raises(DataError, match=r"put it at .*/cache/data\.tar\.gz") as refused:
        fetch("set", source, tmp_path / "cache")
    assert "\n" not in str(refused.value)


def test_the_data_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEAREST_ETF_DATA", str(tmp_path))
    assert data_root() == tmp_path
    assert data_root("elsewhere") == Path("elsewhere")
    monkeypatch.delenv("NEAREST_ETF_DATA")
    assert data_root().name == "nearest-etf"
