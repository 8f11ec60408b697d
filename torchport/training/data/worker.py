"""What a worker process does with the signals of its group: nothing. The process that began it ends it in order.

And what becomes of a run whose worker the system has ended: torch's error, which comes out of whatever the run was
about to do, in one line.
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

from ....common.errors import UserError, first_line


def ignore_signals(worker: int = 0, ending: Event | None = None) -> None:
    """Ignore Ctrl-C and SIGTERM in this process; for `DataLoader(worker_init_fn=…)`.

    A terminal, `timeout` and schedulers signal a whole process group. A worker that died of it would take the batch
    with it for which the training process still waits. One that loses that process notices it and ends by itself.

    Parameters
    ----------
    worker : int
        Its number, which changes nothing.
    ending : Event, optional
        `process_ending()` of the process that began the worker: SIGTERM ends the worker once it is set.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        if ending is not None and ending.is_set():
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave)


@functools.cache
def process_ending() -> Event:
    """Set when this process ends: Python then terminates the workers that there still are, and waits for them."""
    ending = multiprocessing.Event()
    Finalize(None, ending.set, exitpriority=0)
    return ending


class WorkerError(UserError):
    """A worker process that is gone."""

    exit_status = 1


@contextlib.contextmanager
def needing_workers() -> Iterator[None]:
    """Say what to do where a worker process has been ended.

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
    nearest_etf.torchport.training.data.worker.WorkerError: a worker process that reads images was ended ...
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise WorkerError(
            f"a worker process that reads images was ended ({first_line(error)}), as by a system that runs out of "
            "memory: try fewer --workers; etf-train --resume goes on from the last checkpoint"
        ) from error
