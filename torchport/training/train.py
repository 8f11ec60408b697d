"""The training loop: train a network with the nearest simplex ETF as its classifier, from top to bottom.

    etf-train digits --head implicit --seed 0 --output runs/digits        # seconds on a laptop
    etf-train cifar10-resnet18 --head implicit --seed 1                   # on the GPU, where there is one
    etf-train --data path/to/images --backbone resnet50 --head implicit   # train/CLASS/*.jpg, val/CLASS/*.jpg
    etf-train --resume --output runs/digits                               # goes on where that run stopped
    torchrun --nproc-per-node 4 -m nearest_etf.torchport.training.etf_train cifar10-resnet18   # four GPUs

In Python: `train(load_recipe("digits", {"head": "implicit"}), "runs/digits")`.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..heads import Classifier, Head, ImplicitETFHead
from .run.checkpoint import build_model, load_checkpoint, random_state, save_checkpoint, set_random_state
from .data import make_loader, training_data
from .evaluate import evaluate
from .losses import training_loss
from .optim import build_optimiser, learning_rate
from .progress import Interrupt, Progress, epoch_line, first_line
from .recalibrate import recalibrate_head
from .run.folder import Row, RunFolder, read_rows
from .run.settings import Settings, SettingsError

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SAVE_EVERY = 60.0  # seconds between checkpoints, where evaluations are rarer
LOOK_EVERY = 100  # steps between looks at the loss, each of which waits for the device


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says why, and what is kept."""


