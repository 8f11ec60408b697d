"""Official files that are missing: fetched and checked, or asked for by name."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nearest_etf.torchport.training.data import DataError
from nearest_etf.torchport.training.data.download import Source, data_root, fetch


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
        entry.size = 5
        archive.addfile(entry, io.BytesIO(b"12345"))
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
    assert (folder / "data.bin").read_bytes() == b"12345"
    assert fetch("set", replace(source, downloads=()), root) == folder


def test_a_wrong_checksum_is_refused(tmp_path: Path, source: Source) -> None:
    wrong = replace(source, downloads=((source.downloads[0][0], "0" * 32),))
    with pytest.raises(DataError, match="MD5 sum is wrong"):
        fetch("set", wrong, tmp_path / "cache")
    assert not (tmp_path / "cache" / "folder").exists()


def test_an_archive_without_the_files_is_refused(tmp_path: Path, source: Source) -> None:
    with pytest.raises(DataError, match=r"folder/other\.bin is missing: expected other\.bin in"):
        fetch("set", replace(source, files=("other.bin",)), tmp_path / "cache")


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
