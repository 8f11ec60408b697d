"""The training loop: train a network with the nearest simplex ETF as its classifier, from top to bottom.

    etf-train digits --head implicit --seed 0 --output runs/digits        # seconds on a laptop
    etf-train cifar10-resnet18 --head implicit --val-fraction 0.1         # on the GPU, where there is one
    etf-train --data path/to/images --backbone resnet50 --head implicit   # CLASS/*.jpg, or train/, val/, test/ of these
    etf-train --resume --output runs/digits                               # goes on where that run stopped
    torchrun --nproc-per-node 4 -m nearest_etf.torchport.training.etf_train cifar10-resnet18   # four GPUs

In Python: `train(load_recipe("digits", {"head": "implicit"}), "runs/digits")`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...common.errors import UserError
from ...common.machine import provenance
from ..heads import Classifier, Head, ImplicitETFHead
from .curves import draw_curves
from .data.batches import Loader
from .data.load import training_data
from .data.loaders import make_loader
from .device import computing_device, use_precision
from .evaluate import evaluate
from .losses import training_loss
from .model import build_model
from .optim import build_optimizer, learning_rate
from .progress import Interrupt, Progress, epoch_line, recalibrated_line, result_line, run_line
from .recalibrate import recalibrate_head
from .run.checkpoint import load_checkpoint, random_state, save_checkpoint, set_random_state
from .run.folder import RunFolder
from .run.reading import Row, read_rows, read_run
from .run.settings import Settings, SettingsError
from .tensorboard import scalar_writer

SAVE_EVERY = 60.0  # seconds between checkpoints, where evaluations are rarer
CHECK_EVERY = 100  # steps between checks of the loss, each of which waits for the device


class TrainingError(UserError):
    """A run that cannot go on; the message is the reason, and which checkpoints stay."""

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
        The run folder; must not exist, unless `resume` or `overwrite`.
    resume : bool
        Go on from the folder's last checkpoint, bit-identically on the CPU.
    overwrite : bool
        Replace the folder's contents.
    data_dir : path, optional
        Where data sets lie; `NEAREST_ETF_DATA`, or the user's cache folder, by default.
    device : str, optional
        "cpu", "cuda", "cuda:1", …; a GPU by default where there is one.
    recalibrate : bool, optional
        At the end, set an implicit head's means, W and b from one exact pass over the training split, instead of
        relying on the last batches; writes recalibrated.pt and, with the figures before and after, recalibrated.json.
        The default is to do so for implicit heads.
    quiet : bool
        Print nothing; log.txt is written all the same.

    Returns
    -------
    dict
        Metrics of the last epoch; under several processes, empty on all but the first.

    Raises
    ------
    SettingsError, RunError, DataError, CheckpointError
        If something cannot be used; the output folder is then as it was.
    TrainingError
        If the loss is no longer finite; the last good checkpoint stays.
    Stopped
        After saving, on SIGINT or SIGTERM; with the command that goes on.

    Examples
    --------
    >>> import tempfile
    >>> settings = Settings(data="ufm", num_classes=3, samples_per_class=2, batch_size=6, num_features=4, epochs=2)
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     train(settings, f"{parent}/run", device="cpu", quiet=True)["epoch"]
    2
    """
    # Where to write, and where to compute.  Under torchrun every process has a rank; rank 0 does the writing.
    implicit = settings.head == "implicit"
    if recalibrate and not implicit:
        raise SettingsError(f"recalibrate is for the implicit head: the {settings.head} head has no class means")
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = computing_device(device)
    if world_size > 1:
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        dist.barrier()  # nobody reads the folder while rank 0 may still be writing an earlier run's end
    folder = RunFolder(output, settings, resume=resume, overwrite=overwrite)
    torch.manual_seed(settings.seed)

    # The data, as 8-bit images: on the device, or behind worker processes for image folders.
    # Rank 0 goes first, since it may have to download them.
    if rank > 0:
        dist.barrier()
    data = training_data(settings, data_dir)
    if rank == 0 and world_size > 1:
        dist.barrier()
    loaders = {
        name: make_loader(split, data, settings, device=device, rank=rank, world_size=world_size)
        for name, split in data.splits().items()
    }
    loader = loaders["train"]

    # The model: a backbone from images to features, and the head, which holds the classifier W, b.
    model = build_model(settings, data.image_shape, data.num_classes).to(device)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tau = model.head.temperature
    optimizer = build_optimizer(settings, model)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
    use_precision(model.backbone, device, settings.precision)
    if settings.compile:
        model.backbone.compile()
    network: nn.Module = nn.parallel.DistributedDataParallel(model) if world_size > 1 else model

    # Where a resumed run goes on.
    start_epoch, start_step, best_accuracy = 1, 0, -1.0
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # loss, right, samples of the epoch so far
    if folder.resumed:
        saved = load_checkpoint(folder.path / "last.pt")
        model.load_state_dict(saved["model"])
        if isinstance(model.head, ImplicitETFHead):
            model.head.warm_start = saved.get("warm_start")
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        start_epoch, start_step, best_accuracy = saved["epoch"], saved["step"], saved["best_accuracy"]
        if rank == 0:  # they hold the sums over all processes
            totals = saved["totals"].to(device)
        set_random_state(saved["random"])
    if rank == 0:
        folder.begin()
        if not folder.resumed:
            folder.write_config(settings, data.to_dict(), provenance(str(device)))
        folder.truncate(start_epoch - 1)

    def save(name: str, epoch: int, step: int) -> None:
        """Write a checkpoint from which the run goes on with step `step` of epoch `epoch`."""
        state: dict[str, Any] = {
            "settings": settings.to_dict(),
            "data": data.preprocessing(),
            "model": model.state_dict(),
            "warm_start": getattr(model.head, "warm_start", None),  # a cache, on which the last bits depend
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "random": random_state(),
            "totals": totals,
            "epoch": epoch,
            "step": step,
            "best_accuracy": best_accuracy,
        }
        if rank == 0:
            save_checkpoint(folder.path / name, state)

    steps = loader.steps_per_epoch()
    done = steps * (start_epoch - 1) + start_step
    progress = Progress(folder, steps * settings.epochs, done, writing=rank == 0, quiet=quiet)
    progress.log(run_line(settings, data, model, device, world_size, steps))
    if data.val is None:
        hint = "" if data.name == "ufm" else " (--val-fraction 0.1 holds out a tenth)"
        progress.log(f"no validation data: the last epoch is the result{hint}")
    if folder.resumed:
        progress.log(f"resumed in epoch {start_epoch} of {settings.epochs} after {start_step} of {steps} steps")
    scalars = scalar_writer(folder.path / "tensorboard", start_epoch, enabled=rank == 0)
    interrupt, saved_at = Interrupt(), time.monotonic()
    with folder, picture(folder, enabled=rank == 0), scalars, progress, interrupt:
        for epoch in range(start_epoch, settings.epochs + 1):
            began, began_at = time.perf_counter(), start_step
            model.train()
            for step, (images, labels) in enumerate(loader.epoch(epoch, start_step), start_step):
                rate = learning_rate(settings, ((epoch - 1) * steps + step) / (settings.epochs * steps))
                for group in optimizer.param_groups:
                    group["lr"] = rate

                # Given labels, the implicit head normalises the features to h = τ f/‖f‖, moves the running
                # class means H by this batch, solves for the simplex ETF U nearest to H, and answers with
                # logits W h + b of the classifier W = √(K/(K−1)) M Uᵀ, b = −W μ_G that follows from it.  To the
                # head, as to batch norm, each microbatch is a batch: the running means move by every one.
                optimizer.zero_grad()
                for microbatch, microbatch_labels in zip(
                    images.chunk(settings.grad_accum_steps), labels.chunk(settings.grad_accum_steps), strict=True
                ):
                    try:
                        logits = network(microbatch, microbatch_labels)
                    except ValueError as error:  # the head refuses features that are not finite
                        raise diverged(epoch, folder.path) from error
                    loss = training_loss(settings.loss, logits, microbatch_labels, tau)
                    # The gradient reaches the features through h and, in closed form, through U as well.
                    scaler.scale(loss * len(microbatch) / len(images)).backward()
                    totals += batch_totals(loss, logits, microbatch_labels)
                if settings.clip:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
                scaler.step(optimizer)
                scaler.update()
                progress.advance()
                if step % CHECK_EVERY == CHECK_EVERY - 1 and not totals[0].isfinite():
                    raise diverged(epoch, folder.path)
                stop = interrupt.agreed()
                if stop:
                    break

            # Totals of the epoch: sums over all processes, and one process's batch-norm statistics for all.
            seconds = time.perf_counter() - began
            if world_size > 1:
                dist.all_reduce(totals)
                for buffer in model.buffers():
                    dist.broadcast(buffer, 0)
            if not is_finite(totals, model):
                raise diverged(epoch, folder.path)
            if stop and step + 1 < steps:
                save("last.pt", epoch, step + 1)
                raise interrupt.stop(folder.path, data_dir)

            # Running metrics come from training batches, against the classifier that was solved with their own
            # labels; reported metrics use eval mode and the stored classifier.
            loss_sum, right, count = totals.tolist()
            row: Row = {
                "epoch": epoch,
                "seconds": round(seconds, 4),
                "images_per_second": round((steps - began_at) * settings.batch_size / seconds, 1),
                "lr": optimizer.param_groups[0]["lr"],
                "running_loss": loss_sum / count,
                "running_accuracy": right / count,
            }
            evaluated = epoch % settings.eval_interval == 0 or epoch == settings.epochs
            if evaluated:
                row |= evaluate_splits(model, loaders) | solver_health(model.head)
            totals, start_step = torch.zeros_like(totals), 0

            # The run folder: first the metrics, then the checkpoint from which the next epoch can begin.
            if rank == 0:
                folder.append(row)
                scalars.append(row)
            if evaluated:
                progress.log(epoch_line(row, settings.epochs))
                if row.get("val_accuracy", -1.0) > best_accuracy:  # nothing is chosen on test data
                    best_accuracy = row["val_accuracy"]
                    save("best.pt", epoch + 1, 0)
            if evaluated or stop or time.monotonic() - saved_at > SAVE_EVERY:
                save("last.pt", epoch + 1, 0)
                saved_at = time.monotonic()
            if stop and epoch < settings.epochs:
                raise interrupt.stop(folder.path, data_dir)

    # The last classifier comes from running means; one exact pass over the training split sets W and b from all of it.
    last = read_rows(folder.path)[-1] if rank == 0 else {}
    if implicit and recalibrate is not False:
        recalibrate_head(model, loader.ordered())
        exact = evaluate_splits(model, loaders)
        save("recalibrated.pt", settings.epochs + 1, 0)
        if rank == 0:
            folder.write_recalibrated({name: last[name] for name in exact if name in last}, exact)
            progress.log(recalibrated_line(last, exact))
    if rank == 0:
        progress.log(result_line(read_run(folder.path)))
    return last


