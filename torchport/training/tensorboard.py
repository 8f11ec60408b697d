"""A run's metrics as TensorBoard scalars, if TensorBoard is installed; errors here never end a run."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

GROUPS = ("train", "val", "test", "running", "solver")


class ScalarWriter:
    """Writes rows of metrics as scalars, or nothing without a `SummaryWriter`; a context manager."""

    def __init__(self, writer: Any = None) -> None:
        self._writer = writer

    def append(self, row: Mapping[str, float]) -> None:
        """Add the metrics of an epoch."""
        if self._writer is None:
            return
        for name in row.keys() - {"epoch"}:
            self._writer.add_scalar(tag(name), row[name], int(row["epoch"]))
        self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._writer is not None:
            self._writer.close()


def scalar_writer(folder: Path, first_epoch: int, *, enabled: bool = True) -> ScalarWriter:
    """A writer into a folder; a resumed run's points from `first_epoch` on are dropped.

    Parameters
    ----------
    folder : path
    first_epoch : int
        The next epoch to train.
    enabled : bool
        False for all processes but the first.
    """
    if not enabled or importlib.util.find_spec("tensorboard") is None:
        return ScalarWriter()
    try:
        from torch.utils.tensorboard import SummaryWriter

        return ScalarWriter(SummaryWriter(str(folder), purge_step=first_epoch))
    except Exception:  # a version that this torch cannot use
        return ScalarWriter()


def tag(metric: str) -> str:
    """A metric's tag; TensorBoard groups tags by the word before the slash.

    >>> tag("train_accuracy"), tag("images_per_second")
    ('train/accuracy', 'run/images_per_second')
    """
    group, _, name = metric.partition("_")
    return f"{group}/{name}" if group in GROUPS else f"run/{metric}"
