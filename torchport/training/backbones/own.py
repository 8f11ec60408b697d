"""A backbone from a user's function: FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION, called without arguments."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ....common.files import describe
from ..run.settings import SettingsError
from .features import with_num_features
from .view import View


def own_backbone(spec: str, image_shape: tuple[int, int, int]) -> nn.Module:
    """The module (N, C, H, W) -> (N, d) that a function returns; `num_features` is set.

    Raises
    ------
    SettingsError
        If there is no such function, it fails or returns something else, or its network does not take such images.
    """
    return with_num_features(call(spec), spec, image_shape)


def own_view(spec: str) -> View:
    """The preprocessing for a function's network: from its attributes, then from its `pretrained_cfg`."""
    with torch.random.fork_rng(devices=[]):
        network = call(spec)
    configured = [getattr(network, name, None) for name in ("pretrained_cfg", "default_cfg")]
    return View.of(network).or_else(View.of(configured[0])).or_else(View.of(configured[1]))


def call(spec: str) -> nn.Module:
    """The module that a function returns."""
    place, _, name = spec.rpartition(":")
    function: Any = getattr(_module(place, spec), name, None)
    if not callable(function):
        raise SettingsError(f"backbone {spec}: {place} has no function {name}")
    try:
        network = function()
    except Exception as error:
        raise SettingsError(f"backbone {spec}: {name}() failed ({describe(error)})") from error
    if not isinstance(network, nn.Module):
        raise SettingsError(
            f"backbone {spec}: {name}() returned a {type(network).__name__}, expected a torch.nn.Module"
        )
    return network


def _module(place: str, spec: str) -> ModuleType:
    """A module by its dotted name, or a file as a module, whose folder is added to the import path."""
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ImportError as error:
            file = Path(*place.split(".")).with_suffix(".py")  # commands do not search the folder that they run in
            remedy = f": use {file}:{spec.rpartition(':')[2]} for the file in this folder" if file.is_file() else ""
            raise SettingsError(f"backbone {spec}: {place} cannot be imported ({describe(error)}){remedy}") from error
    if not Path(place).is_file():
        raise SettingsError(f"backbone {spec}: there is no file {place}")
    folder = str(Path(place).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    description = importlib.util.spec_from_file_location(f"backbone_of_{Path(place).stem}", place)
    assert description is not None
    assert description.loader is not None
    module = sys.modules[description.name] = importlib.util.module_from_spec(description)
    try:
        description.loader.exec_module(module)
    except Exception as error:
        raise SettingsError(f"backbone {spec}: {place} cannot be imported ({describe(error)})") from error
    return module
