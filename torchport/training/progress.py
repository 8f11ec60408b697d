"""The log lines and progress bars of a run, and its stop after a signal."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from tqdm import tqdm

from ..heads import Classifier
from .curves import draw_curves
from .data.batches import Batch, Loader
from .data.fingerprint import SPLIT_NAMES
from .data.images import ImageData
from .run.folder import RunFolder
from .run.reading import Row, Run, read_rows
from .run.settings import Settings

Made = TypeVar("Made")
ONE_KEY_PRESS = 1.0  # seconds within which torchrun and the terminal may both deliver the same Ctrl-C


class Progress:
    """Lines for log.txt, also printed, and a progress bar if standard error is a terminal.

    Parameters
    ----------
    folder : RunFolder
    total, done : int
        Steps of the run, and steps done before it was resumed.
    writing : bool
        False for all processes but the first: neither print nor log.
    quiet : bool
        Log only.
    warned : sequence of str
        Earlier warnings, for the log. Warnings inside the context are shown as usual and logged.
    """

    def __init__(
        self,
        folder: RunFolder,
        total: int,
        done: int,
        *,
        writing: bool = True,
        quiet: bool = False,
        warned: Sequence[str] = (),
    ) -> None:
        self.folder, self.writing, self.printing = folder, writing, writing and not quiet
        self._warned, self._warnings = warned, contextlib.ExitStack()
        self.hidden = not self.printing or not sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, unit="step", disable=self.hidden, leave=False)

    def __enter__(self) -> Self:
        if self.writing:
            for line in self._warned:
                self.folder.log(line)
            self._warnings.enter_context(warnings_also(self.folder.log))
        return self

    def __exit__(self, *exception: object) -> None:
        self._warnings.close()
        self.bar.close()

    def advance(self) -> None:
        """Count one step."""
        self.bar.update()

    def part(self, name: str, total: int) -> tqdm[Any]:
        """A second bar, for one pass over the images of a split."""
        return tqdm(total=total, desc=name, unit="img", disable=self.hidden, leave=False)

    def log(self, line: str) -> None:
        """Log a line, and print it to standard error."""
        if self.writing:
            self.folder.log(line)
        if self.printing:
            tqdm.write(line, file=sys.stderr)


@contextlib.contextmanager
def warnings_also(to: Callable[[str], object]) -> Iterator[None]:
    """Inside this context, warnings are shown as usual and also passed to a function, one line each."""
    show = warnings.showwarning

    def shown(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: Any, **named: Any
    ) -> None:
        to(f"warning: {' '.join(str(message).split())}")
        show(message, category, filename, lineno, *more, **named)

    warnings.showwarning = shown
    try:
        yield
    finally:
        warnings.showwarning = show


def with_warnings(function: Callable[..., Made], *arguments: Any) -> tuple[Made, list[str]]:
    """The result of a function, and its warnings, one line each, which are shown as usual."""
    lines: list[str] = []
    with warnings_also(lines.append):
        return function(*arguments), lines


def run_line(
    settings: Settings, data: ImageData, model: Classifier[Any], device: torch.device, world_size: int, steps: int
) -> str:
    """One line: data, model, optimizer, seed and device."""
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    counts = [f"{len(split)} {SPLIT_NAMES[name]}" for name, split in data.splits().items()]
    listed = " and ".join([", ".join(counts[:-1]), counts[-1]] if counts[1:] else counts)
    sizes, backbone = f"{listed} images {'x'.join(map(str, data.image_shape))}", Path(settings.backbone).name
    if data.name == "ufm":
        sizes, backbone = f"{len(data.train)} samples", "free features"
    where = f"{device}" + (f" in {world_size} processes" if world_size > 1 else "")
    return (
        f"{data.name}: {sizes}, K = {data.num_classes}; {backbone}, d = {model.head.num_features}, "
        f"{settings.head} head, {parameters:,} parameters; {settings.optimizer}, epochs: {settings.epochs}, steps in "
        f"each: {steps}, batch size: {settings.batch_size}; seed {settings.seed}, on {where}"
    )


def resumed_line(before: Settings, settings: Settings, epoch: int, step: int, steps: int) -> str:
    """One line: where a resumed run continues, and what has changed.

    >>> resumed_line(Settings(epochs=3), Settings(epochs=4), 3, 5, 5)
    'resumed in epoch 3 of 4 after 5 of 5 steps; extended from 3 epochs'
    """
    line = f"resumed in epoch {epoch} of {settings.epochs} after {step} of {steps} steps"
    if settings.epochs == before.epochs:
        return line
    stretched = f", with the rest of a {settings.schedule} schedule over {settings.epochs}"
    return f"{line}; extended from {before.epochs} epochs{stretched if settings.schedule != 'none' else ''}"


def epoch_line(row: Row, epochs: int) -> str:
    """One line about an epoch; epoch 0, before the first step, has no running metrics.

    >>> epoch_line({"epoch": 0, "val_accuracy": 0.5}, 20)
    'epoch  0/20  val 50.00 %'
    >>> epoch_line({"epoch": 3, "running_loss": 0.5, "running_accuracy": 0.9, "images_per_second": 1e4}, 20)
    'epoch  3/20  loss 0.5000  running 90.0 %  10000 img/s'
    """
    words = [f"epoch {int(row['epoch']):>{len(str(epochs))}}/{epochs}"]
    if "running_loss" in row:
        words += [f"loss {row['running_loss']:.4f}", f"running {100 * row['running_accuracy']:.1f} %"]
    words += accuracies(row)
    words += [f"{name.upper()} {row[f'train_{name}']:.3g}" for name in ("nc1", "nc2", "nc3") if f"train_{name}" in row]
    words += [f"{row['images_per_second']:.0f} img/s"] if "images_per_second" in row else []
    return "  ".join(words)


def result_line(run: Run) -> str:
    """One line: the checkpoint that is the result of a run, and its accuracies.

    >>> result_line(Run(Path("nowhere"), {}, {}, [{"epoch": 2, "train_accuracy": 0.9, "test_accuracy": 0.8}]))
    'result: last.pt (epoch 2)  train 90.00 %  test 80.00 %'
    """
    row = run.result_row
    reason = f", {run.reason}" if run.reason else ""
    return "  ".join([f"result: {run.result}.pt (epoch {int(row['epoch'])}{reason})", *accuracies(row)])


def recalibrated_line(running: Row, exact: Row) -> str:
    """One line: accuracies of the last epoch's model with running and with exact class means.

    >>> running, exact = ({"train_accuracy": a, "test_accuracy": b} for a, b in ((0.8, 0.5), (0.85, 0.75)))
    >>> recalibrated_line(running, exact)
    'train accuracy with running means 80.00 %, with exact means 85.00 %; test 50.00 % and 75.00 %'
    """
    measured = [name for name in SPLIT_NAMES if f"{name}_accuracy" in running.keys() & exact.keys()]
    pairs = [[f"{100 * figures[f'{name}_accuracy']:.2f} %" for figures in (running, exact)] for name in measured]
    words = [f"{measured[0]} accuracy with running means {pairs[0][0]}, with exact means {pairs[0][1]}"]
    return "; ".join(words + [f"{name} {a} and {b}" for name, (a, b) in zip(measured[1:], pairs[1:], strict=True)])


def accuracies(row: Row) -> list[str]:
    """Accuracies of the splits in a row, as in ["train 99.00 %", "test 97.50 %"]."""
    return [f"{name} {100 * row[f'{name}_accuracy']:.2f} %" for name in SPLIT_NAMES if f"{name}_accuracy" in row]


def resume_flags(data_dir: str | Path | None, device: object, recalibrate: bool | None, quiet: bool) -> str:
    """Arguments of `train` that no run folder records, as flags of the command that resumes the run.

    >>> resume_flags("my data", "cpu", False, False), resume_flags("-x", None, None, True), resume_flags(*4 * [None])
    ("--data-dir 'my data' --device cpu --no-recalibrate", '--data-dir=-x --quiet', '')
    """
    words = flag("--data-dir", data_dir) + flag("--device", device)
    words += ["--no-recalibrate"] if recalibrate is False else []
    return shlex.join(words + (["--quiet"] if quiet else []))


def flag(name: str, value: object) -> list[str]:
    """A flag and its value as words of a command line; none for None.

    >>> flag("--output", "runs/x"), flag("--output", "-x")
    (['--output', 'runs/x'], ['--output=-x'])
    """
    if value is None:
        return []
    return [f"{name}={value}"] if str(value).startswith("-") else [name, str(value)]


def launcher() -> str:
    """The program that runs `etf-train` here: itself, or torchrun if there are several processes."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return "etf-train"
    per_node = os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size())
    return f"torchrun --nproc-per-node {per_node} -m {__package__}.etf_train"


