"""What a run says while it runs, and how it is stopped in good order."""

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
from .data import ImageData
from .run.folder import Row, RunFolder
from .run.settings import Settings


class Progress:
    """A progress bar where standard error is a terminal, and always a line per epoch, kept in log.txt too."""

    def __init__(self, folder: RunFolder, total: int, done: int, *, quiet: bool = False) -> None:
        self.folder, self.quiet = folder, quiet
        self.bar = tqdm(total=total, initial=done, unit="step", disable=quiet or not sys.stderr.isatty(), leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def advance(self) -> None:
        """One step is done."""
        self.bar.update()

    def say(self, line: str) -> None:
        """Print and keep a line."""
        if not self.quiet:
            self.folder.log(line)
            tqdm.write(line, file=sys.stderr)


def first_line(
    settings: Settings, data: ImageData, model: Classifier, device: torch.device, world: int, steps: int
) -> str:
    """What is trained on what, and where."""
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    sizes = f"{len(data.train)} training and {len(data.test)} test images {'x'.join(map(str, data.image_shape))}"
    backbone = settings.backbone
    if data.name == "ufm":
        sizes, backbone = f"{len(data.train)} samples", "free features"
    where = f"{device}" + (f" in {world} processes" if world > 1 else "")
    return (
        f"{data.name}: {sizes}, K = {data.num_classes}; {backbone}, d = {model.head.num_features}, "
        f"{settings.head} head, {parameters:,} parameters; {settings.optimiser}, epochs: {settings.epochs}, steps in "
        f"each: {steps}, batch size: {settings.batch_size}; seed {settings.seed}, on {where}"
    )


def epoch_line(row: Row, epochs: int) -> str:
    """One line about an epoch.

    >>> epoch_line({"epoch": 3, "running_loss": 0.5, "running_accuracy": 0.9, "images_per_second": 1e4}, 20)
    'epoch  3/20  loss 0.5000  running 90.0 %  10000 img/s'
    """
    parts = [f"epoch {int(row['epoch']):>{len(str(epochs))}}/{epochs}", f"loss {row['running_loss']:.4f}"]
    parts.append(f"running {100 * row['running_accuracy']:.1f} %")
    if "train_accuracy" in row:
        parts.append(f"train {100 * row['train_accuracy']:.2f} %")
        parts.append(f"test {100 * row['test_accuracy']:.2f} %")
        parts += [f"{name.upper()} {row[f'train_{name}']:.3g}" for name in ("nc1", "nc2", "nc3")]
    return "  ".join([*parts, f"{row['images_per_second']:.0f} img/s"])


class Stopped(SystemExit):
    """A run that a signal stopped after saving everything; its code says which signal, as a shell would."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(code)
        self.message = message


class Interrupt:
    """Inside this context SIGINT and SIGTERM only raise a flag, which the loop reads between two steps.

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
        """Whether to stop now; to be asked after every step, the same answer in all processes."""
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
        launch = f"torchrun --nproc-per-node {per_node} -m {__package__}.cli" if self._group else "etf-train"
        where = f"--output {shlex.quote(str(run))}"
        where += f" --data-dir {shlex.quote(str(data_dir))}" if data_dir else ""
        name = signal.Signals(self.received).name
        return Stopped(f"{name}: saved; go on with: {launch} --resume {where}", 128 + self.received)
