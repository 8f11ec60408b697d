"""What a run prints and logs, and how a signal stops it after saving."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
import torch.distributed as dist
from tqdm import tqdm

from ..heads import Classifier
from .data.images import ImageData
from .run.folder import RunFolder
from .run.reading import Row, Run
from .run.settings import Settings

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}


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
    """

    def __init__(self, folder: RunFolder, total: int, done: int, *, writing: bool = True, quiet: bool = False) -> None:
        self.folder, self.writing, self.printing = folder, writing, writing and not quiet
        hidden = not self.printing or not sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, unit="step", disable=hidden, leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def advance(self) -> None:
        """Count one step."""
        self.bar.update()

    def log(self, line: str) -> None:
        """Log a line, and print it to standard error."""
        if self.writing:
            self.folder.log(line)
        if self.printing:
            tqdm.write(line, file=sys.stderr)


def run_line(
    settings: Settings, data: ImageData, model: Classifier[Any], device: torch.device, world_size: int, steps: int
) -> str:
    """What is trained on what, and where."""
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    counts = [f"{len(split)} {SPLIT_NAMES[name]}" for name, split in data.splits().items()]
    listed = " and ".join([", ".join(counts[:-1]), counts[-1]] if counts[1:] else counts)
    sizes, backbone = f"{listed} images {'x'.join(map(str, data.image_shape))}", settings.backbone
    if data.name == "ufm":
        sizes, backbone = f"{len(data.train)} samples", "free features"
    where = f"{device}" + (f" in {world_size} processes" if world_size > 1 else "")
    return (
        f"{data.name}: {sizes}, K = {data.num_classes}; {backbone}, d = {model.head.num_features}, "
        f"{settings.head} head, {parameters:,} parameters; {settings.optimizer}, epochs: {settings.epochs}, steps in "
        f"each: {steps}, batch size: {settings.batch_size}; seed {settings.seed}, on {where}"
    )


def epoch_line(row: Row, epochs: int) -> str:
    """One line about an epoch.

    >>> epoch_line({"epoch": 3, "running_loss": 0.5, "running_accuracy": 0.9, "images_per_second": 1e4}, 20)
    'epoch  3/20  loss 0.5000  running 90.0 %  10000 img/s'
    """
    words = [f"epoch {int(row['epoch']):>{len(str(epochs))}}/{epochs}", f"loss {row['running_loss']:.4f}"]
    words.append(f"running {100 * row['running_accuracy']:.1f} %")
    words += accuracies(row)
    words += [f"{name.upper()} {row[f'train_{name}']:.3g}" for name in ("nc1", "nc2", "nc3") if f"train_{name}" in row]
    return "  ".join([*words, f"{row['images_per_second']:.0f} img/s"])


def result_line(run: Run) -> str:
    """Which checkpoint is the result of a run, and its accuracies.

    >>> result_line(Run(Path("nowhere"), {}, {}, [{"epoch": 2, "train_accuracy": 0.9, "test_accuracy": 0.8}]))
    'result: last.pt (epoch 2)  train 90.00 %  test 80.00 %'
    """
    row = run.result_row
    reason = ", chosen on validation data" if run.result == "best" else ""
    return "  ".join([f"result: {run.result}.pt (epoch {int(row['epoch'])}{reason})", *accuracies(row)])


def recalibrated_line(running: Row, exact: Row) -> str:
    """Accuracies with running and with exact class means, on test data where there are any.

    >>> recalibrated_line({"train_accuracy": 0.8}, {"train_accuracy": 0.85})
    'train accuracy with running means 80.00 %, with exact means 85.00 %'
    """
    measured = [name for name in SPLIT_NAMES if f"{name}_accuracy" in running.keys() & exact.keys()]
    shares = [f"{100 * figures[f'{measured[-1]}_accuracy']:.2f} %" for figures in (running, exact)]
    return f"{measured[-1]} accuracy with running means {shares[0]}, with exact means {shares[1]}"


def accuracies(row: Row) -> list[str]:
    """As in ["train 99.00 %", "test 97.50 %"], of the splits that there are."""
    return [f"{name} {100 * row[f'{name}_accuracy']:.2f} %" for name in SPLIT_NAMES if f"{name}_accuracy" in row]


class Stopped(SystemExit):
    """A run that a signal stopped after saving everything; its exit status is 128 + the signal, as in a shell."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(code)
        self.message = message


class Interrupt:
    """Inside this context SIGINT and SIGTERM only set a flag, which the loop reads between two steps.

    Several processes have to stop after the same step, whichever of them the signal reached. Each step starts an
    exchange of the flags and reads the one that the step before started, on the CPU, so that nobody waits for it.
    """

    def __init__(self) -> None:
        self.received = 0
        several = dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo") if several else None
        self._flag = torch.zeros((), dtype=torch.int64)
        self._exchange: dist.Work | None = None
        self._previous: dict[int, Any] = {}

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
        self.received = number

    def stop(self, run: Path, data_dir: str | Path | None = None) -> Stopped:
        """The exception that ends the run."""
        per_node = os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size() if self._group else 1)
        launch = f"torchrun --nproc-per-node {per_node} -m {__package__}.etf_train" if self._group else "etf-train"
        where = f"--output {shlex.quote(str(run))}"
        where += f" --data-dir {shlex.quote(str(data_dir))}" if data_dir else ""
        name = signal.Signals(self.received).name
        return Stopped(f"{name}: saved; go on with: {launch} --resume {where}", 128 + self.received)
