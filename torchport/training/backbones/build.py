"""Backbones by name: networks from images (N, C, H, W) to features (N, d)."""

from __future__ import annotations

from torch import nn

from ..run.settings import BACKBONES, FOREIGN_BACKBONES, Settings, SettingsError
from .foreign import foreign_backbone, foreign_view
from .free import FreeFeatures
from .own import own_backbone, own_view
from .resnet import DEPTHS, ResNet
from .small import MLP, SmallCNN
from .vgg import SMALLEST_IMAGE, STAGES, VGG
from .view import IMAGENET, View


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
    if signed:
        raise SettingsError(f"features = 'signed' is for this project's own backbones, not for {name}")
    if name.startswith(FOREIGN_BACKBONES):
        library, _, model = name.partition(":")
        return foreign_backbone(library, model, image_shape)
    return own_backbone(name, image_shape)


def network_view(settings: Settings) -> View:
    """The preprocessing for the settings' network; empty for this project's own networks from random weights.

    >>> network_view(Settings(backbone="resnet18"))
    View(size=None, mean=None, std=None, interpolation=None, crop=None, crop_mode=None)
    """
    name, view = settings.backbone, View()
    if name.startswith(FOREIGN_BACKBONES):
        view = foreign_view(*name.split(":", 1))
        view = view if settings.fine_tuning else View(size=view.size)
    elif name not in BACKBONES:
        view = own_view(name)
    return view.or_else(View(mean=IMAGENET[0], std=IMAGENET[1])) if settings.fine_tuning else view
