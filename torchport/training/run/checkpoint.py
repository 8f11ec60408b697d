"""Checkpoints: one file with everything that a run needs to go on, or that somebody needs to use the model.

A checkpoint is a plain dictionary of tensors, numbers and strings, which `torch.load(weights_only=True)` reads.
Version 1 of the format, which 0.1.0 wrote, is read through the table of old names. The file carries a seal, by which a
single changed bit is noticed. Files of earlier versions have none, and are checked by their CRC-32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .... import __version__
from ....common.errors import UserError
from ....common.files import reading, replacing
from ....common.old_names import present_checkpoint
from ....common.seals import Damage, check_zip, seal_zip
from ....common.shapes import check_shape
from .reading import DATA

KIND = "nearest-etf checkpoint, version "
VERSION = 2
SEALED = "sealed"  # the key that says that there is a seal, and so that one is missing

# What every checkpoint holds of these, and what a run needs to go on.
USABLE = {
    "settings?": {str: object},
    "data?": DATA,
    "model?": {str: torch.Tensor},
    "ema?": dict,
    "epoch?": int,
    "step?": int,
    "steps_per_epoch?": int,
}
RESUMABLE = {
    "settings": {str: object},
    "data": {"class_names": [str], "image_shape": [int], "mean": [float], "std": [float]},
    "model": {str: torch.Tensor},
    "ema?": {"steps?": int, "model?": {str: torch.Tensor}},
    "warm_start?": (torch.Tensor, None),
    "optimizer": {"state": dict, "param_groups": [dict]},
    "scaler": dict,
    "totals": torch.Tensor,
    "epoch": int,
    "step": int,
    "best_accuracy": float,
    "seconds?": float,
    "solver?": {str: float},
}


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, newer or of another kind."""


def trained_epochs(contents: Mapping[str, Any]) -> tuple[int, bool]:
    """Whole epochs that a checkpoint was trained for, and whether it lies in the middle of the next one.

    A checkpoint after the last step of an epoch waits for that epoch's evaluation: `evaluated` is false.

    >>> trained_epochs({"epoch": 3, "step": 0}), trained_epochs({"epoch": 3, "step": 5, "steps_per_epoch": 5})
    ((2, False), (3, False))
    """
    epoch, step = int(contents["epoch"]), int(contents["step"])
    if step and step == contents.get("steps_per_epoch"):
        return epoch, False
    return epoch - 1, step > 0


def resumed_step(contents: Mapping[str, Any], steps: int) -> int:
    """The step that a run goes on with, in epochs of `steps`, which are others where the data have changed."""
    step = int(contents["step"])
    return steps if step == contents.get("steps_per_epoch") else min(step, steps)


def save_checkpoint(path: Path, contents: dict[str, Any]) -> None:
    """Write a checkpoint and its seal, all or nothing."""
    about = {"format": f"{KIND}{VERSION}", "written_by": __version__, SEALED: True}
    with replacing(path) as file:
        torch.save({**about, **contents}, file)
        seal_zip(file)


def load_checkpoint(path: str | Path, *, resuming: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Parameters
    ----------
    path : path
    resuming : bool
        Refuse one that a run cannot go on from.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, changed since it was written, written by a newer version, or not a checkpoint
        of this project.
    """
    expected = "a checkpoint of etf-train"
    with reading(path, expected, CheckpointError), open(path, "rb") as file:
        sealed = check_zip(file)
        contents = torch.load(file, map_location="cpu", weights_only=True)
        kind = str(contents.get("format")) if isinstance(contents, dict) else ""
        if not kind.startswith(KIND):
            raise CheckpointError(f"{path} is of another kind: expected {expected}, with the format {KIND}{VERSION}")
        version = int(kind.removeprefix(KIND))
        if version > VERSION:
            writer = contents["written_by"]
            raise CheckpointError(f"{path} has format {version}, newer than {VERSION}: update nearest-etf to {writer}")
        if contents.pop(SEALED, False) and not sealed:
            raise Damage("its seal is missing")
        if version < VERSION:
            contents = present_checkpoint(contents)
        check_shape(contents, RESUMABLE if resuming else USABLE)
        return contents
