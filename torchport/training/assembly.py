"""The parts that every training step uses, made from the settings of a run: batches, model and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..heads import Classifier
from .data.batches import Loader
from .data.images import ImageData
from .data.loaders import make_loader
from .data.mixing import Mixing
from .device import use_precision
from .ema import WeightAverage
from .freeze import freeze
from .losses import loss_options
from .model import build_model
from .optim import build_optimizer
from .run.settings import Settings
from .weights import start_weights


@dataclass
class Assembly:
    """The parts of a run.

    Attributes
    ----------
    settings : Settings
    device : torch.device
    rank, world_size : int
        This process among all processes of the run.
    loaders : mapping of str to Loader
        By split; "train" is one of them.
    mixing : Mixing
    loss_options : mapping
        Further arguments of `training_loss`.
    model : Classifier
        A backbone from images to features, and the head, which holds the classifier W, b.
    network : Module
        The model, or its `DistributedDataParallel`.
    kept_in_eval : list of Module
        Frozen modules, for `train_mode`.
    optimizer : Optimizer
    scaler : GradScaler
        Enabled in float16 only.
    average : WeightAverage
    notes : list of str
        Lines for the log.
    """

    settings: Settings
    device: torch.device
    rank: int
    world_size: int
    loaders: Mapping[str, Loader]
    mixing: Mixing
    loss_options: Mapping[str, Any]
    model: Classifier[Any]
    network: nn.Module
    kept_in_eval: list[nn.Module]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: WeightAverage
    notes: list[str]

    @property
    def steps_per_epoch(self) -> int:
        """Training batches in an epoch."""
        return self.loaders["train"].steps_per_epoch()

    @property
    def total_steps(self) -> int:
        """Training batches in all epochs."""
        return self.settings.epochs * self.steps_per_epoch


def assemble(
    settings: Settings, data: ImageData, device: torch.device, *, rank: int = 0, world_size: int = 1, resumed: bool
) -> Assembly:
    """Make the parts of a run; with `resumed`, without the weights to start from, which the checkpoint replaces.

    Raises
    ------
    SettingsError, DataError
        If settings do not fit each other or the data, or the weights do not fit the backbone.
    """
    loaders = {
        name: make_loader(split, data, settings, device=device, rank=rank, world_size=world_size)
        for name, split in data.splits().items()
    }
    mixing = Mixing(settings, data, rank=rank, world_size=world_size)
    options = loss_options(settings, data, device)
    model = build_model(settings, data.image_shape, data.num_classes).to(device)
    notes = [] if resumed else start_weights(model.backbone, settings, data.image_shape[2])
    kept_in_eval = freeze(model, settings)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(settings, model)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
    average = WeightAverage(model, settings)
    for made in average.models():
        use_precision(made.backbone, device, settings.precision)
    if settings.compile:
        model.backbone.compile()
    network: nn.Module = nn.parallel.DistributedDataParallel(model) if world_size > 1 else model
    return Assembly(
        settings=settings,
        device=device,
        rank=rank,
        world_size=world_size,
        loaders=loaders,
        mixing=mixing,
        loss_options=options,
        model=model,
        network=network,
        kept_in_eval=kept_in_eval,
        optimizer=optimizer,
        scaler=scaler,
        average=average,
        notes=notes,
    )