@contextmanager
def picture(folder: RunFolder, enabled: bool) -> Iterator[None]:
    """Draw the curves from the metrics that there are, however the run ends."""
    try:
        yield
    finally:
        trouble = draw_curves(rows, folder.path / "curves.png") if enabled and (rows := read_rows(folder.path)) else ""
        if trouble:
            folder.log(trouble)


def diverged(epoch: int, run: Path) -> TrainingError:
    """The end of a run whose loss is no longer finite."""
    return TrainingError(
        f"the loss is not finite in epoch {epoch}: stopped, with the checkpoints of {run} as they were after "
        f"epoch {epoch - 1}; try a lower --lr, --clip 1 or another --precision"
    )


def is_finite(totals: Tensor, model: Classifier[Any]) -> bool:
    """Whether the loss, the weights and the head's state are finite, and may so be saved."""
    state = [totals, *model.parameters(), *model.head.buffers()]
    return bool(torch.stack([value.isfinite().all() for value in state]).all())


def batch_totals(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Loss, right answers and samples of a batch, summed, without waiting for the device."""
    right = (logits.argmax(dim=1) == labels).sum()
    count = loss.new_tensor(float(len(labels)))
    return torch.stack([loss.detach() * count, right, count]).double()


def evaluate_splits(model: Classifier[Any], loaders: Mapping[str, Loader]) -> Row:
    """Reported metrics on every split that there is, as `train_loss`, `val_accuracy`, …"""
    row: Row = {}
    for name, loader in loaders.items():
        row |= evaluate(model, loader.ordered()).prefixed(name)
    return row


def solver_health(head: Head) -> Row:
    """Solver diagnostics of an implicit head's last step, as `solver_gap`, `solver_condition`, …"""
    if not isinstance(head, ImplicitETFHead):
        return {}
    health = head.solution_health()
    return {f"solver_{name}": value for name, value in health.items() if math.isfinite(value)}
