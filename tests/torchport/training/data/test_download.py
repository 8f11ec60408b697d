"""Missing official files: downloaded and checked, or named in the error."""

from __future__ import annotations

import hashlib
import io
import random
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nearest_etf.torchport.training.data import download
from nearest_etf.torchport.training.data.download import Source, data_root, fetch, unpack
from nearest_etf.torchport.training.data.split import DataError

CONTENT = random.Random(0).randbytes(300_000)


def visible(folder: Path) -> list[str]:
    """Names in a folder, except the lock."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    """An archive with folder/data.bin in it, on a local server."""
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


def tar(path: Path, *members: tuple[str, bytes | str]) -> Path:
    """An archive of files, and of links where the content is a path."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
            entry.size = 0 if isinstance(content, str) else len(content)
            archive.addfile(entry, None if isinstance(content, str) else io.BytesIO(content))
    return path


def test_an_archive_writes_only_requested_files_in_its_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    archive = tar(
        tmp_path / "evil.tar.gz",
        ("../x", b"evil"),
        ("cache/../../x", b"evil"),
        (str(outside), b"evil"),
        ("cache/other", b"evil"),
        ("cache/data.bin", b"good"),
    )
    unpack(archive, tmp_path / "cache", ["data.bin"])
    assert visible(tmp_path) == ["cache", "evil.tar.gz"]
    assert visible(tmp_path / "cache") == ["SHA256SUMS", "data.bin"]


def test_a_link_in_an_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    archive = tar(tmp_path / "evil.tar.gz", ("cache/data.bin", str(tmp_path / "secret")))
    with pytest.raises(DataError, match=r"evil\.tar\.gz has cache/data\.bin as a link"):
        unpack(archive, tmp_path / "cache", ["data.bin"])
    assert visible(tmp_path / "cache") == []


def test_a_file_of_an_archive_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "LARGEST_FILE", 1000)
    with pytest.raises(DataError, match="with 1001 bytes: expected a file of at most 1000 bytes"):
        unpack(tar(tmp_path / "bomb.tar.gz", ("cache/data.bin", bytes(1001))), tmp_path / "cache", ["data.bin"])


def test_an_archive_that_ends_early_leaves_no_file(tmp_path: Path) -> None:
    archive = tar(tmp_path / "cut.tar.gz", ("cache/a.bin", CONTENT), ("cache/b.bin", CONTENT))
    archive.write_bytes(archive.read_bytes()[:400_000])
    with pytest.raises(DataError, match=r"cut\.tar\.gz is damaged"):
        unpack(archive, tmp_path / "cache", ["a.bin", "b.bin"])
    assert visible(tmp_path / "cache") == []


@pytest.mark.parametrize("point", ["copyfileobj", "replace"])
def test_killed_unpacking_is_repeated(tmp_path: Path, source: Source, point: str) -> None:
    root, where = tmp_path / "cache", {"copyfileobj": "shutil", "replace": "os"}[point]
    if point == "copyfileobj":
        killed = "file.write(content.read(1000)); file.flush(); os._exit(9)"
    else:
        killed = "os._exit(9) if str(content).endswith('data.bin') else replace(content, file)"
    code = (
        f"import os, shutil; from pathlib import Path; from nearest_etf.torchport.training.data import download\n"
        f"replace = os.replace\n"
        f"def stop(content, file, *_):\n    {killed}\n"
        f"{where}.{point} = stop\n"
        f"download.fetch('set', download.Source('folder', ('data.bin',), {source.downloads!r}), Path({str(root)!r}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert not (root / "folder" / "data.bin").exists()
    assert (fetch("set", source, root) / "data.bin").read_bytes() == CONTENT


def test_a_file_changed_after_the_download_is_refused(tmp_path: Path, source: Source) -> None:
    folder = fetch("set", source, tmp_path / "cache")
    changed = bytearray(CONTENT)
    changed[1234] ^= 1
    (folder / "data.bin").write_bytes(changed)
    with pytest.raises(DataError, match=r"data\.bin has changed since it was downloaded.*Delete it"):
        fetch("set", source, tmp_path / "cache")
    (folder / "data.bin").unlink()
    assert (fetch("set", source, tmp_path / "cache") / "data.bin").read_bytes() == CONTENT


def test_a_file_of_the_user_needs_no_sum(tmp_path: Path, source: Source) -> None:
    (tmp_path / "cache" / "folder").mkdir(parents=True)
    (tmp_path / "cache" / "folder" / "data.bin").write_bytes(b"mine")
    assert (fetch("set", source, tmp_path / "cache") / "data.bin").read_bytes() == b"mine"


def test_damaged_sums_are_named(tmp_path: Path, source: Source) -> None:
    folder = fetch("set", source, tmp_path / "cache")
    for damaged in (b"abc\n", b"\xff\xfe\n"):
        (folder / "SHA256SUMS").write_bytes(damaged)
        with pytest.raises(DataError, match="SHA256SUMS is damaged"):
            fetch("set", source, tmp_path / "cache")


def test_processes_that_fill_one_cache_wait_for_one_another(tmp_path: Path, source: Source) -> None:
    root = tmp_path / "cache"
    code = (
        "from pathlib import Path; from nearest_etf.torchport.training.data.download import Source, fetch\n"
        f"print(fetch('set', Source('folder', ('data.bin',), {source.downloads!r}), Path({str(root)!r})))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in processes:
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, out.strip()) == (0, str(root / "folder")), errors
    assert visible(root / "folder") == ["SHA256SUMS", "data.bin"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Let the server answer range requests, and record them."""
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


def test_an_interrupted_download_continues(tmp_path: Path, source: Source, asked: list[str | None]) -> None:
    root = tmp_path / "cache"
    with pytest.raises(DataError, match="another attempt continues the download"):
        fetch("set", source, root)
    kept = (root / "data.tar.gz.part").stat().st_size
    assert kept > 100_000
    assert (fetch("set", source, root) / "data.bin").read_bytes() == CONTENT
    assert asked == [None, f"bytes={kept}-"]
    assert not (root / "data.tar.gz.part").exists()


def part_of_a_download(root: Path, content: bytes) -> None:
    root.mkdir()
    (root / "data.tar.gz.part").write_bytes(content)


def test_a_complete_part_is_accepted(tmp_path: Path, source: Source, asked: list[str | None]) -> None:
    part_of_a_download(tmp_path / "cache", (tmp_path / "site" / "data.tar.gz").read_bytes())
    assert (fetch("set", source, tmp_path / "cache") / "data.bin").is_file()
    assert len(asked) == 1


def test_a_foreign_part_is_refused_and_removed(tmp_path: Path, source: Source, asked: list[str | None]) -> None:
    part_of_a_download(tmp_path / "cache", b"foreign")
    with pytest.raises(DataError, match="MD5 sum is wrong"):
        fetch("set", source, tmp_path / "cache")
    assert visible(tmp_path / "cache") == []
    assert (fetch("set", source, tmp_path / "cache") / "data.bin").is_file()
    assert asked == ["bytes=7-", None]


def test_a_server_without_ranges_sends_the_whole_file(tmp_path: Path, source: Source) -> None:
    part_of_a_download(tmp_path / "cache", b"the beginning of something")
    assert (fetch("set", source, tmp_path / "cache") / "data.bin").read_bytes() == CONTENT


def test_offline_the_error_names_the_file_and_its_place(tmp_path: Path) -> None:
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
