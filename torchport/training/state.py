"""Restore the state of a run from its checkpoint, after checking that it fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...common.seals import Damage
from ..heads import Classifier
from .ema import WeightAverage


def restore(
    saved: Mapping[str, Any],
    model: Classifier[Any],
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Restore model, average, optimizer and scaler from a checkpoint.

    Parameters
    ----------
    saved : mapping
        `load_checkpoint(path, resuming=True)`.
    model, average, optimizer, scaler
        Built from the settings of the run.

    Raises
    ------
    Damage, RuntimeError, ValueError, …
        If the checkpoint does not fit; `common.files.reading` adds the file's name.
    """
    model.load_state_dict(saved["model"])
    if hasattr(model.head, "warm_start"):
        model.head.warm_start = saved.get("warm_start")
    average.load_state_dict(saved.get("ema", {}))
    check_optimizer(saved["optimizer"], optimizer)
    own = optimizer.state_dict()["param_groups"]  # options missing in the checkpoint keep their value
    groups = [ours | theirs for ours, theirs in zip(own, saved["optimizer"]["param_groups"], strict=True)]
    optimizer.load_state_dict({"state": saved["optimizer"]["state"], "param_groups": groups})
    scaler.load_state_dict(saved["scaler"])
    if saved["totals"].shape != (3,) or saved["epoch"] < 1 or saved["step"] < 0:
        raise Damage("its epoch, step or totals are not those of a run")


def check_optimizer(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer's state that does not fit: other groups, or tensors of other shapes.

    >>> parameter = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    >>> check_optimizer({**optimizer.state_dict(), "state": {0: {"momentum_buffer": torch.zeros(3)}}}, optimizer)
    Traceback (most recent call last):
    ...
    nearest_etf.common.seals.Damage: momentum_buffer of parameter 0 does not have the parameter's shape, (2,)
    """
    own = optimizer.state_dict()["param_groups"]
    kinds = [{name: type(value) for name, value in group.items()} for group in saved["param_groups"]]
    if [group["params"] for group in own] != [group.get("params") for group in saved["param_groups"]]:
        raise Damage("its optimizer has other parameters")
    for group, kind in zip(own, kinds, strict=True):
        for name, value in group.items():
            numbers = (int, float)
            found = kind.get(name, type(value))  # a newer torch may have more options
            if found is not type(value) and not (found in numbers and type(value) in numbers):
                raise Damage(f"{name} of its optimizer is of type {found.__name__}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, state in saved["state"].items():
        for name, value in state.items():
            if name != "step" and not isinstance(value, Tensor | None):
                raise Damage(f"{name} of parameter {number} is of type {type(value).__name__}")
            size = torch.Size([]) if name == "step" else parameters[number].shape
            if isinstance(value, Tensor) and value.shape != size:
                raise Damage(f"{name} of parameter {number} does not have the parameter's shape, {tuple(size)}")
            if not isinstance(value, Tensor | int | float | None):
                raise Damage(f"{name} of parameter {number} is of type {type(value).__name__}")
