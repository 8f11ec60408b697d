"""Commands in children that are forked from one process, which has imported all that they need: a start costs nothing.

    command("etf-train", ["digits", "--epochs", "2"], folder)

Each child is a process group of its own, at the end of which no process is left.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

MAINS = {
    "etf-verify": "nearest_etf.reference.etf_verify",
    "etf-train": "nearest_etf.torchport.training.etf_train",
    "etf-measure": "nearest_etf.torchport.training.etf_measure",
    "etf-report": "nearest_etf.torchport.training.etf_report",
    "etf-export": "nearest_etf.export.etf_export",
    "etf-predict": "nearest_etf.export.etf_predict",
}
# What commands import when they are at work.
LATER = (
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "nearest_etf.torchport.training.sweep",
    "nearest_etf.torchport.training.measure",
    "nearest_etf.torchport.training.measure_model",
    "nearest_etf.torchport.training.report.write",
    "nearest_etf.export",
    "nearest_etf.export.from_run",
    "nearest_etf.export.prediction_rows",
    "nearest_etf.common.photo_files",
    "filelock",
    "scipy.stats",
    "sklearn.datasets",
    "torch._dynamo",
)
NO_TRACE = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes
    ----------
    status : int
        Exit status; of a child that a signal ended, its number with a minus.
    out, err : str
    seconds : float
    hung : bool
        Ended by us, after its time.
    interrupted : bool
        Sent SIGINT by us, after its time.
    """

    status: int
    out: str
    err: str
    seconds: float
    hung: bool = False
    interrupted: bool = False

    @property
    def last(self) -> str:
        """The last line on standard error."""
        lines = self.err.strip().splitlines()
        return lines[-1] if lines else ""


def get_ready() -> None:
    """Import everything once, before the first fork."""
    warnings.simplefilter("ignore")
    for name in (*MAINS.values(), *LATER):
        importlib.import_module(name)
    torch.set_num_threads(1)  # a fork has none of its parent's threads


def cpu_seconds() -> float:
    """What this process and its children, those that have ended, took of the processor."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(sum(one.ru_utime + one.ru_stime for one in used), 1)


def main_of(prog: str) -> Any:
    """The module of a command."""
    return importlib.import_module(MAINS[prog])


def command(prog: str, arguments: Sequence[str], folder: Path, **options: Any) -> Ended:
    """Run a command in a folder; options as for `child`."""

    def body() -> int:
        sys.argv = [prog, *arguments]
        return int(main_of(prog).main(list(arguments)))

    return child(body, folder, **options)


def child(
    body: Callable[[], int],
    folder: Path,
    *,
    before: Callable[[], None] | None = None,
    patience: float = 60,
    gentle: bool = False,
    pipes: bool = False,
) -> Ended:
    """Run a function in a folder, in a child of its own, which calls `before` first.

    After `patience` seconds it is killed; a `gentle` call interrupts it first, as Ctrl-C does, and waits as long again.
    What it prints goes to files, or with `pipes` to these, which nobody reads meanwhile.
    """
    began = time.monotonic()
    with _stream(pipes) as (out, out_end), _stream(pipes) as (err, err_end):
        process = os.fork()
        if process == 0:
            _work(body, folder, before, out_end, err_end)
        _set_group(process)
        status, interrupted = _wait(process, began + patience), False
        if status is None and gentle:
            os.kill(process, signal.SIGINT)
            status, interrupted = _wait(process, time.monotonic() + patience), True
        hung = status is None
        _end_group(process)
        if status is None:
            status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        texts: list[str] = []
        for file, end in ((out, out_end), (err, err_end)):
            if pipes:
                os.close(end)
            else:
                file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    return Ended(status, texts[0], texts[1], time.monotonic() - began, hung, interrupted)


@contextlib.contextmanager
def _stream(pipe: bool) -> Iterator[tuple[IO[bytes], int]]:
    """Where to read what a child prints, and the file descriptor that it prints to."""
    if not pipe:
        with tempfile.TemporaryFile() as file:
            yield file, file.fileno()
        return
    inside, outside = os.pipe()
    with open(inside, "rb") as file:
        yield file, outside


def _work(body: Callable[[], int], folder: Path, before: Callable[[], None] | None, out: int, err: int) -> None:
    """In the child: never returns."""
    status = 70
    try:
        _set_group(0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number, stream in ((out, 1), (err, 2), (os.open(os.devnull, os.O_RDONLY), 0)):
            os.dup2(number, stream)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(os.dup(stream), mode, encoding="utf-8", buffering=1)
            for stream, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        sys.dont_write_bytecode = True
        os.chdir(folder)
        if before is not None:
            before()
        status = body()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _set_group(process: int) -> None:
    with contextlib.suppress(OSError):  # the other of the two has done it
        os.setpgid(process, process)


def _wait(process: int, until: float) -> int | None:
    """The status of a child, or None if it is still at work then."""
    pause = 0.001
    while time.monotonic() < until:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(0.02, 1.5 * pause)
    return None


def _end_group(process: int) -> None:
    with contextlib.suppress(OSError):  # nobody is left
        os.killpg(process, signal.SIGKILL)
