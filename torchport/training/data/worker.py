"""What a worker process does with the signals of its group: nothing. The process that began it ends it in order."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from multiprocessing.synchronize import Event
from multiprocessing.util import Finalize
from types import FrameType


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