def train(
    settings: Settings,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    data_dir: str | Path | None = None,
    device: str | None = None,
    recalibrate: bool | None = None,
) -> Row:
    """Train as the settings say, into a run folder.

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
        At the end, set an implicit head's means, W and b from one exact pass over the training set, instead of
        trusting the last batches; writes recalibrated.pt and, with the figures before and after,
        recalibrated.json. The default is to do so for implicit heads.

    Returns
    -------
    dict
        Metrics of the last epoch; under several processes, empty on all but the first.

    Raises
    ------
    SettingsError, DataError, CheckpointError
        If something cannot be used; the output folder is then as it was.
    TrainingError
        If the loss is no longer finite; the last good checkpoint stays.
    Stopped
        If SIGINT or SIGTERM came, after saving; with how to go on.
    """
    # Where to write, and where to compute.  Under torchrun every process has a rank; rank 0 does the writing.
    implicit = settings.head == "implicit"
    if recalibrate and not implicit:
        raise SettingsError(f"recalibrate is for the implicit head: the {settings.head} head has no class means")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    place = computing_device(device)
    if world > 1:
        if not dist.is_initialized():
            dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        dist.barrier()  # nobody looks at the folder while rank 0 may still be writing an earlier run's end
    folder = RunFolder(output, settings, resume=resume, overwrite=overwrite)
    torch.manual_seed(settings.seed)

    # The data, as 8-bit images: on the device, or behind worker processes for image folders.
    # Rank 0 goes first, since it may have to download them.
    if rank > 0:
        dist.barrier()
    data = training_data(settings, data_dir)
    if rank == 0 and world > 1:
        dist.barrier()
    loader = make_loader(data.train, data, settings, device=place, rank=rank, world=world)
    held_out = make_loader(data.test, data, settings, device=place, rank=rank, world=world)

    # The model: a backbone from images to features, and the head, which holds the classifier W, b.
    model = build_model(settings, data.image_shape, data.num_classes).to(place)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = build_optimiser(settings, model)
    scaler = torch.amp.GradScaler(place.type, enabled=settings.precision == "float16")
    use_precision(model.backbone, place, settings.precision)
    if settings.compile:
        model.backbone.compile()
    network: nn.Module = nn.parallel.DistributedDataParallel(model) if world > 1 else model

    # Where a resumed run goes on.
    start_epoch, start_step, best_accuracy = 1, 0, -1.0
    totals = torch.zeros(3, dtype=torch.float64, device=place)  # loss, right, samples of the epoch so far
    if folder.resumed:
        saved = load_checkpoint(folder.path / "last.pt")
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        scaler.load_state_dict(saved["scaler"])
        start_epoch, start_step, best_accuracy = saved["epoch"], saved["step"], saved["best_accuracy"]
        if rank == 0:  # they hold the sums over all processes
            totals = saved["totals"].to(place)
        set_random_state(saved["random"])
    if rank == 0:
        folder.begin()
        if not folder.resumed:
            folder.write_config(settings, data, place)
        folder.truncate(start_epoch - 1)

    def save(name: str, epoch: int, step: int) -> None:
        """Write a checkpoint from which the run goes on with step `step` of epoch `epoch`."""
        state: dict[str, Any] = {
            "settings": settings.to_dict(),
            "data": {
                "class_names": data.class_names,
                "image_shape": data.image_shape,
                "mean": data.mean,
                "std": data.std,
            },
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
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
    progress = Progress(folder, steps * settings.epochs, steps * (start_epoch - 1) + start_step, quiet=rank > 0)
    progress.say(first_line(settings, data, model, place, world, steps))
    if folder.resumed:
        progress.say(f"resumed in epoch {start_epoch} of {settings.epochs} after {start_step} of {steps} steps")
    interrupt, saved_at = Interrupt(), time.monotonic()
    with folder, progress, interrupt:
        for epoch in range(start_epoch, settings.epochs + 1):
            began, began_at = time.perf_counter(), start_step
            model.train()
            for step, (images, labels) in enumerate(loader.epoch(epoch, start_step), start_step):
                rate = learning_rate(settings, ((epoch - 1) * steps + step) / (settings.epochs * steps))
                for group in optimiser.param_groups:
                    group["lr"] = rate

                # Given labels, the implicit head normalises the features to h = τ f/‖f‖, moves the running
                # class means H by this batch, solves for the simplex ETF U nearest to H, and answers with
                # logits W h + b of the classifier W = √(K/(K−1)) M Uᵀ, b = −W μ_G that follows from it.  Each part
                # of a batch is a batch of its own to it, as to batch norm: the running means move by every part.
                optimiser.zero_grad()
                for part, part_labels in zip(
                    images.chunk(settings.accumulation), labels.chunk(settings.accumulation), strict=True
                ):
                    try:
                        logits = network(part, part_labels)
                    except ValueError as error:  # the head refuses features that are not finite
                        raise diverged(epoch, folder.path) from error
                    loss = training_loss(settings.loss, logits, part_labels, settings.temperature)
                    # The gradient reaches the features through h and, in closed form, through U as well.
                    scaler.scale(loss * len(part) / len(images)).backward()
                    totals += batch_totals(loss, logits, part_labels)
                if settings.clip:
                    scaler.unscale_(optimiser)
                    nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
                scaler.step(optimiser)
                scaler.update()
                model.head.after_step()  # a learned head's rows go back to unit norm
                progress.advance()
                if step % LOOK_EVERY == LOOK_EVERY - 1 and not totals[0].isfinite():
                    raise diverged(epoch, folder.path)
                stop = interrupt.agreed()
                if stop:
                    break

            # The epoch's books: sums over all processes, and one process's batch-norm statistics for all.
            seconds = time.perf_counter() - began
            if world > 1:
                dist.all_reduce(totals)
                for buffer in model.buffers():
                    dist.broadcast(buffer, 0)
            if not is_finite(totals, model):
                raise diverged(epoch, folder.path)
            if stop and step + 1 < steps:
                save("last.pt", epoch, step + 1)
                raise interrupt.stop(folder.path, data_dir)

            # Running figures come from training batches, against the classifier that was solved with their own
            # labels; honest ones from eval mode, with the classifier in force.
            loss_sum, right, count = totals.tolist()
            row: Row = {
                "epoch": epoch,
                "seconds": round(seconds, 4),
                "images_per_second": round((steps - began_at) * settings.batch_size / seconds, 1),
                "lr": optimiser.param_groups[0]["lr"],
                "running_loss": loss_sum / count,
                "running_accuracy": right / count,
            }
            evaluated = epoch % settings.eval_interval == 0 or epoch == settings.epochs
            if evaluated:
                row |= evaluate(model, loader.ordered(), "train")
                row |= evaluate(model, held_out.ordered(), "test")
                row |= solver_health(model.head)
            totals, start_step = torch.zeros_like(totals), 0

            # The run folder: first the metrics, then the checkpoint from which the next epoch can begin.
            if rank == 0:
                folder.append(row)
            if evaluated:
                progress.say(epoch_line(row, settings.epochs))
                if row["test_accuracy"] > best_accuracy:
                    best_accuracy = row["test_accuracy"]
                    save("best.pt", epoch + 1, 0)
            if evaluated or stop or time.monotonic() - saved_at > SAVE_EVERY:
                save("last.pt", epoch + 1, 0)
                saved_at = time.monotonic()
            if stop and epoch < settings.epochs:
                raise interrupt.stop(folder.path, data_dir)

    # The last classifier trusts running means; one exact pass over the training set sets W and b from all of it.
    last = read_rows(folder.path)[-1] if rank == 0 else {}
    if implicit and recalibrate is not False:
        recalibrate_head(model, loader.ordered())
        exact = evaluate(model, loader.ordered(), "train") | evaluate(model, held_out.ordered(), "test")
        save("recalibrated.pt", settings.epochs + 1, 0)
        if rank == 0:
            folder.write_recalibrated({name: last[name] for name in exact if name in last}, exact)
            shares = [f"{100 * figures['test_accuracy']:.2f} %" for figures in (last, exact)]
            progress.say(f"test accuracy with running means {shares[0]}, with exact means {shares[1]}")
    return last


def computing_device(name: str | None) -> torch.device:
    """The device that was asked for, or this process's GPU, or the CPU."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda":
            if device.index is None:
                device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, AttributeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"device {name!r} cannot be used here ({reason}): try --device cpu") from error
    return device


def use_precision(backbone: nn.Module, device: torch.device, precision: str) -> None:
    """Let a backbone compute in another precision; its features, and all of the head, stay float32."""
    if precision == "float32":
        return
    forward = backbone.forward

    def autocast_forward(images: Tensor) -> Tensor:
        with torch.autocast(device.type, PRECISIONS[precision]):
            features: Tensor = forward(images)
        return features.float()

    backbone.forward = autocast_forward  # type: ignore[method-assign]


def diverged(epoch: int, run: Path) -> TrainingError:
    """The end of a run whose loss is no longer a number."""
    return TrainingError(
        f"the loss is not finite in epoch {epoch}: stopped, with the checkpoints of {run} as they were after "
        f"epoch {epoch - 1}; try a lower --lr, --clip 1 or another --precision"
    )


def is_finite(totals: Tensor, model: Classifier) -> bool:
    """Whether the loss, the weights and the head's state are numbers, and may so be saved."""
    state = [totals, *model.parameters(), *model.head.buffers()]
    return bool(torch.stack([value.isfinite().all() for value in state]).all())


def batch_totals(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Loss, right answers and samples of a batch, summed, without waiting for the device."""
    right = (logits.argmax(dim=1) == labels).sum()
    count = loss.new_tensor(float(len(labels)))
    return torch.stack([loss.detach() * count, right, count]).double()


def solver_health(head: Head) -> Row:
    """What an implicit head's last solve says of itself, as `solver_gap`, `solver_condition`, …"""
    if not isinstance(head, ImplicitETFHead):
        return {}
    health = head.solution_health()
    return {f"solver_{name}": value for name, value in health.items() if math.isfinite(value)}
