"""Optimizers, with weight decay on matrices and kernels only, and learning rates."""

from __future__ import annotations

import math

import torch
from torch import nn

from .agd import AGD
from .run.settings import Settings


def build_optimizer(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that the settings name.

    Weight decay leaves out vectors (biases, batch-norm scales) and a learned head's rows, of which only the direction
    counts. Automatic gradient descent has no decay.

    >>> build_optimizer(Settings(optimizer="adamw"), nn.ModuleDict({"backbone": nn.Linear(2, 2)})).defaults["lr"]
    0.1
    """
    if settings.optimizer == "agd":
        return AGD(model, gain=settings.lr)
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and name != "head.rows"]
    known = {id(p) for p in decayed}
    plain = [p for p in model.parameters() if id(p) not in known]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        nesterov = settings.momentum > 0
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov)
    return torch.optim.AdamW(groups, lr=settings.lr)


def learning_rate(settings: Settings, progress: float) -> float:
    """Learning rate when `progress` (0…1) of the run's steps are done.

    "step" divides by ten at a half and at three quarters; "cosine" falls to zero; "one-cycle" rises linearly
    from a tenth over the first fifth and then falls to zero along a cosine.

    >>> [round(learning_rate(Settings(schedule="step", lr=1.0), p), 3) for p in (0.2, 0.5, 0.9)]
    [1.0, 0.1, 0.01]
    """
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
