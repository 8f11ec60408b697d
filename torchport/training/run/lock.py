"""A lock on a run folder, so that one process at a time writes it; the operating system releases it with the process.

The file .lock in the folder names the process, for the error message of another one. It is removed when the run ends; a
file left by a killed run does not lock the folder. Needs no torch.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

from .reading import RunError

LOCK = ".lock"
PATIENCE = 0.5  # seconds to wait for a process that only checks the lock
ENDING = 15.0  # seconds to wait for the worker processes of a killed run to end


class FolderLock:
    """The lock of a run folder.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lock, found = FolderLock(Path(folder)), list[str]()
    ...     _ = lock.take()
    ...     try:
    ...         FolderLock(Path(folder)).take()
    ...     except RunError as error:
    ...         found.append(str(error).partition(": ")[2])
    ...     lock.release()
    ...     FolderLock(Path(folder)).look()
    >>> found
    ['wait until it ends, or choose another --output']
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / LOCK
        self._lock: Any = None

    def look(self) -> None:
        """Refuse a folder that another process holds.

        Raises
        ------
        RunError
            If another process holds it; the message names the process and its machine.
        """
        if self._lock is None and self.path.is_file():
            with contextlib.suppress(OSError, NotImplementedError):
                self._acquire().release()

    def take(self) -> str:
        """Lock the existing folder; return a line for the log if the file system has no locks, else an empty one.

        Raises
        ------
        RunError
            If another process holds it, or nothing can be written there.
        """
        try:
            lock = self._acquire()
        except (OSError, NotImplementedError) as error:
            if not os.access(self.folder, os.W_OK):
                raise RunError(f"{self.folder} cannot be written: choose another --output") from error
            return f"{self.folder} cannot be locked ({error}): make sure that no other process writes to it"
        self._lock = lock
        with contextlib.suppress(OSError):  # Windows refuses writes to a locked file
            self.path.write_text(f"{os.getpid()} {socket.gethostname()}\n", encoding="utf-8")
        return ""

    def release(self) -> None:
        """Release the folder."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
            self._lock.release()
            self._lock = None

    def _acquire(self) -> Any:
        from filelock import FileLock, Timeout

        lock = FileLock(self.path, thread_local=False)
        process, host = self._holder()
        try:
            lock.acquire(timeout=PATIENCE if process is None or _lives(process, host) else ENDING)
        except Timeout as error:
            who = f"process {process} on {host}" if process is not None else "another process"
            raise RunError(
                f"{self.folder} is in use by {who}: wait until it ends, or choose another --output"
            ) from error
        return lock

    def _holder(self) -> tuple[int | None, str]:
        """Process and machine that the lock file names."""
        try:
            process, host = self.path.read_text(encoding="utf-8").split()
            return int(process), host
        except (OSError, ValueError):
            return None, ""


def _lives(process: int, host: str) -> bool:
    """Whether a process exists, as far as this machine can tell."""
    if host != socket.gethostname() or not hasattr(os, "getuid"):  # on Windows, signal 0 ends a process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
