"""The state of a run: what its checkpoints contain, and how a resumed run restores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...common.seals import Damage
from .assembly import Assembly
from .run.checkpoint import resumed_step


@dataclass
class Position:
    """Where a run stands: before step `step` of epoch `epoch`, with the sums of that epoch so far.

    Attributes
    ----------
    device : torch.device
    epoch, step : int
        The epoch from 1 on, its step from 0 on. The step after the last precedes the epoch's evaluation.
    totals : Tensor (3,)
        Sums of loss, correct answers and samples, see `batch_totals`.
    seconds : float
        Of training.
    solver : dict of str to float
        Diagnostics of the last step, see `solver_health`.
    best_accuracy : float
        On validation images, over all epochs; −1 before the first.

    Examples
    --------
    >>> at = Position(torch.device("cpu"), step=5, seconds=0.1)
    >>> at.begin_next_epoch()
    >>> at.epoch, at.step, at.seconds
    (2, 0, 0.0)
    """

    device: torch.device
    epoch: int = 1
    step: int = 0
    totals: Tensor = field(init=False)
    seconds: float = 0.0
    solver: dict[str, float] = field(default_factory=dict)
    best_accuracy: float = -1.0

    def __post_init__(self) -> None:
        self.totals = torch.zeros(3, dtype=torch.float64, device=self.device)

    def begin_next_epoch(self) -> None:
        """Go to the first step of the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        self.totals, self.seconds, self.solver = torch.zeros_like(self.totals), 0.0, {}


def state_dict(run: Assembly, at: Position) -> dict[str, Any]:
    """What a checkpoint contains besides the description of the data; the inverse of `restore`."""
    return {
        "settings": run.settings.to_dict(),
        "model": run.model.state_dict(),
        "ema": run.average.state_dict(),
        "warm_start": getattr(run.model.head, "warm_start", None),  # a cache that affects the last bits
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "totals": at.totals,
        "epoch": at.epoch,
        "step": at.step,
        "steps_per_epoch": run.steps_per_epoch,
        "seconds": at.seconds,
        "solver": at.solver,
        "evaluated": at.step == 0,
        "best_accuracy": at.best_accuracy,
    }


def restore(saved: Mapping[str, Any], run: Assembly) -> Position:
    """Restore model, average, optimizer and scaler from a checkpoint, and return where it stands.

    Parameters
    ----------
    saved : mapping
        `load_checkpoint(path, resuming=True)`.
    run : Assembly
        Made from the settings of the run.

    Raises
    ------
    Damage, RuntimeError, ValueError, …
        If the checkpoint does not fit; `common.files.reading` adds the file's name.
    """
    run.model.load_state_dict(saved["model"])
    if hasattr(run.model.head, "warm_start"):
        run.model.head.warm_start = saved.get("warm_start")
    run.average.load_state_dict(saved.get("ema", {}))
    check_optimizer(saved["optimizer"], run.optimizer)
    own = run.optimizer.state_dict()["param_groups"]  # options missing in the checkpoint keep their value
    groups = [ours | theirs for ours, theirs in zip(own, saved["optimizer"]["param_groups"], strict=True)]
    run.optimizer.load_state_dict({"state": saved["optimizer"]["state"], "param_groups": groups})
    run.scaler.load_state_dict(saved["scaler"])
    if saved["totals"].shape != (3,) or saved["epoch"] < 1 or saved["step"] < 0:
        raise Damage("its epoch, step or totals are not those of a run")
    at = Position(
        run.device,
        epoch=saved["epoch"],
        step=resumed_step(saved, run.steps_per_epoch),
        seconds=saved.get("seconds", 0.0),
        solver=saved.get("solver", {}),
        best_accuracy=saved["best_accuracy"],
    )
    if run.rank == 0:  # the saved totals are sums over all processes
        at.totals = saved["totals"].to(run.device)
    return at


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
