"""The device and the precision of a model."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from ...common.errors import first_line
from .run.settings import SettingsError

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def computing_device(name: str | torch.device | None) -> torch.device:
    """The named device, or this process's GPU, or the CPU.

    Raises
    ------
    SettingsError
        If the device cannot be used here.

    Examples
    --------
    >>> computing_device("cpu")
    device(type='cpu')
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise RuntimeError("torch finds no CUDA device")
            if device.index is None:
                device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        torch.ones(1, device=device).add(1).item()
    except Exception as error:  # torch raises many types for devices that this build lacks
        raise SettingsError(
            f"device {str(name)!r} cannot be used here ({first_line(error)}): try --device cpu"
        ) from error
    return device


def use_precision(backbone: nn.Module, device: torch.device, precision: str) -> None:
    """Run a backbone in another precision; its features and the head stay in float32."""
    if precision == "float32":
        return
    forward = backbone.forward

    def autocast_forward(images: Tensor) -> Tensor:
        with torch.autocast(device.type, PRECISIONS[precision]):
            features: Tensor = forward(images)
        return features.float()

    backbone.forward = autocast_forward  # type: ignore[method-assign]