class Stopped(SystemExit):
    """The end of a run after a signal; the exit status is 128 + the number of the signal, as in a shell.

    Attributes
    ----------
    reason : str
        The signal, and the state of the run.
    command : str
        The command that resumes the run; empty if there is nothing to resume.
    launcher : str
        The beginning of that command, see `launcher`.
    """

    def __init__(self, reason: str, command: str, launcher: str, code: int) -> None:
        super().__init__(code)
        self.reason, self.command, self.launcher = reason, command, launcher

    @property
    def message(self) -> str:
        """Reason and command."""
        return f"{self.reason}: {self.command}" if self.command else self.reason


class Interrupt:
    """Inside this context SIGINT and SIGTERM only set a flag, which the run reads between two batches.

    A second Ctrl-C ends the run at once. A second SIGTERM does not, because `timeout` sends one to the process and one
    to its group. A signal that the process was started to ignore stays ignored.

    Several processes must stop after the same step, whichever of them receives the signal. Each step starts an
    all-reduce of the flags on the CPU and reads the result of the previous step's, so that no process waits.

    Parameters
    ----------
    folder : RunFolder
        For the command that resumes the run.
    flags : str
        Further flags of that command, see `resume_flags`.
    saying : bool
        Print to standard error that the run is stopping.
    """

    def __init__(self, folder: RunFolder, flags: str = "", *, saying: bool = True) -> None:
        self.folder, self.flags, self.saying = folder, flags, saying
        self.saved = folder.resumed  # whether there is a checkpoint to resume from; the loop sets it
        self.received = 0
        several = dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo") if several else None
        self._flag = torch.zeros((), dtype=torch.int64)
        self._exchange: dist.Work | None = None
        self._previous: dict[int, Any] = {}
        self._process, self._noted_at = os.getpid(), 0.0

    def agreed(self) -> bool:
        """Whether to stop now; called after every step, with the same answer in all processes."""
        if self._group is None:
            return self.received > 0
        if self._exchange is not None:
            self._exchange.wait()
            if self._flag > 0:
                self.received, self._exchange = int(self._flag), None
                return True
        self._flag.fill_(self.received)
        self._exchange = dist.all_reduce(self._flag, dist.ReduceOp.MAX, self._group, async_op=True)
        return False

    def anywhere(self) -> bool:
        """Whether any process has received a signal; a collective call, which all processes must make."""
        if self._group is not None:
            flag = torch.tensor(self.received)
            dist.all_reduce(flag, dist.ReduceOp.MAX, self._group)
            self.received = int(flag)
        return self.received > 0

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is signal.SIG_IGN:  # as in a job that a script starts with `&`
                continue
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: signals keep their handlers
                return self
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if kind is None and self._exchange is not None:
            self._exchange.wait()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that has just been forked
            return
        first, now = not self.received, time.monotonic()
        if not first and number == signal.SIGINT and now - self._noted_at > (ONE_KEY_PRESS if self._group else 0.0):
            raise KeyboardInterrupt
        if not first:
            return
        self.received, self._noted_at = number, now
        if self.saying:
            line = f"\n{signal.Signals(number).name}: stopping after this batch (Ctrl-C again ends at once)\n"
            with contextlib.suppress(OSError):  # not through sys.stderr, which may be in the middle of a line
                os.write(2, line.encode())

    def stop(self) -> Stopped:
        """The exception that ends the run."""
        name, launch = signal.Signals(self.received).name, launcher()
        command = f"{launch} --resume {shlex.join(flag('--output', self.folder.path))} {self.flags}".rstrip()
        state = "saved; resume with" if self.saved else "stopped before the first checkpoint; start again with"
        if self.folder.replacing:
            command, state = "", f"stopped before the first checkpoint; {self.folder.path} keeps its earlier run"
        return Stopped(f"{name}: {state}", command, launch, 128 + self.received)


