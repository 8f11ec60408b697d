"""A measured checkpoint, and how a run folder keeps it as `measured-CHECKPOINT.npz`. Needs no torch.

`etf-measure` writes the file; `etf-report` draws from it: class means, W, margins and singular values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import UserError
from ...common.files import reading, replacing

FORMAT = 2  # 1, of version 0.1.0, had `train_means` for `train_class_mean_rows`
SPLITS = ("train", "val", "test")


class MeasurementError(UserError):
    """A saved measurement that cannot be used."""


@dataclass(frozen=True)
class Measurement:
    """A checkpoint, measured on the splits that its data set has.

    Attributes
    ----------
    epoch : int
        Epochs that the checkpoint was trained for.
    figures : dict
        Flat: `train_accuracy`, `test_nc1`, …
    arrays : dict
        `weight` (K, d); per split `…_class_mean_rows` (K, d), nan for a class without samples, and `…_margins`
        (200,), the histogram of cosine margins; for a head that solves `singular_values` (m,) of A, descending.
    """

    epoch: int
    figures: dict[str, float]
    arrays: dict[str, NDArray[Any]]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that were measured, in the order train, val, test."""
        return tuple(split for split in SPLITS if f"{split}_loss" in self.figures)


def measurement_file(run: str | Path, checkpoint: str) -> Path:
    """Where a run folder keeps the measurement of a checkpoint."""
    return Path(run) / f"measured-{checkpoint}.npz"


def save_measurement(run: str | Path, checkpoint: str, measurement: Measurement) -> None:
    """Keep a measurement in the run folder."""
    with replacing(measurement_file(run, checkpoint)) as file:
        np.savez_compressed(
            file,
            allow_pickle=False,
            format=FORMAT,
            epoch=measurement.epoch,
            figures=json.dumps(measurement.figures),
            **measurement.arrays,
        )


def saved_measurement(run: str | Path, checkpoint: str, log: Callable[[str], object] = print) -> Measurement | None:
    """The measurement that the run folder keeps.

    None where there is none, where the checkpoint is newer, and, with a line to `log`, where the file is damaged or of
    another version: the checkpoint has to be measured again then.
    """
    path, source = measurement_file(run, checkpoint), Path(run) / f"{checkpoint}.pt"
    if not path.is_file() or not source.is_file() or path.stat().st_mtime_ns < source.stat().st_mtime_ns:
        return None
    try:
        return read_measurement(path)
    except MeasurementError as error:
        log(f"{error}; measured again")
        return None


def read_measurement(path: str | Path) -> Measurement:
    """Read a file of `save_measurement`.

    Raises
    ------
    MeasurementError
        If it is missing, damaged or of another version.
    """
    with reading(path, "a measurement that etf-measure wrote", MeasurementError):
        with np.load(path, allow_pickle=False) as saved:
            arrays = dict(saved)
        found = int(arrays.pop("format", 1))
        if found != FORMAT:
            raise MeasurementError(f"{path} has format {found}: expected {FORMAT}")
        epoch, figures = int(arrays.pop("epoch")), json.loads(str(arrays.pop("figures")))
        return Measurement(epoch, {str(name): float(value) for name, value in figures.items()}, arrays)


def measurement_table(measurements: Mapping[str, Measurement]) -> str:
    """Figures as rows, checkpoints and splits as columns.

    >>> figures = {"train_loss": 0.5, "test_loss": 0.75, "train_nc1": 0.125, "test_nc1": 2.0}
    >>> print(measurement_table({"last": Measurement(3, figures, {})}))
                last (epoch 3)
              train       test
    loss        0.5       0.75
    nc1       0.125          2
    """
    names = list(dict.fromkeys(key.split("_", 1)[1] for m in measurements.values() for key in m.figures))
    width = max(map(len, names))
    heading, columns = "", []
    for label, m in measurements.items():
        words, count = f"{label} (epoch {m.epoch})", len(m.splits)
        cell = max(11, -(-(len(words) + 2) // count))
        heading += f"{words:>{cell * count}}"
        columns += [(m, split, cell) for split in m.splits]
    lines = [" " * width + heading, " " * width + "".join(f"{split:>{cell}}" for _, split, cell in columns)]
    for name in names:
        cells = ((m.figures.get(f"{split}_{name}"), cell) for m, split, cell in columns)
        lines.append(f"{name:<{width}}" + "".join(f"{'–' if x is None else f'{x:.4g}':>{cell}}" for x, cell in cells))
    return "\n".join(lines)
