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
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ...common.errors import UserError
from ...common.files import reading
from ...common.machine import provenance
from .data.fingerprint import compare_data, recorded
from .data.held_out import uncovered
from .data.load import training_data
from .data.loaders import make_loader
from .data.mixing import Mixing
from .device import computing_device, use_precision
from .ema import WeightAverage
from .evaluate import evaluate_splits, solver_health
from .freeze import freeze, train_mode
from .losses import loss_options, training_loss
from .model import build_model
from .optim import build_optimizer, learning_rate
from .progress import (
    Interrupt,
    Progress,
    epoch_line,
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
from .run.checkpoint import CheckpointError, load_checkpoint, resumed_step, save_checkpoint
from .run.data_path import located
from .run.folder import RunFolder
from .run.reading import Row, read_rows, read_run
from .run.settings import FOLLOWS_MEANS, Settings, SettingsError
from .seeding import seed_step
from .start import start_head
from .state import restore
from .tensorboard import scalar_writer
from .totals import Losses, batch_totals, is_finite
from .weights import start_weights

SAVE_EVERY = 60.0  # seconds between checkpoints if evaluations are rarer
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
    loaders = {
        name: make_loader(split, data, settings, device=device, rank=rank, world_size=world_size)
        for name, split in data.splits().items()
    }
    steps = loaders["train"].steps_per_epoch()
    mixing = Mixing(settings, data, rank=rank, world_size=world_size)
    weighing = loss_options(settings, data, device)

    # The model: a backbone from images to features, and the head, which holds the classifier W, b.
    model = build_model(settings, data.image_shape, data.num_classes).to(device)
    notes = [] if saved else start_weights(model.backbone, settings, data.image_shape[2])
    kept_in_eval = freeze(model, settings)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tau = model.head.temperature
    optimizer = build_optimizer(settings, model)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
    average = WeightAverage(model, settings)
    for made in average.models():
        use_precision(made.backbone, device, settings.precision)
    if settings.compile:
        model.backbone.compile()
    network: nn.Module = nn.parallel.DistributedDataParallel(model) if world_size > 1 else model

    # The state of a resumed run.
    start_epoch, start_step, best_accuracy, saved_at = 1, 0, -1.0, time.monotonic()
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # loss, right, samples of the epoch so far
    elapsed, solver = 0.0, {}  # seconds of the epoch so far, diagnostics of its last step
    if saved:
        with reading(folder.path / "last.pt", "the state of this run", CheckpointError):
            restore(saved, model, average, optimizer, scaler)
        start_epoch, start_step, best_accuracy = saved["epoch"], resumed_step(saved, steps), saved["best_accuracy"]
        elapsed, solver = saved.get("seconds", 0.0), saved.get("solver", {})
        if rank == 0:  # the saved totals are sums over all processes
            totals = saved["totals"].to(device)

    def save(name: str, epoch: int, step: int) -> None:
        """Write a checkpoint from which the run resumes at step `step` of epoch `epoch`; see `trained_epochs`."""
        state: dict[str, Any] = {
            "settings": settings.to_dict(),
            "data": kept,
            "model": model.state_dict(),
            "ema": average.state_dict(),
            "warm_start": getattr(model.head, "warm_start", None),  # a cache that affects the last bits
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "totals": totals,
            "epoch": epoch,
            "step": step,
            "steps_per_epoch": steps,
            "seconds": elapsed,
            "solver": solver if step else {},
            "evaluated": step == 0,
            "best_accuracy": best_accuracy,
        }
        if rank == 0:
            save_checkpoint(folder.path / name, state)
            folder.replaced()
        interrupt.saved = True

    def conclude(row: Row, *, evaluated: bool) -> None:
        """Write the metrics of an epoch, then the checkpoint before the next one."""
        nonlocal best_accuracy, saved_at
        if rank == 0:
            folder.append(row)
            scalars.append(row)
        if evaluated:
            progress.log(epoch_line(row, settings.epochs))
            if row.get("val_accuracy", -1.0) > best_accuracy:  # never chosen on test data
                best_accuracy = row["val_accuracy"]
                save("best.pt", int(row["epoch"]) + 1, 0)
        if evaluated or time.monotonic() - saved_at > SAVE_EVERY:
            save("last.pt", int(row["epoch"]) + 1, 0)
            saved_at = time.monotonic()

    # The run folder. Before this point nothing is written, and nothing of an earlier run is deleted.
    done = steps * (start_epoch - 1) + start_step
    progress = Progress(folder, steps * settings.epochs, done, writing=rank == 0, quiet=quiet, warned=warned)
    interrupt = Interrupt(folder, flags, saying=progress.printing)
    loaders = watched(loaders, data, progress, interrupt)
    loader = loaders["train"]
    if rank == 0:
        where = provenance(str(device))
        notes += folder.begin()
        if not folder.resumed or settings != folder.saved_settings or changed:
            folder.write_config(settings, kept, where)
        folder.truncate(start_epoch - 1 if saved else -1)
    progress.log(run_line(settings, data, model, device, world_size, steps))
    for note in (*notes, *uncovered(data)):
        progress.log(note)
    if saved:
        progress.log(resumed_line(folder.saved_settings, settings, start_epoch, start_step, steps))
    if changed:
        progress.log(changed)
    scalars = scalar_writer(folder.path / "tensorboard", start_epoch, enabled=rank == 0)
    with folder, picture(folder, enabled=rank == 0), scalars, progress, interrupt:
        if (settings.fine_tuning or settings.aligned) and not saved:  # epoch 0: metrics before the first step
            start_head(model, settings, loader.ordered())
            average.restart()
            conclude({"epoch": 0, **evaluate_splits(average.model(), loaders)}, evaluated=True)
        for epoch in range(start_epoch, settings.epochs + 1):
            began, done, stop, losses = time.perf_counter() - elapsed, start_step, False, Losses()
            train_mode(model, kept_in_eval)
            batches = mixing(loader.epoch(epoch, start_step), epoch, start_step)
            for step, (images, labels) in enumerate(batches, start_step):
                rate = learning_rate(settings, ((epoch - 1) * steps + step) / (settings.epochs * steps))
                seed_step(device, settings.seed, epoch, step, rank)  # dropout, stochastic depth
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("lr_scale", 1.0)

                # Given labels, the implicit head normalises the features to h = τ f/‖f‖, updates the running
                # class means H with this batch, solves for the simplex ETF U nearest to H, and returns the
                # logits W h + b of the classifier W = √(K/(K−1)) M Uᵀ, b = −W μ_G. The head, like batch norm,
                # treats each microbatch as a batch.
                optimizer.zero_grad()
                for microbatch, microbatch_labels in zip(
                    images.chunk(settings.grad_accum_steps), labels.chunk(settings.grad_accum_steps), strict=True
                ):
                    try:
                        logits = network(microbatch, microbatch_labels)
                    except ValueError as error:  # the head refuses features that are not finite
                        raise diverged(epoch, losses.not_finite() or step + 1, folder.path) from error
                    loss = training_loss(settings.loss, logits, microbatch_labels, tau, **weighing)
                    # The gradient reaches the features through h and, in closed form, through U as well.
                    scaler.scale(loss * len(microbatch) / len(images)).backward()
                    totals += batch_totals(loss, logits, microbatch_labels)
                    losses.add(step, loss)
                if settings.clip:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
                scaler.step(optimizer)
                scaler.update()
                average.update()
                progress.advance()
                done = step + 1
                if step % CHECK_EVERY == CHECK_EVERY - 1 and (bad := losses.not_finite()):
                    raise diverged(epoch, bad, folder.path)
                stop = interrupt.agreed()
                if stop:
                    break

            # Totals of the epoch, summed over all processes; batch-norm statistics of rank 0 for all.
            elapsed = time.perf_counter() - began
            if world_size > 1:
                dist.all_reduce(totals)
                for buffer in model.buffers():
                    dist.broadcast(buffer, 0)
            if not is_finite(totals, model):
                raise diverged(epoch, losses.not_finite() or done, folder.path)
            seed_step(device, settings.seed, epoch, done, rank)

            # The checkpoint precedes the evaluation, which a signal may stop: a resumed run begins with the evaluation.
            evaluated = epoch % settings.eval_interval == 0 or epoch == settings.epochs
            if done > start_step:
                solver = solver_health(model.head)
            if stop or evaluated:
                save("last.pt", epoch, done)
            if stop:
                raise interrupt.stop()

            # Running metrics are those of training batches with the classifier solved from their own labels;
            # reported metrics use eval mode and the stored classifier.
            loss_sum, right, count = totals.tolist()
            row: Row = {
                "epoch": epoch,
                "seconds": round(elapsed, 4),
                "images_per_second": round(done * settings.batch_size / elapsed, 1),
                "lr": learning_rate(settings, (epoch * steps - 1) / (settings.epochs * steps)),
                "running_loss": loss_sum / count,
                "running_accuracy": right / count,
            }
            if evaluated:
                row |= evaluate_splits(average.model(), loaders) | solver
            totals, start_step, elapsed = torch.zeros_like(totals), 0, 0.0
            conclude(row, evaluated=evaluated)

        # The last classifier comes from running means; one exact pass over the training split replaces them.
        last = read_rows(folder.path)[-1] if rank == 0 else {}
        if follows and recalibrate is not False:
            recalibrate_head(average.model(), loader.ordered())
            exact = evaluate_splits(average.model(), loaders)
            save("recalibrated.pt", settings.epochs + 1, 0)
            if rank == 0:
                running = {name: last[name] for name in exact if name in last}
                folder.write_recalibrated(settings.epochs, running, exact)
                progress.log(recalibrated_line(last, exact))
    if rank == 0:
        progress.log(result_line(read_run(folder.path)))
    return last


def diverged(epoch: int, step: int, run: Path) -> TrainingError:
    """The error of a run whose loss is not finite."""
    kept = f"the checkpoints of {run} are those after epoch {epoch - 1}" if epoch > 1 else "no epoch was completed"
    return TrainingError(
        f"the loss is not finite in epoch {epoch}, step {step}: stopped; {kept}; "
        "try a lower --lr, --clip 1 or another --precision"
    )
