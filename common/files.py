"""Files: the one way to write them, whole or not at all, and the one way to read what may be damaged or foreign."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import UserError, first_line


class FileError(UserError):
    """A file that is missing, damaged or of another kind."""


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends without an error.

    It is written beside `path` as NAME.tmp, synced and renamed: readers and crashes find the old contents or the new
    ones, never half of them.

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
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every system lets a folder be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, survives a power cut
        finally:
            os.close(folder)


def write_file(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a whole file, text as UTF-8; see `replacing`."""
    with replacing(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def reading(path: str | os.PathLike[str], expected: str, error_type: type[UserError] = FileError) -> Iterator[None]:
    """Turn whatever a library raises on a file that others made into one line about that file.

    Parameters
    ----------
    path : path
    expected : str
        What the file should be, as in "the settings of a run".
    error_type : type of UserError
        What is raised; errors of that kind pass as they are.

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
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise error_type(f"{path} cannot be read ({reason}): expected {expected}") from error
    except Exception as error:
        raise error_type(f"{path} is damaged or of another kind ({describe(error)}): expected {expected}") from error


def read_json(path: str | os.PathLike[str], expected: str, error_type: type[UserError] = FileError) -> Any:
    """The value in a JSON file."""
    with reading(path, expected, error_type):
        return json.loads(Path(path).read_text(encoding="utf-8"))


def describe(error: BaseException) -> str:
    """Type and first line of an error, as in "KeyError: 'settings'"."""
    line = first_line(error)
    return line if line == type(error).__name__ else f"{type(error).__name__}: {line}"
