"""What an export takes from a run folder: the model, its normalisation, held-out images, and metadata for the file."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..common.files import read_json, reading
from ..torchport.training.data.images import ImageData
from ..torchport.training.data.load import training_data
from ..torchport.training.model import load_model
from ..torchport.training.run.checkpoint import load_checkpoint
from ..torchport.training.run.reading import Row, Run, read_run
from .errors import ExportError

CALIBRATION_IMAGES = 512


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, its data, and where it comes from.

    Attributes
    ----------
    name : str
        Run, checkpoint and epoch, to print.
    model : nn.Module
        In eval mode, on the CPU.
    data : ImageData
    split : str
        The split to check on: "test", else "val", else "train".
    mean, std : per channel
        The checkpoint's: what the model was trained with.
    metadata : dict
        For the exported file.
    """

    name: str
    model: nn.Module
    data: ImageData
    split: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    metadata: dict[str, Any]

    def check_images(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
        """Indices, images (N, H, W, C) and labels of at most `count` images, evenly spread over the split."""
        split = self.data.splits()[self.split]
        chosen = evenly(len(split), count)
        return chosen, split.images[chosen], split.labels[chosen]

    def calibration_images(self) -> NDArray[np.uint8]:
        """Training images for int8, (N, H, W, C)."""
        return self.data.train.images[evenly(len(self.data.train), CALIBRATION_IMAGES)]


def load_trained(path: str | Path, checkpoint: str | None = None, data_dir: str | None = None) -> TrainedModel:
    """The model of a run, and its data set.

    Parameters
    ----------
    path : path
        A run folder.
    checkpoint : {"best", "last", "recalibrated"}, optional
        Default: the run's result, which is "best" where it had validation data, else "last".
    data_dir : path, optional
        Where data sets lie.

    Raises
    ------
    UserError
        If the folder holds no such run or checkpoint, if its data cannot be read, or if it trained no network.
    """
    run = read_run(path, need_rows=False)
    if run.settings.get("data") == "ufm":
        raise ExportError(f"{path} has free features instead of a network on images: there is nothing to export")
    checkpoint = checkpoint or run.result
    if run.checkpoints and checkpoint not in run.checkpoints:
        raise ExportError(f"{path} has no checkpoint {checkpoint!r}: choose one of {', '.join(run.checkpoints)}")
    model, settings = load_model(run.path, checkpoint)
    file = run.path / f"{checkpoint}.pt"
    contents = load_checkpoint(file)
    data = training_data(settings, data_dir)
    splits = data.splits()
    epochs, finished = contents["epoch"] - 1, contents["step"] == 0
    row = checkpoint_row(run, checkpoint, epochs) if finished else {}
    metadata = {
        "data": settings.data,
        "recipe": settings.recipe,
        "backbone": settings.backbone,
        "seed": settings.seed,
        "checkpoint": checkpoint,
        "epoch": epochs,
        "val_accuracy": row.get("val_accuracy"),
        "test_accuracy": row.get("test_accuracy"),
        "checkpoint_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    return TrainedModel(
        name=f"{file}, epoch {epochs if finished else f'{epochs + 1} (unfinished)'}",
        model=model,
        data=data,
        split=next(name for name in ("test", "val", "train") if name in splits),
        mean=tuple(contents["data"]["mean"]),
        std=tuple(contents["data"]["std"]),
        metadata=metadata,
    )


def checkpoint_row(run: Run, checkpoint: str, epoch: int) -> Row:
    """The metrics that belong to a checkpoint after a finished epoch; empty where they were not measured."""
    if checkpoint != "recalibrated":
        return next((row for row in run.rows if row["epoch"] == epoch), {})
    path, expected = run.path / "recalibrated.json", "the figures of a recalibration"
    if not path.exists():
        return {}
    figures = read_json(path, expected)
    with reading(path, expected):
        return dict(figures["exact"])  # the epoch's row has the figures with running class means


def evenly(total: int, count: int) -> NDArray[np.int64]:
    """At most `count` of 0…total−1, evenly spread.

    >>> evenly(10, 5)
    array([0, 2, 4, 6, 8])
    """
    count = min(total, count)
    return np.arange(count, dtype=np.int64) * total // max(count, 1)


def samples_folder(model: Path, overwrite: bool) -> Path:
    """The folder for samples beside a model; refused where it would replace anything but earlier samples."""
    folder = model.with_name(f"{model.stem}-samples")
    if folder.exists():
        if not overwrite:
            raise ExportError(f"{folder} exists: choose another name, or replace it by --overwrite")
        if not folder.is_dir() or any(not re.fullmatch(r"\d+-\d+\.png", file.name) for file in folder.iterdir()):
            raise ExportError(f"{folder} holds more than sample images, so it is not overwritten")
    return folder


def write_samples(folder: Path, trained: TrainedModel, count: int) -> int:
    """Write check images as `<index in the split>-<label>.png`, all or none; returns how many."""
    from PIL import Image

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary) / "samples"
        made.mkdir()
        indices, images, labels = trained.check_images(count)
        for index, image, label in zip(indices, images, labels, strict=True):
            pixels = image[..., 0] if image.shape[-1] == 1 else image
            Image.fromarray(pixels).save(made / f"{index}-{label}.png")
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    return len(indices)
