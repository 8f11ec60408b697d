"""Networks of torchvision and timm as backbones, where these libraries are installed."""

from __future__ import annotations

import copy
import difflib
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from ....common.errors import first_line, nearest_name
from ..run.settings import SettingsError


def foreign_backbone(library: str, name: str, image_shape: tuple[int, int, int]) -> nn.Module:
    """A network of torchvision or timm without its classifier, for images of shape (H, W, C); `num_features` is set.

    Raises
    ------
    SettingsError
        If the library is missing or has no such network, or the network does not take such images.
    """
    network: Any = without_classifier(library, name, image_shape[2])
    network.num_features = count_features(network, f"{library}:{name}", image_shape)
    return network


def without_classifier(library: str, name: str, channels: int) -> nn.Module:
    """A network of torchvision or timm with its last linear layer removed."""
    try:
        models = importlib.import_module("timm" if library == "timm" else "torchvision.models")
    except (ImportError, RuntimeError) as error:
        raise SettingsError(f"backbone {library}:{name} needs {library}, which cannot be imported: {error}") from error
    known = models.list_models() if library == "timm" else models.list_models(module=models)  # those that classify
    if name not in known:
        raise SettingsError(nearest_name(f"{library} model", name, difflib.get_close_matches(name, known, 5, 0.0)))
    if library == "timm":
        return models.create_model(name, num_classes=0, in_chans=channels)
    if channels != 3:
        raise SettingsError(f"backbone torchvision:{name} takes images of 3 channels, not {channels}")
    network: nn.Module = models.get_model(name)
    linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise SettingsError(f"backbone torchvision:{name} has no linear classifier that could be removed")
    parent, _, child = linear[-1].rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return network


def count_features(network: nn.Module, name: str, image_shape: tuple[int, int, int]) -> int:
    """d, and proof that a network takes such images: a copy of it is tried on two of them, in training mode."""
    height, width, channels = image_shape
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            features = copy.deepcopy(network)(torch.zeros(2, channels, height, width))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise SettingsError(
            f"backbone {name} does not take images of {height}×{width} pixels: {first_line(error)}"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise SettingsError(f"backbone {name} makes {found} of two images: expected features (2, d)")
    return features.shape[1]
