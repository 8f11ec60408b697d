"""The metrics and checkpoints of a run, which its first process writes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from .assembly import Assembly
from .progress import Interrupt, Progress, epoch_line
from .run.checkpoint import save_checkpoint
from .run.folder import RunFolder
from .run.reading import Row
from .state import Position, state_dict
from .tensorboard import ScalarWriter

SAVE_EVERY = 60.0  # seconds between checkpoints if evaluations are rarer


class Records:
    """Write the metrics of each epoch, and checkpoints.

    Parameters
    ----------
    run : Assembly
    data : mapping
        `recorded(data)`, for the checkpoints.
    folder, progress, interrupt, scalars
        Of the run.
    """

    def __init__(
        self,
        run: Assembly,
        data: Mapping[str, Any],
        folder: RunFolder,
        progress: Progress,
        interrupt: Interrupt,
        scalars: ScalarWriter,
    ) -> None:
        self.run, self.data = run, data
        self.folder, self.progress, self.interrupt, self.scalars = folder, progress, interrupt, scalars
        self._saved_at = time.monotonic()

    def save(self, name: str, at: Position) -> None:
        """Write a checkpoint from which the run resumes at this position."""
        if self.run.rank == 0:
            save_checkpoint(self.folder.path / name, {**state_dict(self.run, at), "data": self.data})
            self.folder.replaced()
        self.interrupt.saved = True

    def conclude(self, row: Row, at: Position, *, evaluated: bool) -> None:
        """Write the metrics of an epoch, then the checkpoint before the next one, at which the run stands now."""
        if self.run.rank == 0:
            self.folder.append(row)
            self.scalars.append(row)
        if evaluated:
            self.progress.log(epoch_line(row, self.run.settings.epochs))
            if row.get("val_accuracy", -1.0) > at.best_accuracy:  # never chosen on test data
                at.best_accuracy = row["val_accuracy"]
                self.save("best.pt", at)
        if evaluated or time.monotonic() - self._saved_at > SAVE_EVERY:
            self.save("last.pt", at)
            self._saved_at = time.monotonic()
