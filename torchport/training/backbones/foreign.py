"""Networks of torchvision and timm as backbones, if these libraries are installed.

A tag in the name selects one of several pretrained weights: resnet18.a1_in1k of timm, resnet50.IMAGENET1K_V2 of
torchvision.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from ....common.errors import first_line, nearest_name
from ..run.settings import SettingsError
from .features import with_num_features
from .view import View


def foreign_backbone(library: str, name: str, image_shape: tuple[int, int, int]) -> nn.Module:
    """A network of torchvision or timm without its classifier, for images of shape (H, W, C); `num_features` is set.

    Raises
    ------
    SettingsError
        If the library is missing or has no such network, or the network does not take such images.
    """
    return with_num_features(without_classifier(library, name, image_shape[2]), f"{library}:{name}", image_shape)


def without_classifier(library: str, name: str, channels: int, *, pretrained: bool = False) -> nn.Module:
    """A network of torchvision or timm without its last linear layer, with random or with the library's weights."""
    models = library_models(library, name)
    if library == "torchvision" and channels != 3:
        raise SettingsError(f"backbone torchvision:{name} takes images of 3 channels, not {channels}")
    try:
        if library == "timm":
            return models.create_model(name, pretrained=pretrained, num_classes=0, in_chans=channels)
        chosen = {"weights": _weights(models, name)} if pretrained else {}
        network: nn.Module = models.get_model(name.partition(".")[0], **chosen)
    except SettingsError:
        raise
    except Exception as error:
        if not pretrained:
            raise SettingsError(f"backbone {library}:{name} cannot be made: {first_line(error)}") from error
        raise SettingsError(
            f"the weights of {library}:{name} cannot be loaded ({first_line(error)}): offline, pass a file of weights "
            "with --weights FILE in place of --pretrained"
        ) from error
    linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise SettingsError(f"backbone torchvision:{name} has no linear classifier that could be removed")
    parent, _, child = linear[-1].rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return network


def foreign_view(library: str, name: str) -> View:
    """The preprocessing with which the pretrained weights of a network of torchvision or timm were trained."""
    models = library_models(library, name)
    if library == "timm":
        try:
            return View.of(models.get_pretrained_cfg(name))
        except RuntimeError as error:
            raise SettingsError(f"backbone timm:{name}: {first_line(error)}") from error
    try:
        transforms = _weights(models, name).transforms()
    except SettingsError:
        raise
    except (AttributeError, ValueError):  # a network without weights
        return View()
    size = transforms.crop_size[0]
    named = {name: getattr(transforms, name) for name in ("mean", "std")}
    crop = {"interpolation": transforms.interpolation.value, "crop_pct": size / transforms.resize_size[0]}
    return View.of({"input_size": size, **named, **crop})


def library_models(library: str, name: str) -> Any:
    """The module timm or torchvision.models, after checking that it has such a network."""
    try:
        models = importlib.import_module("timm" if library == "timm" else "torchvision.models")
    except (ImportError, RuntimeError) as error:
        raise SettingsError(f"backbone {library}:{name} needs {library}, which cannot be imported: {error}") from error
    known = (
        models.list_models() if library == "timm" else models.list_models(module=models)
    )  # classification models only
    plain = name.partition(".")[0]
    if plain not in known:
        raise SettingsError(nearest_name(f"{library} model", plain, difflib.get_close_matches(plain, known, 5, 0.0)))
    return models


def _weights(models: Any, name: str) -> Any:
    """A member of the enumeration of a torchvision network's weights: the one of the tag, else the default."""
    plain, _, tag = name.partition(".")
    weights = models.get_model_weights(plain)
    known: Mapping[str, Any] = weights.__members__
    if tag and tag not in known:
        raise SettingsError(nearest_name(f"weights of torchvision:{plain}", tag, known))
    return known[tag] if tag else weights.DEFAULT
