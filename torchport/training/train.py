"""The training loop: train a network with the nearest simplex ETF as its classifier, from top to bottom.

    etf-train digits --head implicit --seed 0 --output runs/digits        # seconds on a laptop
    etf-train cifar10-resnet18 --head implicit --val-fraction 0.1         # on a GPU if there is one
    etf-train --data path/to/images --backbone resnet50 --head implicit   # CLASS/*.jpg, or train/, val/, test/ of these
    etf-train --resume --output runs/digits                               # resumes that run where it stopped
    etf-train --resume --epochs 40 --output runs/digits                   # trains it further
    torchrun --nproc-per-node 4 -m nearest_etf.torchport.training.etf_train cifar10-resnet18   # four GPUs

In Python: `train(load_recipe("digits", {"head": "implicit"}), "runs/digits")`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...common.errors import UserError
from ...common.files import reading
from ...common.machine import provenance
from .assembly import Assembly, assemble
from .data.fingerprint import compare_data, recorded
from .data.held_out import uncovered
from .data.load import training_data
from .device import computing_device
from .evaluate import evaluate_splits, solver_health
from .freeze import train_mode
from .losses import training_loss
from .optim import learning_rate
from .progress import (
    Interrupt,
    Progress,
    picture,
    recalibrated_line,
    result_line,
    resume_flags,
    resumed_line,
    run_line,
    watched,
    with_warnings,
)
from .recalibrate import recalibrate_head
from .records import Records
from .run.checkpoint import CheckpointError, load_checkpoint
from .run.data_path import located
from .run.folder import RunFolder
from .run.reading import Row, read_rows, read_run
from .run.settings import FOLLOWS_MEANS, Settings, SettingsError
from .seeding import seed_step
from .start import start_head
from .state import Position, restore
from .tensorboard import scalar_writer
from .totals import Losses, batch_totals, is_finite

CHECK_EVERY = 100  # steps between checks of the loss, each of which synchronises with the device


class TrainingError(UserError):
    """A run that cannot continue; the message gives the reason and the checkpoints that remain."""

    exit_status = 1


def train(
    settings: Settings,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    data_dir: str | Path | None = None,
    device: str | torch.device | None = None,
    recalibrate: bool | None = None,
    quiet: bool = False,
) -> Row:
    """Train a model and write its run folder.

    Parameters
    ----------
    settings : Settings
    output : path
        The run folder. It must not exist unless `resume` or `overwrite` is set.
    resume : bool
        Continue from the folder's last checkpoint, bit-identically on the CPU. `epochs` may grow; `workers` and the
        location of an image folder may change; all other settings must be the same.
    overwrite : bool
        Replace the folder's contents, once the new run has a checkpoint.
    data_dir : path, optional
        Folder of the data sets. Default: `NEAREST_ETF_DATA`, or the user's cache folder.
    device : str, optional
        "cpu", "cuda", "cuda:1", …. Default: a GPU if there is one.
    recalibrate : bool, optional
        At the end, set class means, W and b from one exact pass over the training split instead of running means.
        Writes recalibrated.pt, and recalibrated.json with the metrics before and after. Default: for the heads of
        `FOLLOWS_MEANS` (implicit, class-mean, tight-frame).
    quiet : bool
        Print nothing; log.txt is still written.

    Returns
    -------
    dict
        Metrics of the last epoch; empty on all processes but the first.

    Raises
    ------
    SettingsError, RunError, DataError, CheckpointError
        If settings, run folder, data or checkpoint cannot be used; the output folder is unchanged.
    TrainingError
        If the loss is not finite; the last good checkpoint remains.
    Stopped
        On SIGINT or SIGTERM, after saving; the message contains the command that resumes the run.

    Examples
    --------
    >>> import tempfile
    >>> settings = Settings(data="ufm", num_classes=3, samples_per_class=2, batch_size=6, num_features=4, epochs=2)
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     train(settings, f"{parent}/run", device="cpu", quiet=True)["epoch"]
    2
    """
    # Run folder and device. Under torchrun every process has a rank; only rank 0 writes.
    follows, flags = settings.head in FOLLOWS_MEANS, resume_flags(data_dir, device, recalibrate, quiet)
    if recalibrate and not follows:
        raise SettingsError(f"recalibrate is for the heads {', '.join(FOLLOWS_MEANS)}, not for {settings.head}")
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = computing_device(device)
    if world_size > 1:
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        dist.barrier()  # rank 0 may still be writing the end of an earlier run
    settings = located(settings)
    folder = RunFolder(output, settings, resume=resume, overwrite=overwrite)
    saved = load_checkpoint(folder.path / "last.pt", resuming=True) if folder.resumed else {}
    torch.manual_seed(settings.seed)

    # The data, as 8-bit images: on the device, or behind worker processes. Rank 0 may have to download them first.
    if rank > 0:
        dist.barrier()
    data, warned = with_warnings(training_data, settings, data_dir, saved.get("data"))
    if rank == 0 and world_size > 1:
        dist.barrier()
    kept = recorded(data)
    changed = compare_data(saved["data"], kept) if saved else ""

    # Model, batches and optimizer, and the state of a resumed run.
    run = assemble(settings, data, device, rank=rank, world_size=world_size, resumed=bool(saved))
    at = Position(device)
    if saved:
        with reading(folder.path / "last.pt", "the state of this run", CheckpointError):
            at = restore(saved, run)

    # The run folder. Before this point nothing is written, and nothing of an earlier run is deleted.
    steps = run.steps_per_epoch
    done = steps * (at.epoch - 1) + at.step
    progress = Progress(folder, steps * settings.epochs, done, writing=rank == 0, quiet=quiet, warned=warned)
    interrupt = Interrupt(folder, flags, saying=progress.printing)
    run.loaders = watched(run.loaders, data, progress, interrupt)
    notes = [*run.notes, *uncovered(data)]
    if rank == 0:
        where = provenance(str(device))
        notes = folder.begin() + notes
        if not folder.resumed or settings != folder.saved_settings or changed:
            folder.write_config(settings, kept, where)
        folder.truncate(at.epoch - 1 if saved else -1)
    progress.log(run_line(settings, data, run.model, device, world_size, steps))
    for note in notes:
        progress.log(note)
    if saved:
        progress.log(resumed_line(folder.saved_settings, settings, at.epoch, at.step, steps))
    if changed:
        progress.log(changed)
    scalars = scalar_writer(folder.path / "tensorboard", at.epoch, enabled=rank == 0)
    records = Records(run, kept, folder, progress, interrupt, scalars)

    with folder, picture(folder, enabled=rank == 0), scalars, progress, interrupt:
        if (settings.fine_tuning or settings.aligned) and not saved:  # epoch 0: metrics before the first step
            start_head(run.model, settings, run.loaders["train"].ordered())
            run.average.restart()
            row: Row = {"epoch": 0, **evaluate_splits(run.average.model(), run.loaders)}
            records.conclude(row, at, evaluated=True)
        while at.epoch <= settings.epochs:
            stopped = train_epoch(run, at, progress, interrupt)
            # The checkpoint precedes the evaluation, which a signal may stop: a resumed run begins with the evaluation.
            evaluated = at.epoch % settings.eval_interval == 0 or at.epoch == settings.epochs
            if stopped or evaluated:
                records.save("last.pt", at)
            if stopped:
                raise interrupt.stop()
            row = running_metrics(run, at)
            if evaluated:
                row |= evaluate_splits(run.average.model(), run.loaders) | at.solver
            at.begin_next_epoch()
            records.conclude(row, at, evaluated=evaluated)

        # The last classifier comes from running means; one exact pass over the training split replaces them.
        last = read_rows(folder.path)[-1] if rank == 0 else {}
        if follows and recalibrate is not False:
            recalibrate_head(run.average.model(), run.loaders["train"].ordered())
            exact = evaluate_splits(run.average.model(), run.loaders)
            records.save("recalibrated.pt", at)
            if rank == 0:
                running = {name: last[name] for name in exact if name in last}
                folder.write_recalibrated(settings.epochs, running, exact)
                progress.log(recalibrated_line(last, exact))
    if rank == 0:
        progress.log(result_line(read_run(folder.path)))
    return last


def train_epoch(run: Assembly, at: Position, progress: Progress, interrupt: Interrupt) -> bool:
    """Train the steps of an epoch from `at.step` on; return whether a signal has stopped them.

    Raises
    ------
    TrainingError
        If the loss or the weights are not finite.
    """
    first, began, stopped, losses = at.step, time.perf_counter() - at.seconds, False, Losses()
    train_mode(run.model, run.kept_in_eval)
    for images, labels in run.mixing(run.loaders["train"].epoch(at.epoch, at.step), at.epoch, at.step):
        try:
            train_step(run, at, images, labels, losses)
        except FloatingPointError as error:
            raise diverged(at.epoch, losses.not_finite() or at.step + 1, progress.folder.path) from error
        progress.advance()
        at.step += 1
        if at.step % CHECK_EVERY == 0 and (bad := losses.not_finite()):
            raise diverged(at.epoch, bad, progress.folder.path)
        stopped = interrupt.agreed()
        if stopped:
            break

    # Totals of the epoch, summed over all processes; batch-norm statistics of rank 0 for all.
    at.seconds = time.perf_counter() - began
    if run.world_size > 1:
        dist.all_reduce(at.totals)
        for buffer in run.model.buffers():
            dist.broadcast(buffer, 0)
    if not is_finite(at.totals, run.model):
        raise diverged(at.epoch, losses.not_finite() or at.step, progress.folder.path)
    seed_step(run.device, run.settings.seed, at.epoch, at.step, run.rank)
    if at.step > first:
        at.solver = solver_health(run.model.head)
    return stopped


def train_step(run: Assembly, at: Position, images: Tensor, labels: Tensor, losses: Losses) -> None:
    """One step of the optimizer on a batch.

    Given labels, the implicit head normalises the features to h = τ f/‖f‖, updates the running class means H with this
    batch, solves for the simplex ETF U nearest to H, and returns the logits W h + b of the classifier
    W = √(K/(K−1)) M Uᵀ, b = −W μ_G. The gradient reaches the features through h and, in closed form, through U as well.
    The head, like batch norm, treats each microbatch as a batch.

    Parameters
    ----------
    images : Tensor (B, C, H, W)
    labels : Tensor (B,) or soft labels (B, K)
    losses : Losses
        The loss of each microbatch is added to it.

    Raises
    ------
    FloatingPointError
        If the features are not finite.
    """
    settings, tau, microbatches = run.settings, run.model.head.temperature, run.settings.grad_accum_steps
    rate = learning_rate(settings, ((at.epoch - 1) * run.steps_per_epoch + at.step) / run.total_steps)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
    seed_step(run.device, settings.seed, at.epoch, at.step, run.rank)  # dropout, stochastic depth
    run.optimizer.zero_grad()
    for x, y in zip(images.chunk(microbatches), labels.chunk(microbatches), strict=True):
        try:
            logits = run.network(x, y)
        except ValueError as error:  # the head refuses features that are not finite
            raise FloatingPointError(str(error)) from error
        loss = training_loss(settings.loss, logits, y, tau, **run.loss_options)
        run.scaler.scale(loss * len(x) / len(images)).backward()
        at.totals += batch_totals(loss, logits, y)
        losses.add(at.step, loss)
    if settings.clip:
        run.scaler.unscale_(run.optimizer)
        nn.utils.clip_grad_norm_(run.model.parameters(), settings.clip)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.average.update()


def running_metrics(run: Assembly, at: Position) -> Row:
    """Metrics of an epoch's training batches, each with the classifier that follows from its own labels.

    All other metrics use eval mode and the stored classifier.
    """
    loss_sum, right, count = at.totals.tolist()
    return {
        "epoch": at.epoch,
        "seconds": round(at.seconds, 4),
        "images_per_second": round(at.step * run.settings.batch_size / at.seconds, 1),
        "lr": learning_rate(run.settings, (at.epoch * run.steps_per_epoch - 1) / run.total_steps),
        "running_loss": loss_sum / count,
        "running_accuracy": right / count,
    }


def diverged(epoch: int, step: int, run: Path) -> TrainingError:
    """The error of a run whose loss is not finite."""
    kept = f"the checkpoints of {run} are those after epoch {epoch - 1}" if epoch > 1 else "no epoch was completed"
    return TrainingError(
        f"the loss is not finite in epoch {epoch}, step {step}: stopped; {kept}; "
        "try a lower --lr, --clip 1 or another --precision"
    )
