"""The download of onnxruntime-web into the data directory, and its errors."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from nearest_etf.export.page import runtime
from nearest_etf.export.page.runtime import FILE, PROGRAM, SCRIPT, PageError, fetch_runtime, member


def archive(path: Path, files: dict[str, bytes], link: str | None = None) -> Path:
    """A tar archive with these files, and optionally a link."""
    with tarfile.open(path, "w:gz") as out:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            out.addfile(entry, io.BytesIO(content))
        if link is not None:
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            out.addfile(entry)
    return path


def test_the_download_is_kept_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = archive(tmp_path / "package.tgz", {SCRIPT: b"var ort", PROGRAM: b"\0asm", "package/other": b""})
    monkeypatch.setattr(runtime, "SHA512", runtime.sha512(package))
    asked = []

    def download(address: str, output: Any, _: object) -> None:
        asked.append(address)
        Path(output).write_bytes(package.read_bytes())

    monkeypatch.setattr(runtime, "resuming_download", download)
    for _ in range(2):
        assert fetch_runtime(tmp_path / "cache") == runtime.Runtime("var ort", b"\0asm")
    assert asked == ["https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-1.18.0.tgz"]


def test_a_missing_network_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(runtime, "resuming_download", download)
    with pytest.raises(
        PageError, match=r"could not be downloaded from https.*\(ConnectionError\): download it"
    ) as caught:
        fetch_runtime(tmp_path)
    assert str(tmp_path / FILE) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "resuming_download", lambda _, output, __: Path(output).write_bytes(b"another"))
    with pytest.raises(PageError, match="its SHA-512 is wrong"):
        fetch_runtime(tmp_path)
    assert not (tmp_path / FILE).exists()
    (tmp_path / FILE).write_bytes(b"changed")
    with pytest.raises(PageError, match="has changed since it was downloaded: delete it"):
        fetch_runtime(tmp_path)


@pytest.mark.parametrize(
    ("files", "link", "reason"),
    [
        ({"package/other": b""}, None, "damaged or of another kind"),
        ({}, SCRIPT, "as a link or with 0 bytes"),
        ({SCRIPT: bytes(65)}, None, "with 65 bytes: expected a file of at most 64 bytes"),
    ],
)
def test_members_are_plain_files_of_bounded_size(
    files: dict[str, bytes], link: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "LARGEST_MEMBER", 64)
    with pytest.raises(PageError, match=reason):
        member(archive(tmp_path / "package.tgz", files, link), SCRIPT)


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "package.tgz").write_bytes(b"no archive")
    with pytest.raises(PageError, match=r"package\.tgz is damaged or of another kind"):
        member(tmp_path / "package.tgz", SCRIPT)
