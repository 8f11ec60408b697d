"""What a run prints and logs, and how a signal stops it after saving."""

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
ONE_KEY_PRESS = 1.0  # seconds in which torchrun and the terminal may both pass on the same Ctrl-C


class Progress:
    """Lines in log.txt, printed too, and a progress bar where standard error is a terminal.

    Parameters
    ----------
    folder : RunFolder
    total, done : int
        Steps of the run, and those done before it was resumed.
    writing : bool
        False for all processes but the first: neither print nor log.
    quiet : bool
        Log only.
    warned : sequence of str
        Warnings of before, for the log. Those inside the context are shown as ever, and logged.
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
    """Inside this context, warnings go to a function, too, a line each."""
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
    """What a function returns, and its warnings, a line each, which are shown as ever."""
    lines: list[str] = []
    with warnings_also(lines.append):
        return function(*arguments), lines


def run_line(
    settings: Settings, data: ImageData, model: Classifier[Any], device: torch.device, world_size: int, steps: int
) -> str:
    """What is trained on what, and where."""
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
    """Where a resumed run goes on, and what has changed.

    >>> resumed_line(Settings(epochs=3), Settings(epochs=4), 3, 5, 5)
    'resumed in epoch 3 of 4 after 5 of 5 steps; extended from 3 epochs'
    """
    line = f"resumed in epoch {epoch} of {settings.epochs} after {step} of {steps} steps"
    if settings.epochs == before.epochs:
        return line
    stretched = f", with the rest of a {settings.schedule} schedule over {settings.epochs}"
    return f"{line}; extended from {before.epochs} epochs{stretched if settings.schedule != 'none' else ''}"


def epoch_line(row: Row, epochs: int) -> str:
    """One line about an epoch; epoch 0 is before the first step, and has no running figures.

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
    """Which checkpoint is the result of a run, and its accuracies.

    >>> result_line(Run(Path("nowhere"), {}, {}, [{"epoch": 2, "train_accuracy": 0.9, "test_accuracy": 0.8}]))
    'result: last.pt (epoch 2)  train 90.00 %  test 80.00 %'
    """
    row = run.result_row
    reason = f", {run.reason}" if run.reason else ""
    return "  ".join([f"result: {run.result}.pt (epoch {int(row['epoch'])}{reason})", *accuracies(row)])


def recalibrated_line(running: Row, exact: Row) -> str:
    """Accuracies of the last epoch's model with running and with exact class means.

    >>> running, exact = ({"train_accuracy": a, "test_accuracy": b} for a, b in ((0.8, 0.5), (0.85, 0.75)))
    >>> recalibrated_line(running, exact)
    'train accuracy with running means 80.00 %, with exact means 85.00 %; test 50.00 % and 75.00 %'
    """
    measured = [name for name in SPLIT_NAMES if f"{name}_accuracy" in running.keys() & exact.keys()]
    pairs = [[f"{100 * figures[f'{name}_accuracy']:.2f} %" for figures in (running, exact)] for name in measured]
    words = [f"{measured[0]} accuracy with running means {pairs[0][0]}, with exact means {pairs[0][1]}"]
    return "; ".join(words + [f"{name} {a} and {b}" for name, (a, b) in zip(measured[1:], pairs[1:], strict=True)])


def accuracies(row: Row) -> list[str]:
    """As in ["train 99.00 %", "test 97.50 %"], of the splits that there are."""
    return [f"{name} {100 * row[f'{name}_accuracy']:.2f} %" for name in SPLIT_NAMES if f"{name}_accuracy" in row]


class Stopped(SystemExit):
    """A run that a signal stopped after saving everything; its exit status is 128 + the signal, as in a shell."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(code)
        self.message = message


class Interrupt:
    """Inside this context SIGINT and SIGTERM only set a flag, which the run reads between two batches.

    A second Ctrl-C ends the run at once. A second SIGTERM does not: `timeout` sends one to a process, and another one
    to its group.

    Several processes have to stop after the same step, whichever of them the signal reached. Each step starts an
    exchange of the flags and reads the one that the step before started, on the CPU, so that nobody waits for it.

    Parameters
    ----------
    run : Path
        The run folder, for the command that goes on.
    data_dir : path, optional
        Also for that.
    saved : bool
        Whether there is a checkpoint to go on from; an attribute, too, for the loop to set.
    saying : bool
        Print to standard error that the run is stopping.
    """

    def __init__(
        self, run: Path, data_dir: str | Path | None = None, *, saved: bool = False, saying: bool = True
    ) -> None:
        self.run, self.data_dir, self.saved, self.saying = run, data_dir, saved, saying
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
        """Whether a signal has reached any process by now; all of them have to ask, and wait for each other."""
        if self._group is not None:
            flag = torch.tensor(self.received)
            dist.all_reduce(flag, dist.ReduceOp.MAX, self._group)
            self.received = int(flag)
        return self.received > 0

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: leave signals alone
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
        per_node = os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size() if self._group else 1)
        launch = f"torchrun --nproc-per-node {per_node} -m {__package__}.etf_train" if self._group else "etf-train"
        where = f"--output {shlex.quote(str(self.run))}"
        where += f" --data-dir {shlex.quote(str(self.data_dir))}" if self.data_dir else ""
        name = signal.Signals(self.received).name
        if not self.saved:
            return Stopped(
                f"{name}: stopped before there was anything to save; start anew with: {launch} --resume {where}",
                128 + self.received,
            )
        return Stopped(f"{name}: saved; go on with: {launch} --resume {where}", 128 + self.received)


@dataclass(frozen=True)
class Watched:
    """A loader whose passes in order show their progress, and stop the run between two batches where a signal came.

    Of several processes each leaves its pass when it has a signal, and all stop at the end of the pass, since what
    follows it waits for all.
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
            If a signal came to this process, or to another one.
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
    """Draw the curves from the metrics that there are, however the run ends."""
    try:
        yield
    finally:
        trouble = draw_curves(rows, folder.path / "curves.png") if enabled and (rows := read_rows(folder.path)) else ""
        if trouble:
            folder.log(trouble)
