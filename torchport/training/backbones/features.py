"""The number of features of a third-party network, found by a trial."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ....common.errors import first_line
from ..run.settings import SettingsError


def with_num_features(network: Any, name: str, image_shape: tuple[int, int, int]) -> nn.Module:
    """A network with its d as `num_features`, after a trial on images of shape (H, W, C).

    >>> with_num_features(nn.Flatten(), "flat", (2, 2, 3)).num_features
    12
    """
    network.num_features = count_features(network, name, image_shape)
    return network


def count_features(network: nn.Module, name: str, image_shape: tuple[int, int, int]) -> int:
    """The number of features d, from a trial of a copy of the network on two images in training mode.

    Raises
    ------
    SettingsError
        If the network fails on them, or returns anything but features (2, d).
    """
    height, width, channels = image_shape
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            features = copy.deepcopy(network)(torch.zeros(2, channels, height, width))
    except Exception as error:  # third-party networks raise errors of any type
        raise SettingsError(
            f"backbone {name} does not take images of {height}×{width} pixels: {first_line(error)}"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise SettingsError(f"backbone {name} returns {found} for two images: expected features (2, d)")
    return features.shape[1]
