"""Checkpoints: one file with everything that a run needs to go on, or that somebody needs to use the model.

A checkpoint is a plain dictionary of tensors, numbers and strings, which `torch.load(weights_only=True)` reads.
Version 1 of the format, which 0.1.0 wrote, is read through the table of old names.
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

KIND = "nearest-etf checkpoint, version "
VERSION = 2


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


def random_state() -> dict[str, Any]:
    """State of every global random generator; batches and augmentation draw from none of them."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the global random generators where `random_state` found them."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def save_checkpoint(path: Path, contents: dict[str, Any]) -> None:
    """Write a checkpoint, all or nothing."""
    with replacing(path) as file:
        torch.save({"format": f"{KIND}{VERSION}", "written_by": __version__, **contents}, file)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, written by a newer version, or not a checkpoint of this project.
    """
    expected = "a checkpoint of etf-train"
    with reading(path, expected, CheckpointError):
        contents = torch.load(path, map_location="cpu", weights_only=True)
        kind = str(contents.get("format")) if isinstance(contents, dict) else ""
        if not kind.startswith(KIND):
            raise CheckpointError(f"{path} is of another kind: expected {expected}, with the format {KIND}{VERSION}")
        version = int(kind.removeprefix(KIND))
        if version > VERSION:
            writer = contents["written_by"]
            raise CheckpointError(f"{path} has format {version}, newer than {VERSION}: update nearest-etf to {writer}")
        return contents if version == VERSION else present_checkpoint(contents)
