"""Networks from images (N, C, H, W) to features (N, d), by name.  Each says its d as `num_features`."""

from __future__ import annotations

import importlib

from torch import nn

from ..settings import BACKBONES, Settings, SettingsError, nearest_name
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
        return foreign_backbone(library, model, channels)
    raise SettingsError(nearest_name("backbone", name, BACKBONES))


def foreign_backbone(library: str, name: str, channels: int) -> nn.Module:
    """A network of torchvision or timm, with its classifier taken off."""
    try:
        models = importlib.import_module("timm" if library == "timm" else "torchvision.models")
    except (ImportError, RuntimeError) as error:
        raise SettingsError(f"backbone {library}:{name} needs {library}, which cannot be imported: {error}") from error
    if name not in models.list_models():
        raise SettingsError(nearest_name(f"{library} model", name, models.list_models()))
    if library == "timm":
        network = models.create_model(name, num_classes=0, in_chans=channels)
        network.num_features = getattr(network, "head_hidden_size", network.num_features)
        return network
    if channels != 3:
        raise SettingsError(f"backbone torchvision:{name} takes images of 3 channels, not {channels}")
    network = models.get_model(name)
    places = [place for place, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not places:
        raise SettingsError(f"backbone torchvision:{name} has no linear classifier that could be taken off")
    parent, _, child = places[-1].rpartition(".")
    network.num_features = network.get_submodule(places[-1]).in_features
    setattr(network.get_submodule(parent), child, nn.Identity())
    return network
