"""Networks from images (N, C, H, W) to features (N, d), by name.  Each says its d as `num_features`."""

from __future__ import annotations

import copy
import difflib
import importlib
from typing import Any

import torch
from torch import Tensor, nn

from ..run.settings import BACKBONES, Settings, SettingsError, nearest_name
from .free import FreeFeatures
from .resnet import DEPTHS, ResNet
from .small import MLP, SmallCNN
from .vgg import SMALLEST_IMAGE, STAGES, VGG

__all__ = ["MLP", "VGG", "ResNet", "SmallCNN", "build_backbone"]


def build_backbone(settings: Settings, image_shape: tuple[int, int, int]) -> nn.Module:
    """The backbone that the settings name, for images of shape (H, W, C), with random weights.

    Raises
    ------
    SettingsError
        If there is no such backbone, the images are too small for it, or the library that it comes from is
        missing.
    """
    if settings.data == "ufm":
        return FreeFeatures(settings.num_classes * settings.samples_per_class, settings.num_features)
    name, channels, signed = settings.backbone, image_shape[2], settings.features == "signed"
    if name == "small-cnn":
        return SmallCNN(channels, settings.num_features, signed=signed)
    if name == "mlp":
        return MLP(image_shape, settings.num_features, signed=signed)
    if name in DEPTHS:
        return ResNet(name, channels, stem=settings.stem, width=settings.width, signed=signed)
    if name in STAGES:
        if min(image_shape[:2]) < SMALLEST_IMAGE:
            raise SettingsError(
                f"backbone {name} halves an image five times: it needs {SMALLEST_IMAGE} pixels a side, "
                f"not {image_shape[:2]}"
            )
        return VGG(name, channels, width=settings.width, signed=signed)
    library, _, model = name.partition(":")
    if library in ("torchvision", "timm") and model:
        if signed:
            raise SettingsError(f"features = 'signed' is for this project's own backbones, not for {name}")
        network: Any = foreign_backbone(library, model, channels)
        network.num_features = count_features(network, name, image_shape)
        return network
    raise SettingsError(nearest_name("backbone", name, BACKBONES))


def foreign_backbone(library: str, name: str, channels: int) -> nn.Module:
    """A network of torchvision or timm, with its classifier taken off."""
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
    places = [place for place, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not places:
        raise SettingsError(f"backbone torchvision:{name} has no linear classifier that could be taken off")
    parent, _, child = places[-1].rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return network


def count_features(network: nn.Module, name: str, image_shape: tuple[int, int, int]) -> int:
    """d, and proof that a network takes such images: a copy of it is tried on two of them, in training mode."""
    height, width, channels = image_shape
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            features = copy.deepcopy(network)(torch.zeros(2, channels, height, width))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SettingsError(f"backbone {name} does not take images of {height}×{width} pixels: {reason}") from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise SettingsError(f"backbone {name} makes {found} of two images: expected features (2, d)")
    return features.shape[1]
