"""Checkpoints: one file with everything that a run needs to go on, or that somebody needs to use the model.

A checkpoint is a plain dictionary of tensors, numbers and strings, which `torch.load(weights_only=True)`
reads. It is written to a temporary file, synced and renamed, so that a crash leaves the previous one whole.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...heads import Classifier, FixedETFHead, ImplicitETFHead, LearnedHead
from ...simplex import canonical_frame
from ..backbones import build_backbone
from .settings import Settings, SettingsError, settings_from

FORMAT = "nearest-etf checkpoint, version 1"


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another kind."""


def build_head(settings: Settings, num_features: int, num_classes: int) -> LearnedHead | FixedETFHead | ImplicitETFHead:
    """The head that the settings name, for d features and K classes."""
    tau = settings.temperature
    if settings.head == "learned":
        return LearnedHead(num_features, num_classes, tau)
    if settings.head == "fixed":
        return FixedETFHead(num_features, num_classes, tau)
    initial = "canonical" if settings.initial == "canonical" else random_frame(num_features, num_classes, settings.seed)
    return ImplicitETFHead(
        num_features,
        num_classes,
        tau,
        delta=settings.delta,
        formulation="gauge-free" if settings.formulation == "gauge-free" else "paper",
        gradient=settings.gradient,
        method=settings.method,
        initial=initial,
    )


def random_frame(num_features: int, num_classes: int, seed: int) -> Tensor:
    """A frame (d, K) in a uniformly random position, from a generator of its own.

    >>> U = random_frame(5, 3, seed=0)
    >>> (U.T @ U).allclose(torch.eye(3), atol=1e-6)
    True
    """
    generator = torch.Generator().manual_seed(seed)
    m = min(num_features, num_classes)  # for d = K−1 the frame is a partial isometry
    Q, R = torch.linalg.qr(torch.randn(num_features, m, generator=generator, dtype=torch.float64))
    Q *= R.diagonal().sign()  # Haar measure, whatever signs LAPACK chooses
    return (Q @ canonical_frame(m, num_classes, dtype=torch.float64)).to(torch.get_default_dtype())


def build_model(settings: Settings, image_shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """Backbone and head for images of shape (H, W, C)."""
    backbone = build_backbone(settings, image_shape)
    num_features = backbone.num_features
    if not isinstance(num_features, int):
        raise SettingsError(f"backbone {settings.backbone} does not say how many features it has")
    try:
        return Classifier(backbone, build_head(settings, num_features, num_classes))
    except ValueError as error:
        raise SettingsError(f"backbone {settings.backbone}, head {settings.head}: {error}") from error


def random_state() -> dict[str, Any]:
    """State of every global random generator; batches and augmentation draw from none of them."""
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the global random generators where `random_state` found them."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


def save_checkpoint(path: Path, contents: dict[str, Any]) -> None:
    """Write a checkpoint, all or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        torch.save({"format": FORMAT, **contents}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or not a checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: expected a checkpoint that etf-train wrote")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is damaged or no checkpoint of etf-train ({first_line})") from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of etf-train: expected the format {FORMAT!r}")
    return contents


def load_model(run: str | Path, checkpoint: str = "best") -> tuple[Classifier, Settings]:
    """The model of a run, in eval mode on the CPU, and its settings.

    Parameters
    ----------
    run : path
        A run folder.
    checkpoint : {"best", "last", "recalibrated"}

    Raises
    ------
    CheckpointError
        If the checkpoint is missing, damaged or does not fit the settings that it carries.
    """
    path = Path(run) / f"{checkpoint}.pt"
    contents = load_checkpoint(path)
    settings = settings_from(contents["settings"])
    data = contents["data"]
    model = build_model(settings, tuple(data["image_shape"]), len(data["class_names"]))
    try:
        model.load_state_dict(contents["model"])
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit its own settings: {error}") from error
    return model.eval(), settings
