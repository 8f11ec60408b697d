"""What an export takes from a run folder: the model, how pixels were normalised, real images, the record."""

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

from ..torchport.training.run.checkpoint import CheckpointError, load_checkpoint, load_model
from ..torchport.training.data import DataError, ImageData, load_data
from ..torchport.training.run.folder import read_rows
from ..torchport.training.run.settings import SettingsError
from .errors import ExportError

CALIBRATION_IMAGES = 512


@dataclass(frozen=True)
class Run:
    """A trained model, its data, and what the file should say about where it comes from.

    `mean` and `std` are those that the checkpoint holds: what the model was trained with.
    """

    model: nn.Module
    data: ImageData
    mean: tuple[float, ...]
    std: tuple[float, ...]
    metadata: dict[str, Any]

    def test_images(self, count: int) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
        """Indices, images (N, H, W, C) and labels of `count` test images, evenly spread over the test set."""
        chosen = evenly(len(self.data.test), count)
        return chosen, self.data.test.images[chosen], self.data.test.labels[chosen]

    def calibration_images(self) -> NDArray[np.uint8]:
        """Training images for int8."""
        return self.data.train.images[evenly(len(self.data.train), CALIBRATION_IMAGES)]


def load_run(run: Path, checkpoint: str = "best", data_dir: str | None = None) -> Run:
    """A run and its data set.

    Raises
    ------
    ExportError
        If the folder holds no such run, or its data cannot be read.
    """
    path = run / f"{checkpoint}.pt"
    try:
        model, settings = load_model(run, checkpoint)
        if settings.data == "ufm":
            raise ExportError(f"{run} has free features instead of a network on images: there is nothing to export")
        trained_on = load_checkpoint(path)["data"]
        data = load_data(settings.data, root=data_dir, image_size=settings.image_size)
    except (CheckpointError, DataError, SettingsError) as error:
        raise ExportError(" ".join(str(error).split())) from error
    rows = [row for row in read_rows(run) if "test_accuracy" in row]
    row = (max(rows, key=lambda r: r["test_accuracy"]) if checkpoint == "best" else rows[-1]) if rows else {}
    metadata = {
        "data": settings.data,
        "recipe": settings.recipe,
        "backbone": settings.backbone,
        "seed": settings.seed,
        "test_accuracy": row.get("test_accuracy"),
        "checkpoint_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    return Run(model, data, tuple(trained_on["mean"]), tuple(trained_on["std"]), metadata)


def evenly(total: int, count: int) -> NDArray[np.int64]:
    """At most `count` of 0…total−1, evenly spread.

    >>> evenly(10, 5)
    array([0, 2, 4, 6, 8])
    """
    count = min(total, count)
    return np.arange(count, dtype=np.int64) * total // max(count, 1)


def samples_folder(model: Path, overwrite: bool) -> Path:
    """The folder for samples beside a model; refused where it would cover anything but earlier samples."""
    folder = model.with_name(f"{model.stem}-samples")
    if folder.exists():
        if not overwrite:
            raise ExportError(f"{folder} exists: choose another name, or replace it by --overwrite")
        if not folder.is_dir() or any(not re.fullmatch(r"\d+-\d+\.png", file.name) for file in folder.iterdir()):
            raise ExportError(f"{folder} holds more than sample images, so it is not overwritten")
    return folder


def write_samples(folder: Path, run: Run, count: int) -> None:
    """Write held-out images as `<index in the test set>-<label>.png`, all or none."""
    from PIL import Image

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        made = Path(temporary) / "samples"
        made.mkdir()
        for index, image, label in zip(*run.test_images(count), strict=True):
            pixels = image[..., 0] if image.shape[-1] == 1 else image
            Image.fromarray(pixels).save(made / f"{index}-{label}.png")
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
