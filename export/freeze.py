"""Take a trained classifier apart into the constants of its file: the backbone, W, b and τ.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 3: logits `W h + b` of normalised features
`h = τ f(x)/‖f(x)‖₂`. At inference `W` and `b` are constants, whichever head they come from.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..common.errors import first_line
from .errors import ExportError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Frozen:
    """A classifier at rest, on the CPU.

    Attributes
    ----------
    backbone : nn.Module
        Normalised images (N, C, H, W) to features (N, d), in eval mode.
    head : nn.Module
        The live head in eval mode, which the constants are checked against.
    weight : (K, d)
    bias : (K,)
    temperature : float
        `τ`: multiplies unit features (it does not divide logits).
    """

    backbone: nn.Module
    head: nn.Module
    weight: Array
    bias: Array
    temperature: float

    @property
    def num_classes(self) -> int:
        """K."""
        return self.weight.shape[0]

    @property
    def num_features(self) -> int:
        """d."""
        return self.weight.shape[1]

    def describe_head(self) -> dict[str, Any]:
        """The entry `head` of the file's metadata."""
        head = self.head
        return {
            "kind": getattr(head, "kind", type(head).__name__),
            "num_classes": self.num_classes,
            "num_features": self.num_features,
            "temperature": self.temperature,
            "delta": getattr(head, "delta", None),
            "formulation": getattr(head, "formulation", None),
        }


def freeze(model: nn.Module) -> Frozen:
    """Copy a classifier onto the CPU in eval mode and read its constants; the model itself is left alone.

    Parameters
    ----------
    model : nn.Module
        With `.backbone` and `.head`; the head has `weight` (K, d), `bias` (K,) or None, and `temperature`.

    Raises
    ------
    ExportError
        If the model has no such modules, cannot be copied, or its constants are not finite.
    """
    for name in ("backbone", "head"):
        if not isinstance(getattr(model, name, None), nn.Module):
            raise ExportError(
                f"the model, a {type(model).__name__}, has no module .{name}: name its modules so, or put "
                "them together with nearest_etf.torchport.Classifier(backbone, head)"
            )
        if "forward" in vars(uncompiled(getattr(model, name))):
            raise ExportError(f"something replaced the forward of the {name}: export the model without it (autocast?)")
    try:
        backbone, head = (
            copy.deepcopy(uncompiled(module)).cpu().float().eval().requires_grad_(False)
            for module in (model.get_submodule("backbone"), model.get_submodule("head"))
        )
    except RuntimeError as error:
        raise ExportError(f"the model cannot be copied: {first_line(error)}") from error
    for name in ("weight", "temperature"):
        if not hasattr(head, name):
            raise ExportError(
                f"the head, a {type(head).__name__}, has no attribute {name!r}: expected weight (K, d), "
                "bias (K,) and temperature, as the heads of nearest_etf.torchport have"
            )
    weight = _array("weight", getattr(head, "weight", None))
    if weight.ndim != 2:
        raise ExportError(f"the head's weight has shape {weight.shape}: expected (K, d)")
    bias = getattr(head, "bias", None)
    bias = np.zeros(len(weight), np.float32) if bias is None else _array("bias", bias)
    if bias.shape != weight.shape[:1]:
        raise ExportError(f"the head's bias has shape {bias.shape}: expected ({len(weight)},), one per class")
    temperature = float(getattr(head, "temperature", math.nan))  # type: ignore[arg-type]
    if not (math.isfinite(temperature) and temperature > 0):
        raise ExportError(f"the head's temperature is {temperature}: expected a positive number")
    return Frozen(backbone, head, weight, bias, temperature)


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself where `torch.compile` or a data-parallel wrapper stands around it."""
    for wrapper in ("_orig_mod", "module"):
        inner = module._modules.get(wrapper)
        if inner is not None and len(module._modules) == 1:
            return uncompiled(inner)
    return module


def _array(name: str, values: object) -> Array:
    if not isinstance(values, torch.Tensor):
        raise ExportError(f"the head's {name} is a {type(values).__name__}: expected a tensor")
    array = values.detach().numpy().astype(np.float32)
    if not np.isfinite(array).all():
        raise ExportError(f"the head's {name} holds NaN or infinite entries: train it first")
    return array