@dataclass(frozen=True)
class Watched:
    """A loader whose ordered passes show their progress and stop the run between two batches after a signal.

    With several processes, each leaves its pass on its own signal, and all stop at the end of the pass, because the
    next operation is collective.
    """

    loader: Loader
    name: str
    size: int
    progress: Progress
    interrupt: Interrupt

    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.loader.steps_per_epoch()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Training batches of one epoch from step `start`."""
        return self.loader.epoch(epoch, start)

    def ordered(self) -> Iterator[Batch]:
        """Every image once.

        Raises
        ------
        Stopped
            If this or another process has received a signal.
        """
        with self.progress.part(f"evaluating {self.name}", self.size) as bar:
            for images, labels in self.loader.ordered():
                if self.interrupt.received:
                    break
                yield images, labels
                bar.update(len(labels))
        if self.interrupt.anywhere():
            raise self.interrupt.stop()


def watched(
    loaders: Mapping[str, Loader], data: ImageData, progress: Progress, interrupt: Interrupt
) -> dict[str, Loader]:
    """The loaders of all splits, each `Watched`."""
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    sizes = {name: -(-len(split) // world_size) for name, split in data.splits().items()}
    return {name: Watched(loader, name, sizes[name], progress, interrupt) for name, loader in loaders.items()}


@contextlib.contextmanager
def picture(folder: RunFolder, enabled: bool) -> Iterator[None]:
    """Draw the curves from the metrics written so far, however the run ends."""
    try:
        yield
    finally:
        trouble = draw_curves(rows, folder.path / "curves.png") if enabled and (rows := read_rows(folder.path)) else ""
        if trouble:
            folder.log(trouble)
