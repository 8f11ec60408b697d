"""Writing is atomic, also in a killed process; reading turns every failure into one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nearest_etf.common.errors import UserError
from nearest_etf.common.files import (
    FileError,
    describe,
    read_bytes,
    read_json,
    read_text,
    reading,
    remove_leftovers,
    replacing,
    write_file,
    write_json,
)


class OurError(UserError):
    """A room's own error."""


@pytest.mark.parametrize(("content", "stored"), [("grün\n", "grün\n".encode()), (b"\x00\xff", b"\x00\xff"), ("", b"")])
def test_text_is_utf_8_and_bytes_are_bytes(tmp_path: Path, content: str | bytes, stored: bytes) -> None:
    write_file(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == stored
    write_file(str(tmp_path / "file"), b"again")
    assert (tmp_path / "file").read_bytes() == b"again"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with replacing(tmp_path / "file") as file:
            file.write(b"ne")
            raise error

    write_file(tmp_path / "file", "old")
    with pytest.raises(error):
        interrupted()
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_disk_keeps_the_old_file(tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write_file(tmp_path / "file", "old")
    with monkeypatch.context() as patched:
        patched.setattr(os, step, full)
        with pytest.raises(OSError, match="No space left"):
            write_file(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_process_killed_between_write_and_rename_leaves_the_old_file(tmp_path: Path) -> None:
    write_file(tmp_path / "file", "old")
    script = f"""
import os, signal
from nearest_etf.common.files import write_file
os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
write_file({str(tmp_path / "file")!r}, "new" * 100_000)
"""
    result = subprocess.run([sys.executable, "-c", script], check=False)
    assert result.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_text() == "old"
    assert (tmp_path / "file.tmp").stat().st_size == 300_000, "the new contents were synced before the rename"
    write_file(tmp_path / "file", "next")  # despite the leftover file
    assert (tmp_path / "file").read_text() == "next"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    with replacing(tmp_path / "file") as first:
        first.write(b"first, ")
        with replacing(tmp_path / "file") as second:
            remove_leftovers(tmp_path)
            second.write(b"second")
        assert (tmp_path / "file").read_bytes() == b"second"
        first.write(b"whole")
    assert (tmp_path / "file").read_bytes() == b"first, whole"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_writer_left_is_written_over_or_removed(tmp_path: Path) -> None:
    for name in ("file.tmp", "other.tmp"):
        (tmp_path / name).write_bytes(b"longer than what comes")
    write_file(tmp_path / "file", "short")
    remove_leftovers(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "short")]


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="links are followed here")
def test_a_link_in_place_of_the_temporary_file_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "file.tmp").symlink_to("precious")
    with pytest.raises(OSError, match=r"file\.tmp"):
        write_file(tmp_path / "file", "new")
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_file = os.open

    def refuse(path: str, *arguments: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied")
        return open_file(path, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)  # as on Windows, where a folder has no handle
        write_file(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "nowhere" / "file", "x")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(2, "No such file"), "x.bin is missing: expected a thing"),
        (PermissionError(13, "Permission denied"), "x.bin cannot be read (Permission denied): expected a thing"),
        (OSError("image file is truncated\nat 3"), "x.bin cannot be read (image file is truncated): expected a thing"),
        (KeyError("a"), "x.bin is damaged or of another kind (KeyError: 'a'): expected a thing"),
        (MemoryError(), "x.bin is damaged or of another kind (MemoryError): expected a thing"),
        (RuntimeError("one\ntwo"), "x.bin is damaged or of another kind (RuntimeError: one): expected a thing"),
    ],
)
@pytest.mark.parametrize("kind", [FileError, OurError])
def test_reading_turns_any_error_into_one_line(error: Exception, message: str, kind: type[UserError]) -> None:
    with pytest.raises(kind) as caught, reading("x.bin", "a thing", kind):
        raise error
    assert str(caught.value) == message
    assert caught.value.__cause__ is error


def test_reading_passes_our_own_errors_and_interrupts() -> None:
    killed = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")  # raised at any point of a run
    for error in (OurError("as it is"), KeyboardInterrupt(), killed):
        with pytest.raises(type(error)) as caught, reading("x.bin", "a thing"):
            raise error
        assert caught.value is error


@pytest.mark.parametrize("contents", [b"", b"not json", b'{"a": ', b"\xff\xfe", b"[" * 100_000])
def test_damaged_json(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "x.json").write_bytes(contents)
    with pytest.raises(OurError, match=r"x\.json is damaged or of another kind \(.*\): expected figures") as caught:
        read_json(tmp_path / "x.json", "figures", OurError)
    assert "\n" not in str(caught.value)


def test_json(tmp_path: Path) -> None:
    value = {"ä": [1, 2.5, None]}
    write_file(tmp_path / "x.json", json.dumps(value, ensure_ascii=False))
    assert read_json(tmp_path / "x.json", "figures") == value
    with pytest.raises(FileError, match=r"y\.json is missing: expected figures"):
        read_json(tmp_path / "y.json", "figures")
    with pytest.raises(FileError, match=r"cannot be read \(Is a directory\)"):
        read_json(tmp_path, "figures")


def test_changed_json_is_refused(tmp_path: Path) -> None:
    path, value = tmp_path / "x.json", {"epoch": 3, "names": ["ä"]}
    write_json(path, value)
    assert read_json(path, "figures") == value
    contents = path.read_text()
    path.write_text(contents.replace("3", "4", 1))
    complaint = (
        r'x\.json is damaged \(it has changed .* if the change is meant, delete "seal" in it\): expected figures'
    )
    with pytest.raises(OurError, match=complaint):
        read_json(path, "figures", OurError)
    path.write_text(contents.replace('"seal": "sha256', '"seal": "sha255'))
    with pytest.raises(FileError, match="it has changed"):
        read_json(path, "figures")


def test_files_above_the_size_limit_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345\r\n")
    assert read_bytes(tmp_path / "x", "bytes", largest=7) == b"12345\r\n"
    assert read_text(tmp_path / "x", "text") == "12345\n"
    with pytest.raises(OurError, match=r"x is damaged \(more than 6 bytes\): expected bytes"):
        read_bytes(tmp_path / "x", "bytes", OurError, largest=6)
    if Path("/dev/zero").exists():
        with pytest.raises(FileError, match=r"/dev/zero is damaged \(more than 100 bytes\)"):
            read_bytes("/dev/zero", "bytes", largest=100)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_that_nobody_writes_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read_bytes(tmp_path / "pipe", "text") == b""
    reader, writer = os.pipe()
    os.write(writer, b"whole")
    os.close(writer)
    assert read_bytes(f"/dev/fd/{reader}", "text") == b"whole"
    os.close(reader)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_written_if_somebody_reads_it(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    write_file(f"/dev/fd/{writer}", "whole")
    assert os.read(reader, 10) == b"whole"
    for number in (reader, writer):
        os.close(number)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device or address"):
        write_file(tmp_path / "pipe", "unread")


def test_describe_names_the_type_once() -> None:
    assert describe(ValueError("x" * 1000)) == f"ValueError: {'x' * 188}…"
    assert describe(KeyError("a")) == "KeyError: 'a'"
    assert describe(KeyError()) == "KeyError"
