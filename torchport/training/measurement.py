"""A measured checkpoint, and how a run folder keeps it as `measured-CHECKPOINT.npz`. Needs no torch.

`etf-measure` writes the file; `etf-report` draws from it: class means, W, margins, singular values, confusions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import UserError
from ...common.files import opened, reading, replacing
from ...common.seals import check_zip, seal_zip, zip_seal
from .confusion import Confusion, confusion_lines

LARGEST = 2**30  # bytes of all arrays
FORMAT = 2  # 1, of version 0.1.0, had `train_means` for `train_class_mean_rows`
SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
SPLITS = tuple(SPLIT_NAMES)


class MeasurementError(UserError):
    """A saved measurement that cannot be used."""


@dataclass(frozen=True)
class Measurement:
    """Metrics and arrays of a checkpoint on every split of its data.

    Attributes
    ----------
    epoch : int or None
        Epochs that the checkpoint was trained for; None for a network trained elsewhere, which has no arrays.
    figures : dict
        Flat: `train_accuracy`, `test_nc1`, …
    arrays : dict
        `weight` (K, d); per split `…_class_mean_rows` (K, d), nan for a class without samples, and `…_margins` (200,),
        the histogram of cosine margins; for heads that solve, `singular_values` (m,) of A, descending; for held-out
        splits, or without any for the training split, `…_pairs` (n, 3), see `Confusion`.
    source : str
        The seal of the checkpoint; empty for a checkpoint without one.
    """

    epoch: int | None
    figures: dict[str, float]
    arrays: dict[str, NDArray[Any]]
    source: str = ""

    @property
    def splits(self) -> tuple[str, ...]:
        """The measured splits, in the order train, val, test; "images" for a folder without splits."""
        return tuple(dict.fromkeys(name.partition("_")[0] for name in self.figures))

    @property
    def held_out(self) -> str:
        """The split on which a model is judged: "test", else "val", else "train"."""
        measured = (split for split in ("test", "val") if f"{split}_class_mean_rows" in self.arrays)
        return next(measured, "train")

    def confusion(self, split: str) -> Confusion | None:
        """The confusion counts of a split; None if they were not counted (other splits, earlier versions)."""
        pairs = self.arrays.get(f"{split}_pairs")
        return None if pairs is None else Confusion(pairs.astype(np.int64), len(self.arrays["weight"]))


def measurement_file(run: str | Path, checkpoint: str) -> Path:
    """The file of a checkpoint's measurement in a run folder."""
    return Path(run) / f"measured-{checkpoint}.npz"


def save_measurement(run: str | Path, checkpoint: str, measurement: Measurement) -> None:
    """Store a measurement in the run folder."""
    assert measurement.epoch is not None  # set for the checkpoints of a run
    entries: dict[str, Any] = {
        "format": FORMAT,
        "epoch": measurement.epoch,
        "figures": json.dumps(measurement.figures),
        "source": measurement.source,
        **measurement.arrays,
    }
    with replacing(measurement_file(run, checkpoint)) as file:
        np.savez_compressed(file, **entries)
        seal_zip(file)


def saved_measurement(run: str | Path, checkpoint: str, log: Callable[[str], object] = print) -> Measurement | None:
    """The stored measurement of a checkpoint, or None if the checkpoint has to be measured (again):

    * there is no measurement;
    * it belongs to another checkpoint, by the seal, or without a seal by the modification time;
    * the file is damaged or of another version, which `log` reports.
    """
    path, source = measurement_file(run, checkpoint), Path(run) / f"{checkpoint}.pt"
    if not path.is_file() or not source.is_file():
        return None
    try:
        found = read_measurement(path)
    except MeasurementError as error:
        log(f"{error}; measured again")
        return None
    if found.source:
        return found if found.source == zip_seal(source) else None
    return found if path.stat().st_mtime_ns >= source.stat().st_mtime_ns else None


def read_measurement(path: str | Path) -> Measurement:
    """Read a file of `save_measurement`.

    Raises
    ------
    MeasurementError
        If it is missing, damaged or of another version.
    """
    with reading(path, "a measurement that etf-measure wrote", MeasurementError), opened(path) as file:
        check_zip(file, LARGEST)
        with np.load(file, allow_pickle=False) as saved:
            arrays = dict(saved)
        found = int(arrays.pop("format", 1))
        if found != FORMAT:
            raise MeasurementError(f"{path} has format {found}: expected {FORMAT}")
        epoch, figures = int(arrays.pop("epoch")), json.loads(str(arrays.pop("figures")))
        source = str(arrays.pop("source", ""))
        return Measurement(epoch, {str(name): float(value) for name, value in figures.items()}, arrays, source)


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
        words, count = label if m.epoch is None else f"{label} (epoch {m.epoch})", len(m.splits)
        cell = max(11, -(-(len(words) + 2) // count))
        heading += f"{words:>{cell * count}}"
        columns += [(m, split, cell) for split in m.splits]
    lines = [" " * width + heading, " " * width + "".join(f"{split:>{cell}}" for _, split, cell in columns)]
    for name in names:
        cells = ((m.figures.get(f"{split}_{name}"), cell) for m, split, cell in columns)
        lines.append(f"{name:<{width}}" + "".join(f"{'–' if x is None else f'{x:.4g}':>{cell}}" for x, cell in cells))
    return "\n".join(lines)


def class_accuracies(measurement: Measurement, class_names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Accuracy by class name on each split with confusion counts; classes without images are left out."""
    found: dict[str, dict[str, float]] = {}
    for split in SPLITS:
        if (confusion := measurement.confusion(split)) is not None:
            names = class_names or tuple(map(str, range(confusion.num_classes)))
            pairs = zip(names, confusion.accuracy.tolist(), strict=True)
            found[split] = {name: accuracy for name, accuracy in pairs if not math.isnan(accuracy)}
    return found


def mistakes_text(measurement: Measurement, class_names: Sequence[str]) -> str:
    """The least accurate classes and the most frequent mistakes on the split on which a model is judged."""
    split, confusion = measurement.held_out, measurement.confusion(measurement.held_out)
    assert confusion is not None  # counted in every new measurement
    names = class_names or tuple(map(str, range(confusion.num_classes)))
    return "\n  ".join([f"{SPLIT_NAMES[split]} images:", *confusion_lines(confusion, names)])
