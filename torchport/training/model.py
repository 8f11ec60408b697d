"""The model of a run: backbone and head from its settings, new or with the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common.files import reading
from ...reference.procrustes import initial_frame
from ...reference.stiefel import random_point
from ..heads import (
    Classifier,
    ClassMeanHead,
    FixedETFHead,
    Head,
    ImplicitETFHead,
    LearnedHead,
    LinearHead,
    TightFrameHead,
)
from ..simplex import from_coordinates
from .backbones.build import build_backbone
from .run.checkpoint import CheckpointError, load_checkpoint
from .run.reading import Run, read_run
from .run.settings import Settings, SettingsError, settings_from


def build_head(settings: Settings, num_features: int, num_classes: int) -> Head:
    """The head that the settings name, for d features and K classes.

    >>> build_head(Settings(head="fixed"), num_features=8, num_classes=3).weight.shape
    torch.Size([3, 8])
    """
    if settings.head == "linear":
        return LinearHead(num_features, num_classes)
    tau: Any = settings.temperature
    averaging: Any = settings.averaging
    if settings.head == "learned":
        return LearnedHead(num_features, num_classes, tau)
    if settings.head == "class-mean":
        return ClassMeanHead(num_features, num_classes, tau, gradient=settings.gradient, averaging=averaging)
    initial: str | torch.Tensor = "canonical"
    if settings.initial == "random":
        initial = random_frame(num_features, num_classes, settings.seed)
    if settings.head == "fixed":
        return FixedETFHead(num_features, num_classes, tau, initial=initial, averaging=averaging)
    solving: Any = {
        "delta": settings.delta,
        "gradient": settings.gradient,
        "method": settings.method,
        "initial": initial,
        "averaging": averaging,
    }
    if settings.head == "tight-frame":
        norms: Any = settings.norms
        return TightFrameHead(num_features, num_classes, tau, norms=norms, **solving)
    formulation: Any = settings.formulation
    return ImplicitETFHead(num_features, num_classes, tau, formulation=formulation, **solving)


def random_frame(num_features: int, num_classes: int, seed: int) -> torch.Tensor:
    """A Haar-distributed frame (d, K), a tight one for K > d+1.

    It uses its own generator, so that the backbone's weights do not depend on it.

    >>> F = random_frame(2, 5, seed=0)
    >>> (F @ F.T).allclose(torch.eye(2), atol=1e-6), F.sum(1).abs().max().item() < 1e-6
    (True, True)
    """
    d, K, rng = num_features, num_classes, np.random.default_rng(seed)
    if d + 1 >= K:
        return torch.tensor(initial_frame("random", np.zeros((d, K)), rng)).float()
    return from_coordinates(torch.tensor(random_point(K - 1, d, rng)).mT).float()


def build_model(settings: Settings, image_shape: tuple[int, int, int], num_classes: int) -> Classifier[Any]:
    """Backbone and head for images of shape (H, W, C), with random weights.

    Raises
    ------
    SettingsError
        If there is no such backbone, or head and backbone do not fit the data or each other.

    Examples
    --------
    >>> model = build_model(Settings(backbone="mlp", num_features=16), (8, 8, 1), num_classes=10)
    >>> model(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    backbone = build_backbone(settings, image_shape)
    num_features = backbone.num_features
    if not isinstance(num_features, int):
        raise SettingsError(f"backbone {settings.backbone} has no integer attribute num_features")
    try:
        return Classifier(backbone, build_head(settings, num_features, num_classes))
    except ValueError as error:
        remedy = ""
        if num_features < num_classes - 1:
            remedy = " On the command line: --head tight-frame, class-mean, learned or linear."
        raise SettingsError(f"backbone {settings.backbone}, head {settings.head}: {error}{remedy}") from error


def load_model(run: Run | str | Path, checkpoint: str | None = None) -> tuple[Classifier[Any], Settings]:
    """The model of a run, in eval mode on the CPU, and its settings.

    Parameters
    ----------
    run : Run or path
        A run, or the path of its folder.
    checkpoint : {"best", "last", "recalibrated"}, optional
        Default: the run's result, see `Run.result`.

    Raises
    ------
    RunError
        If the path is not a run folder.
    CheckpointError
        If the checkpoint is missing, damaged, or does not fit the settings that it holds.
    """
    if not isinstance(run, Run):
        run = read_run(run, need_rows=False)
    path = run.path / f"{checkpoint or run.result}.pt"
    contents = load_checkpoint(path)
    with reading(path, "a checkpoint of etf-train with its settings and weights", CheckpointError):
        settings = settings_from(contents["settings"])
        data = contents["data"]
        model = build_model(settings, tuple(data["image_shape"]), len(data["class_names"]))
        averaged = contents.get("ema")  # `WeightAverage.state_dict()`
        model.load_state_dict(averaged["model"] if averaged else contents["model"])
    return model.eval(), settings
