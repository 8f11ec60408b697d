"""Atomic writing of files, and reading of files that may be damaged or of another kind.

Every read has an upper bound on its size. Files of this package are checked against their seals (see `seals.py`).
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from .errors import KILLED_WORKER, UserError, first_line
from .seals import Damage, opened_json, sealed_json

LARGEST_TEXT = 2**28  # bytes of a text file; metrics of 100,000 epochs take half of it
LONGEST_REASON = 200  # characters of another library's error message


class FileError(UserError):
    """A file that is missing, damaged or of another kind."""


class _Output(io.BufferedRandom):
    """A file that keeps the OSError of a failed `write`, which torch replaces by an error of its own."""

    write_error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.write_error = error
            raise


@contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add the name of a file to an OSError that lacks it, such as the one of a full disk.

    >>> with named("last.pt"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    ...
    OSError: [Errno 28] No space left on device: 'last.pt'
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file that replaces `path` when the block ends without an error.

    The file is written beside `path` as NAME.tmp, synced and renamed: at any time, also after a crash, `path` has the
    old contents or the new ones, complete. Of several writers, the last to end wins. If `path` is a symbolic link, its
    target is replaced. A device or a pipe, such as /dev/stdout, is written when the block ends.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder) / "figures.bin") as file:
    ...         _ = file.write(b"123")
    ...     sorted(p.name for p in Path(folder).iterdir())
    ['figures.bin']
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        contents = io.BytesIO()
        yield contents
        with open(path, "wb", opener=at_once) as device:
            device.write(contents.getvalue())
        return
    path = Path(os.path.realpath(path))
    file = None
    with named(path), _claimed(path) as (raw, temporary):
        try:
            with _Output(raw) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, Exception) and file is not None and file.write_error not in (None, error):
                file.write_error.filename = str(path)
                raise file.write_error from error
            raise
    with contextlib.suppress(OSError):  # some systems cannot open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the new name, too, survives a power cut
        finally:
            os.close(folder)


@contextmanager
def _claimed(path: Path) -> Iterator[tuple[io.FileIO, Path]]:
    """An empty file that no other writer has, and its name: NAME.tmp, or another one while somebody writes that.

    The lock on it ends with its process, so that what a killed one has left is written over.
    """
    for name in (f"{path.name}.tmp", f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp"):
        temporary = path.with_name(name)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)  # and no O_TRUNC
        file = io.FileIO(os.open(temporary, flags, 0o666), "r+b")
        if _lock(file) and _is_at(file, temporary):
            break
        file.close()
    held = os.dup(file.fileno()) if fcntl else None  # until the file has its final name
    try:
        if os.fstat(file.fileno()).st_size:
            file.truncate()
        yield file, temporary
    finally:
        file.close()
        if held is not None:
            os.close(held)


def _lock(file: io.FileIO) -> bool:
    """Lock a file, where files can be locked; False if another writer holds it."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _is_at(file: io.FileIO, path: Path) -> bool:
    """Whether a regular file still has this name: another writer may have renamed it before it was locked."""
    found = os.fstat(file.fileno())
    try:
        return stat.S_ISREG(found.st_mode) and os.path.samestat(found, os.stat(path))
    except FileNotFoundError:
        return False


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove the NAME.tmp that killed writers have left in a folder; those that somebody writes stay."""
    for path in Path(folder).glob("*.tmp"):
        with contextlib.suppress(OSError), io.FileIO(path, "r+b") as file:
            if _lock(file):
                if fcntl is None:  # Windows removes no open file
                    file.close()
                path.unlink()


def write_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a whole file, text as UTF-8; see `replacing`."""
    with replacing(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def append_line(path: str | os.PathLike[str], line: str, *, sync: bool = False) -> None:
    """Append a line to a text file; with `sync`, flush it to the disk."""
    with named(path), open(path, "a", encoding="utf-8") as file:
        file.write(line)
        if sync:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def reading(path: str | os.PathLike[str], expected: str, error_type: type[UserError] = FileError) -> Iterator[None]:
    """Turn any error in the block into a one-line error that names the file.

    Parameters
    ----------
    path : path
    expected : str
        What the file should be, as in "the settings of a run".
    error_type : type of UserError
        The type that is raised. A `UserError` passes unchanged, and so does the error about a killed worker process.

    Examples
    --------
    >>> with reading("nowhere.json", "JSON"):
    ...     open("nowhere.json")
    Traceback (most recent call last):
    ...
    nearest_etf.common.files.FileError: nowhere.json is missing: expected JSON
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise error_type(f"{path} is missing: expected {expected}") from error
    except Damage as error:
        raise error_type(f"{path} is damaged ({error}): expected {expected}") from error
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise error_type(f"{path} cannot be read ({reason}): expected {expected}") from error
    except Exception as error:
        if str(error).startswith(KILLED_WORKER):
            raise
        raise error_type(f"{path} is damaged or of another kind ({describe(error)}): expected {expected}") from error


def at_once(name: str, flags: int) -> int:
    """An `opener` that does not wait for the other end of a named pipe."""
    number = os.open(name, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    if hasattr(os, "O_NONBLOCK"):
        os.set_blocking(number, True)
    return number


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[io.BufferedReader]:
    """A regular file opened for reading; a pipe, which might be waited for, or a device without end is refused."""
    with open(path, "rb", opener=at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device", str(path))
        yield file


def read_bytes(
    path: str | os.PathLike[str],
    expected: str,
    error_type: type[UserError] = FileError,
    largest: int = LARGEST_TEXT,
) -> bytes:
    """The contents of a file of at most `largest` bytes; a larger file, or an endless device, is refused."""
    with reading(path, expected, error_type), open(path, "rb", opener=at_once) as file:
        size = os.fstat(file.fileno()).st_size or largest  # 0 for a pipe; `read` allocates its argument at once
        contents = b"" if size > largest else file.read(size + 1)
        if size > largest or len(contents) > size:
            raise Damage(f"more than {largest} bytes" if size >= largest else "it grew while it was read")
        return contents


def read_text(path: str | os.PathLike[str], expected: str, error_type: type[UserError] = FileError) -> str:
    """The contents of a UTF-8 text file, with \\r\\n converted to \\n."""
    contents = read_bytes(path, expected, error_type)
    with reading(path, expected, error_type):
        return contents.decode("utf-8").replace("\r\n", "\n")


def read_json(path: str | os.PathLike[str], expected: str, error_type: type[UserError] = FileError) -> Any:
    """The value in a JSON file; if `write_json` wrote the file, any later change is an error."""
    text = read_text(path, expected, error_type)
    with reading(path, expected, error_type):
        return opened_json(json.loads(text))


def write_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Write a JSON object with a seal, which `read_json` checks and removes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(f"{folder}/x.json", {"epoch": 3})
    ...     read_json(f"{folder}/x.json", "figures")
    {'epoch': 3}
    """
    write_file(path, json.dumps(sealed_json(value), indent=2) + "\n")


def describe(error: BaseException) -> str:
    """Type and first line of an error, as in "KeyError: 'settings'"."""
    line = first_line(error)
    line = line if line == type(error).__name__ else f"{type(error).__name__}: {line}"
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}…"
