"""What a run says while it runs, and how it is stopped in good order."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Self

from tqdm import tqdm

from .run_folder import Row, RunFolder


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
    """Inside this context SIGINT and SIGTERM only raise a flag, which the loop reads between two steps."""

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether somebody asked the run to stop."""
        return self.received > 0

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: leave signals alone
                return self
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def stop(self, run: Path, epoch: int) -> Stopped:
        """The exception that ends the run."""
        name = signal.Signals(self.received or signal.SIGTERM).name
        message = f"{name}: saved in epoch {epoch}; go on with: etf-train --resume --output {run}"
        return Stopped(message, 128 + (self.received or signal.SIGTERM))
