"""All metrics of a run's checkpoints on every split of its data, from the evaluation pass of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...common.seals import zip_seal
from ..heads.solving import SolvingHead
from .data.fingerprint import compare_data, recorded
from .data.load import training_data
from .data.loaders import make_loader
from .device import computing_device, use_precision
from .evaluate import evaluate
from .measurement import Measurement, save_measurement
from .model import load_model
from .run.checkpoint import load_checkpoint, trained_epochs
from .run.data_path import located
from .run.reading import Run, RunError, read_run


def measure_run(
    run: str | Path,
    checkpoint: str | None = None,
    *,
    data: str | None = None,
    data_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    log: Callable[[str], object] = lambda line: None,
) -> dict[str, Measurement]:
    """Measure checkpoints of a run, and store each measurement in the run folder.

    Parameters
    ----------
    run : path
        A run folder of `etf-train`.
    checkpoint : {"best", "last", "recalibrated"}, optional
        Default: all that exist.
    data : str, optional
        The new location of the run's image folder, if it has moved.
    data_dir : path, optional
        Folder of the data sets, as for `etf-train`.
    device : str or torch.device, optional
        "cpu", "cuda", …. Default: a GPU if there is one.
    log : function
        Called with a line if the data differ from those of the run.

    Raises
    ------
    UserError
        If the run, its checkpoint or its data are missing or damaged, or the data have other classes than the run.
    """
    found = read_run(run, need_rows=False)
    measurements, lines = {}, list[str]()
    for name in chosen_checkpoints(found, checkpoint):
        measurements[name] = measure(run, name, data=data, data_dir=data_dir, device=device, log=lines.append)
        save_measurement(run, name, measurements[name])
    for line in dict.fromkeys(lines):
        log(line)
    return measurements


def chosen_checkpoints(run: Run, checkpoint: str | None) -> list[str]:
    """The existing checkpoints to measure."""
    chosen = [name for name in run.checkpoints if checkpoint in (None, name)]
    if not chosen:
        wanted = f"{checkpoint}.pt" if checkpoint else "checkpoint to measure"
        raise RunError(f"{run.path} has no {wanted}: it has {', '.join(run.checkpoints) or 'none yet'}")
    return chosen


def measure(
    run: str | Path,
    checkpoint: str | None = None,
    *,
    data: str | None = None,
    data_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    log: Callable[[str], object] = lambda line: None,
) -> Measurement:
    """Measure one checkpoint, in the precision of its training.

    Parameters
    ----------
    run, data, data_dir, device, log
        As for `measure_run`.
    checkpoint : {"best", "last", "recalibrated"}, optional
        Default: the run's result, see `Run.result`.

    Raises
    ------
    UserError
        As `measure_run`.
    """
    found = read_run(run, need_rows=False)
    checkpoint = checkpoint or found.result
    source = zip_seal(Path(run) / f"{checkpoint}.pt") if checkpoint in found.checkpoints else ""
    model, settings = load_model(found, checkpoint)
    device = computing_device(device)
    use_precision(model.to(device).backbone, device, settings.precision)
    contents = load_checkpoint(Path(run) / f"{checkpoint}.pt")
    images = training_data(located(settings, data or found.settings.get("data")), data_dir, contents["data"])
    if changed := compare_data(contents["data"], recorded(images)):
        log(changed)
    figures: dict[str, float] = {}
    arrays: dict[str, NDArray[Any]] = {"weight": model.head.weight.detach().cpu().numpy()}
    for name, split in images.splits().items():
        loader = make_loader(split, images, settings, device=device)
        evaluation = evaluate(model, loader.ordered(), numerical_rank=True)
        figures |= evaluation.prefixed(name)
        arrays[f"{name}_class_mean_rows"] = evaluation.class_mean_rows.cpu().numpy()
        arrays[f"{name}_margins"] = evaluation.margin_histogram
        if name != "train" or len(images.splits()) == 1:
            arrays[f"{name}_pairs"] = evaluation.pairs.astype(np.int32)
    if isinstance(model.head, SolvingHead):
        arrays["singular_values"] = singular_values(model.head)
    epochs, _ = trained_epochs(contents)
    return Measurement(epochs, figures, arrays, source)


@torch.no_grad()
def singular_values(head: SolvingHead) -> NDArray[np.float64]:
    """Singular values of A in the head's next solve, descending, (m,)."""
    H = head.running.class_means.double()
    norm = H.norm().clamp_min(torch.finfo(H.dtype).tiny)
    return head.solve(H / norm, head.frame.double(), "svd", None).singular_values.cpu().numpy()
