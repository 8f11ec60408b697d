"""Atomic writing of files, and reading of files that may be damaged or of another kind.

Every read has an upper bound on its size. Files of this package are checked against their seals (see `seals.py`).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import UserError, first_line
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
    old contents or the new ones, complete. If `path` is a symbolic link, its target is replaced. A device or a pipe,
    such as /dev/stdout, is written when the block ends.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder) / "figures.bin") as file:
    ...         _ = file.write(b"123")
    ...     sorted(p.name for p in Path(folder).iterdir())
    ['figures.bin']
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        contents = io.BytesIO()
        yield contents
        with open(path, "wb") as device:
            device.write(contents.getvalue())
        return
    temporary = path.with_name(path.name + ".tmp")
    file = None
    try:
        with named(path), _Output(io.FileIO(temporary, "w+b")) as file:
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
        The type that is raised. A `UserError` passes unchanged.

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
        raise error_type(f"{path} is damaged or of another kind ({describe(error)}): expected {expected}") from error


def read_bytes(
    path: str | os.PathLike[str],
    expected: str,
    error_type: type[UserError] = FileError,
    largest: int = LARGEST_TEXT,
) -> bytes:
    """The contents of a file of at most `largest` bytes; a larger file, or an endless device, is refused."""
    with reading(path, expected, error_type), open(path, "rb") as file:
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
