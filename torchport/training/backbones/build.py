"""Backbones by name: networks from images (N, C, H, W) to features (N, d)."""

from __future__ import annotations

from torch import nn

from ....common.errors import nearest_name
from ..run.settings import BACKBONES, Settings, SettingsError
from .foreign import foreign_backbone
from .free import FreeFeatures
from .resnet import DEPTHS, ResNet
from .small import MLP, SmallCNN
from .vgg import SMALLEST_IMAGE, STAGES, VGG


def build_backbone(settings: Settings, image_shape: tuple[int, int, int]) -> nn.Module:
    """The backbone that the settings name, for images of shape (H, W, C), with random weights.

    Raises
    ------
    SettingsError
        If there is no such backbone, the images are too small for it, or the library that it comes from is missing.

    Examples
    --------
    >>> build_backbone(Settings(backbone="resnet18", width=8), (32, 32, 3)).num_features
    64
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
        return foreign_backbone(library, model, image_shape)
    raise SettingsError(nearest_name("backbone", name, BACKBONES))
