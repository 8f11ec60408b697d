"""One process at a time writes a run folder: a lock of the operating system, which ends with the process that holds it.

The file .lock in the folder names that process, for the message to another one. It goes when the run ends; one that a
killed run leaves behind blocks nobody. Needs no torch.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

from .reading import RunError

LOCK = ".lock"
PATIENCE = 0.5  # seconds for a process that only looks, to have looked
ENDING = 15.0  # seconds for the worker processes of one that was killed, to notice it


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
            With the process and its machine.
        """
        if self._lock is None and self.path.is_file():
            with contextlib.suppress(OSError, NotImplementedError):
                self._acquire().release()

    def take(self) -> str:
        """Hold the folder, which exists; a line for the log where the file system has no locks.

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
            return f"{self.folder} cannot be locked ({error}): see to it that no other process writes to it"
        self._lock = lock
        with contextlib.suppress(OSError):  # Windows keeps others from writing to a file that is locked
            self.path.write_text(f"{os.getpid()} {socket.gethostname()}\n", encoding="utf-8")
        return ""

    def release(self) -> None:
        """Let others have the folder."""
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
    """Whether a process is there, as far as this machine can tell."""
    if host != socket.gethostname() or not hasattr(os, "getuid"):  # on Windows, signal 0 ends a process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
