"""Checkpoints: one file with everything needed to resume a run or to use its model.

A checkpoint is a plain dictionary of tensors, numbers and strings, which `torch.load(weights_only=True)` reads.
Version 1 of the format, which 0.1.0 wrote, is read through the table of old names. The file carries a seal that detects
a single changed bit. Files of earlier versions have no seal and are checked by their CRC-32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .... import __version__
from ....common.errors import UserError
from ....common.files import opened, reading, replacing
from ....common.old_names import present_checkpoint
from ....common.seals import Damage, check_zip, seal_zip
from ....common.shapes import check_shape
from .reading import DATA

KIND = "nearest-etf checkpoint, version "
VERSION = 2
SEALED = "sealed"  # the key of sealed checkpoints, by which a missing seal is detected

# Entries of a usable checkpoint, and those that a run needs to resume.
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
    """Complete epochs of a checkpoint, and whether it was made in the middle of the next epoch.

    A checkpoint after the last step of an epoch precedes that epoch's evaluation: its `evaluated` is false.

    >>> trained_epochs({"epoch": 3, "step": 0}), trained_epochs({"epoch": 3, "step": 5, "steps_per_epoch": 5})
    ((2, False), (3, False))
    """
    epoch, step = int(contents["epoch"]), int(contents["step"])
    if step and step == contents.get("steps_per_epoch"):
        return epoch, False
    return epoch - 1, step > 0


def resumed_step(contents: Mapping[str, Any], steps: int) -> int:
    """The step at which a run resumes, in epochs of `steps` steps, whose number changes with the data."""
    step = int(contents["step"])
    return steps if step == contents.get("steps_per_epoch") else min(step, steps)


def save_checkpoint(path: Path, contents: dict[str, Any]) -> None:
    """Write a checkpoint and its seal atomically."""
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
        Refuse a checkpoint that lacks what a run needs to resume.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, changed since it was written, written by a newer version, or not a checkpoint
        of this project.
    """
    expected = "a checkpoint of etf-train"
    with reading(path, expected, CheckpointError), opened(path) as file:
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
