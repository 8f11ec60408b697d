"""Read a run folder for an export: the model, its normalisation, held-out images, and metadata for the file."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..torchport.training.data.fingerprint import compare_data, recorded
from ..torchport.training.data.folder_split import FolderSplit
from ..torchport.training.data.images import ImageData, readable
from ..torchport.training.data.load import training_data
from ..torchport.training.model import load_model
from ..torchport.training.run.checkpoint import load_checkpoint, trained_epochs
from ..torchport.training.run.data_path import data_label, located
from ..torchport.training.run.reading import Row, Run, read_exact, read_run
from .calibration import Calibration, fit_calibration
from .errors import ExportError

QUANTISATION_IMAGES = 512
CALIBRATION_IMAGES = 5000


@dataclass(frozen=True)
class TrainedModel:
    """A trained model with its data and its provenance.

    Attributes
    ----------
    name : str
        Checkpoint file and epoch, for messages.
    model : nn.Module
        In eval mode, on the CPU.
    data : ImageData
    split : str
        The split for the check: "test", else "val", else "train".
    class_names : tuple of str
        From the checkpoint, in the order of the model's outputs.
    mean, std : per channel
        Normalisation in training, from the checkpoint.
    metadata : dict
        For the exported file.
    reason : str
        Why the run's result is this checkpoint; empty for a named checkpoint.
    changed : str
        How the data have changed since training; empty if they have not.
    """

    name: str
    model: nn.Module
    data: ImageData
    split: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    metadata: dict[str, Any]
    reason: str = ""
    changed: str = ""

    def check_images(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
        """Indices, images (N, H, W, C) and labels of at most `count` evenly spread images, without broken files."""
        split = self.data.splits()[self.split]
        return readable(split, evenly(len(split), count))

    def calibration_images(self) -> NDArray[np.uint8]:
        """Training images for int8, (N, H, W, C)."""
        return readable(self.data.train, evenly(len(self.data.train), QUANTISATION_IMAGES))[1]

    @torch.no_grad()
    def calibration(self) -> Calibration:
        """The factor on the logits, fitted on validation images, else on test images.

        Raises
        ------
        ExportError
            If there are neither; on training images a classifier is overconfident.
        """
        splits = self.data.splits()
        name = next((name for name in ("val", "test") if name in splits), None)
        if name is None:
            raise ExportError(
                "a calibration needs images outside the training split, but the data set has no validation or test "
                "images: train with --val-fraction"
            )
        _, images, labels = readable(splits[name], evenly(len(splits[name]), CALIBRATION_IMAGES))
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        batches = torch.from_numpy(images).split(64)
        pixels = (batch.permute(0, 3, 1, 2).contiguous() for batch in batches)
        logits = torch.cat([self.model((x / 255 - mean) / std) for x in pixels])
        return replace(fit_calibration(logits.numpy(), labels), split=name)


def load_trained(
    path: str | Path, checkpoint: str | None = None, data_dir: str | None = None, data: str | None = None
) -> TrainedModel:
    """The model of a run, and its data set.

    Parameters
    ----------
    path : path
        A run folder.
    checkpoint : {"best", "last", "recalibrated"}, optional
        Default: the run's result, see `Run.result`.
    data_dir : path, optional
        Folder of data sets.
    data : str, optional
        Present path of the run's image folder, if it has moved.

    Raises
    ------
    UserError
        If the run or the checkpoint does not exist, if its data cannot be read or have other classes than the
        checkpoint, or if the run has free features instead of a network.
    """
    run = read_run(path, need_rows=False)
    if run.settings.get("data") == "ufm":
        raise ExportError(f"{path} has free features instead of a network: expected a run on images")
    named, checkpoint = checkpoint is not None, checkpoint or run.result
    if run.checkpoints and checkpoint not in run.checkpoints:
        raise ExportError(f"{path} has no checkpoint {checkpoint!r}: choose one of {', '.join(run.checkpoints)}")
    model, settings = load_model(run.path, checkpoint)
    file = run.path / f"{checkpoint}.pt"
    contents = load_checkpoint(file)
    images = training_data(located(settings, data or run.settings.get("data")), data_dir, contents["data"])
    changed = compare_data(contents["data"], recorded(images))
    splits = images.splits()
    epochs, unfinished = trained_epochs(contents)
    row = {} if unfinished else checkpoint_row(run, checkpoint, epochs)
    metadata = {
        "data": data_label(settings.data),
        "recipe": settings.recipe,
        "backbone": Path(settings.backbone).name if ".py:" in settings.backbone else settings.backbone,  # no path
        "seed": settings.seed,
        "checkpoint": checkpoint,
        "epoch": epochs,
        "val_accuracy": row.get("val_accuracy"),
        "test_accuracy": row.get("test_accuracy"),
        "transform": contents["data"].get("transform"),  # of photos; version 0.1.0 recorded none
        "checkpoint_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    return TrainedModel(
        name=f"{file}, epoch {f'{epochs + 1} (unfinished)' if unfinished else epochs}",
        model=model,
        data=images,
        split=next(name for name in ("test", "val", "train") if name in splits),
        class_names=tuple(contents["data"]["class_names"]),
        mean=tuple(contents["data"]["mean"]),
        std=tuple(contents["data"]["std"]),
        metadata=metadata,
        reason="" if named else run.reason,
        changed=changed,
    )


def checkpoint_row(run: Run, checkpoint: str, epoch: int) -> Row:
    """The metrics of a checkpoint after a finished epoch; empty if they were not measured."""
    if checkpoint != "recalibrated":
        return next((row for row in run.rows if row["epoch"] == epoch), {})
    return read_exact(run.path)  # the row of the epoch has the metrics with running class means


def evenly(total: int, count: int) -> NDArray[np.int64]:
    """At most `count` of 0…total−1, evenly spread.

    >>> evenly(10, 5)
    array([0, 2, 4, 6, 8])
    """
    count = min(total, count)
    return np.arange(count, dtype=np.int64) * total // max(count, 1)


def samples_folder(model: Path, overwrite: bool) -> Path:
    """The folder for samples beside a model.

    Raises
    ------
    ExportError
        If it exists and `overwrite` is false, or it contains anything but samples.
    """
    folder = model.with_name(f"{model.stem}-samples")
    if folder.exists():
        if not overwrite:
            raise ExportError(f"{folder} exists: choose another name, or replace it by --overwrite")
        if not folder.is_dir() or any(not re.fullmatch(r"\d+-\d+\.\w+", file.name) for file in folder.iterdir()):
            raise ExportError(f"{folder} contains more than sample images: it is not overwritten; delete it yourself")
    return folder


def write_samples(folder: Path, trained: TrainedModel, count: int) -> int:
    """Write check images as `<index in the split>-<label>.png`, all or none; returns their number.

    For an image folder they are copies of its files, which `etf-predict` preprocesses as training does.
    """
    from PIL import Image

    split = trained.data.splits()[trained.split]

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary) / "samples"
        made.mkdir()
        indices, images, labels = trained.check_images(count)
        for index, image, label in zip(indices, images, labels, strict=True):
            if isinstance(split, FolderSplit):
                shutil.copyfile(split.paths[index], made / f"{index}-{label}{split.paths[index].suffix.lower()}")
                continue
            pixels = image[..., 0] if image.shape[-1] == 1 else image
            Image.fromarray(pixels).save(made / f"{index}-{label}.png")
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    return len(indices)
