"""Every figure of a run's checkpoints, on all splits of its data set, by the evaluation pass of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..heads import ImplicitETFHead
from ..procrustes import solve
from .data.load import training_data
from .data.loaders import make_loader
from .device import computing_device, use_precision
from .evaluate import evaluate
from .measurement import Measurement, save_measurement
from .model import load_model
from .run.checkpoint import load_checkpoint
from .run.reading import Run, RunError, read_run

CHECKPOINTS = ("best", "last")  # measured by default, where they exist


def measure_run(
    run: str | Path,
    checkpoint: str | None = None,
    *,
    data_dir: str | Path | None = None,
    device: str | torch.device | None = None,
) -> dict[str, Measurement]:
    """Measure checkpoints of a run, and keep each measurement in the run folder.

    Parameters
    ----------
    run : path
        A run folder of `etf-train`.
    checkpoint : {"best", "last", "recalibrated"}, optional
        Default: best and last, where they exist.
    data_dir : path, optional
        Where data sets lie, as for `etf-train`.
    device : str or torch.device, optional
        "cpu", "cuda", …; default: a GPU where there is one.

    Raises
    ------
    UserError
        If the run, its checkpoint or its data are missing or damaged.
    """
    found = read_run(run, need_rows=False)
    measurements = {}
    for name in chosen_checkpoints(found, checkpoint):
        measurements[name] = measure(run, name, data_dir=data_dir, device=device)
        save_measurement(run, name, measurements[name])
    return measurements


def chosen_checkpoints(run: Run, checkpoint: str | None) -> list[str]:
    """The checkpoints to measure, all of which exist."""
    if checkpoint is None:
        chosen = [name for name in CHECKPOINTS if name in run.checkpoints]
    else:
        chosen = [name for name in run.checkpoints if name == checkpoint]
    if not chosen:
        wanted = f"{checkpoint}.pt" if checkpoint else "checkpoint to measure"
        raise RunError(f"{run.path} has no {wanted}: it has {', '.join(run.checkpoints) or 'none yet'}")
    return chosen


def measure(
    run: str | Path,
    checkpoint: str | None = None,
    *,
    data_dir: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Measurement:
    """Measure one checkpoint, in the precision of its training.

    Parameters
    ----------
    run, data_dir, device
        As for `measure_run`.
    checkpoint : {"best", "last", "recalibrated"}, optional
        Default: the run's result, which is best where there was validation data, else last.

    Raises
    ------
    UserError
        As `measure_run`.
    """
    checkpoint = checkpoint or read_run(run, need_rows=False).result
    model, settings = load_model(run, checkpoint)
    device = computing_device(device)
    use_precision(model.to(device).backbone, device, settings.precision)
    data = training_data(settings, data_dir)
    figures: dict[str, float] = {}
    arrays: dict[str, NDArray[Any]] = {"weight": model.head.weight.detach().cpu().numpy()}
    for name, split in data.splits().items():
        loader = make_loader(split, data, settings, device=device)
        evaluation = evaluate(model, loader.ordered(), numerical_rank=True)
        figures |= evaluation.prefixed(name)
        arrays[f"{name}_class_mean_rows"] = evaluation.class_mean_rows.cpu().numpy()
        arrays[f"{name}_margins"] = evaluation.margin_histogram
    if isinstance(model.head, ImplicitETFHead):
        arrays["singular_values"] = singular_values(model.head)
    epoch = int(load_checkpoint(Path(run) / f"{checkpoint}.pt")["epoch"]) - 1
    return Measurement(epoch, figures, arrays)


@torch.no_grad()
def singular_values(head: ImplicitETFHead) -> NDArray[np.float64]:
    """Singular values of the A that the head's next solve would decompose, descending, (m,)."""
    H = head.running.class_means.double()
    norm = H.norm().clamp_min(torch.finfo(H.dtype).tiny)
    solution = solve(H / norm, head.frame.double(), head.delta, method="svd", formulation=head.formulation)
    return solution.singular_values.cpu().numpy()
