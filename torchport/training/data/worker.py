"""Signals of worker processes, and the error after a worker was killed.

A worker ignores the signals of its process group; the process that started it ends it in order. If the system kills a
worker, torch raises its error wherever the run happens to be; `needing_workers` replaces it by one line.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from multiprocessing.util import Finalize
from types import FrameType

from ....common.errors import KILLED_WORKER, UserError, first_line


def ignore_signals(worker: int = 0, ending: Event | None = None) -> None:
    """Ignore Ctrl-C and SIGTERM in this process; for `DataLoader(worker_init_fn=…)`.

    A terminal, `timeout` and schedulers signal a whole process group. A worker that ended at the signal would lose the
    batch for which the training process waits. A worker whose training process is gone ends by itself.

    Parameters
    ----------
    worker : int
        Its number; not used.
    ending : Event, optional
        `process_ending()` of the process that started the worker: SIGTERM ends the worker once it is set.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        if ending is not None and ending.is_set():
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave)


@functools.cache
def process_ending() -> Event:
    """An event that is set when this process ends; Python then terminates the remaining workers and waits for them."""
    ending = multiprocessing.Event()
    Finalize(None, ending.set, exitpriority=0)
    return ending


class WorkerError(UserError):
    """A worker process that was killed."""

    exit_status = 1


@contextlib.contextmanager
def needing_workers() -> Iterator[None]:
    """Replace torch's error about a killed worker process by one line with the remedy.

    Raises
    ------
    WorkerError
        In place of the RuntimeError that torch raises.

    Examples
    --------
    >>> with needing_workers():  # doctest: +ELLIPSIS
    ...     raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
    Traceback (most recent call last):
    ...
    nearest_etf.torchport.training.data.worker.WorkerError: a worker process that reads images was killed ...
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith(KILLED_WORKER):
            raise
        raise WorkerError(
            f"a worker process that reads images was killed ({first_line(error)}), perhaps because memory ran "
            "out: try fewer --workers; etf-train --resume continues from the last checkpoint"
        ) from error
