"""Optimizers with weight decay on matrices and kernels only, and learning rates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from .agd import AGD
from .freeze import layer_numbers
from .run.settings import Settings

WARMUP_FROM = 0.01  # of the learning rate


def build_optimizer(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that the settings name, for the parameters that learn.

    Weight decay excludes vectors (biases, batch-norm scales) and a learned head's rows, whose length has no effect.
    Each group's `lr_scale` is its learning rate as a multiple of `learning_rate`: `layer_decay` to the power of the
    layers that follow, and `head_lr` for the head. Automatic gradient descent has neither.

    >>> build_optimizer(Settings(optimizer="adamw"), nn.ModuleDict({"backbone": nn.Linear(2, 2)})).defaults["lr"]
    0.1
    """
    if settings.optimizer == "agd":
        return AGD(model, gain=settings.lr)
    scales = learning_rate_scales(settings, model)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and name != "head.rows"
            decay = settings.weight_decay if decays else 0.0
            group = {"params": [], "weight_decay": decay, "lr_scale": scales[name], "lr": settings.lr * scales[name]}
            groups.setdefault((scales[name], decays), group)["params"].append(parameter)
    ordered = [groups[key] for key in sorted(groups, key=lambda key: (-key[0], not key[1]))]
    if settings.optimizer == "sgd":
        nesterov = settings.momentum > 0
        return torch.optim.SGD(ordered, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov)
    if settings.optimizer == "adam":
        return torch.optim.Adam(ordered, lr=settings.lr)
    return torch.optim.AdamW(ordered, lr=settings.lr)


def learning_rate_scales(settings: Settings, model: nn.Module) -> dict[str, float]:
    """The learning rate of each parameter as a multiple of `learning_rate`.

    >>> model = nn.ModuleDict({"backbone": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "head": nn.Linear(2, 2)})
    >>> scales = learning_rate_scales(Settings(layer_decay=0.5, head_lr=10.0), model)
    >>> {name: scale for name, scale in scales.items() if name.endswith("weight")}
    {'backbone.0.weight': 0.25, 'backbone.1.weight': 0.5, 'head.weight': 10.0}
    """
    backbone = {f"backbone.{n}": k for n, k in layer_numbers(model.get_submodule("backbone")).items()}
    layers = max(backbone.values(), default=-1) + 1
    return {
        name: settings.layer_decay ** (layers - backbone[name]) if name in backbone else settings.head_lr
        for name, _ in model.named_parameters()
    }


def learning_rate(settings: Settings, progress: float) -> float:
    """Learning rate after a share `progress` (0…1) of the run's steps.

    "step" divides by ten after a half and after three quarters of the run; "cosine" falls to zero; "one-cycle" rises
    linearly from a tenth over the first fifth and then falls to zero along a cosine. During `warmup_epochs` the rate
    rises linearly from a hundredth of the peak instead; afterwards the schedule is the one without warm-up.

    >>> [round(learning_rate(Settings(schedule="step", lr=1.0), p), 3) for p in (0.2, 0.5, 0.9)]
    [1.0, 0.1, 0.01]
    """
    epochs = progress * settings.epochs
    if epochs < settings.warmup_epochs:
        return settings.lr * (WARMUP_FROM + (1 - WARMUP_FROM) * epochs / settings.warmup_epochs)
    if settings.schedule == "step":
        return settings.lr * 0.1 ** ((progress >= 0.5) + (progress >= 0.75))
    if settings.schedule == "cosine":
        return settings.lr * (1 + math.cos(math.pi * progress)) / 2
    if settings.schedule == "one-cycle":
        rise = 0.2
        if progress < rise:
            return settings.lr * (0.1 + 0.9 * progress / rise)
        return settings.lr * (1 + math.cos(math.pi * (progress - rise) / (1 - rise))) / 2
    return settings.lr
