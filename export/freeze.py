"""Take a trained classifier apart into its backbone and the constants W, b and τ.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 3: logits `W h + b` of normalised features
`h = τ f(x)/‖f(x)‖₂`; for a head without normalisation, such as `nn.Linear`, `h = f(x)`. At inference W, b and τ are
constants for every head; a learned τ has its present value.
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
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from ..common.errors import first_line
from .errors import ExportError
from .ood import OodScore

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Frozen:
    """A copy of a classifier on the CPU, with its constants.

    Attributes
    ----------
    backbone : nn.Module
        Normalised images (N, C, H, W) to features (N, d), in eval mode.
    head : nn.Module
        The live head in eval mode, for the check of the constants.
    weight : (K, d)
    bias : (K,)
    temperature : float or None
        `τ`: multiplies unit features (it does not divide logits). None: features are not normalised.
    eps : float
        Machine epsilon of the model's dtype of W.
    factor : float or None
        Calibration factor on the logits of the exported file; None without a calibration.
    ood : OodScore or None
        The OOD score, an optional output of the file.
    """

    backbone: nn.Module
    head: nn.Module
    weight: Array
    bias: Array
    temperature: float | None
    eps: float
    factor: float | None = None
    ood: OodScore | None = None

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
            "kind": "linear" if _is_linear(head) else getattr(head, "kind", type(head).__name__),
            "num_classes": self.num_classes,
            "num_features": self.num_features,
            "temperature": self.temperature,
            "delta": getattr(head, "delta", None),
            "formulation": getattr(head, "formulation", None),
            "norms": getattr(head, "norms", None),
        }


def freeze(model: nn.Module) -> Frozen:
    """Copy a classifier onto the CPU in eval mode and read its constants; the model itself does not change.

    Parameters
    ----------
    model : nn.Module
        With `.backbone` and `.head`, wrapped or not (`DistributedDataParallel`, `AveragedModel`, `torch.compile`). The
        head is an `nn.Linear`, or has `weight` (K, d), `bias` (K,) or None, and `temperature`: a number, or None if
        the head does not normalise features.

    Raises
    ------
    ExportError
        If the model has no such modules, cannot be copied, or its constants are not finite.

    Examples
    --------
    >>> from nearest_etf.torchport import Classifier, FixedETFHead
    >>> frozen = freeze(Classifier(nn.Flatten(), FixedETFHead(8, 3, temperature=5.0)))
    >>> frozen.weight.shape, frozen.temperature
    ((3, 8), 5.0)
    """
    model = uncompiled(model)
    for name in ("backbone", "head"):
        if not isinstance(getattr(model, name, None), nn.Module):
            raise ExportError(
                f"the model, a {type(model).__name__}, has no module .{name}: rename its modules, or combine "
                "them with nearest_etf.torchport.Classifier(backbone, head)"
            )
        if isinstance(uncompiled(getattr(model, name)), torch.jit.ScriptModule):
            raise ExportError(f"the {name} is TorchScript: export the original module")
        if "forward" in vars(uncompiled(getattr(model, name))):
            raise ExportError(f"the forward of the {name} was replaced (autocast?): export the original model")
    backbone, head = (_copied(name, uncompiled(model.get_submodule(name))) for name in ("backbone", "head"))
    for name in ("weight", "temperature"):
        if not (hasattr(head, name) or _is_linear(head)):
            raise ExportError(
                f"the head, a {type(head).__name__}, has no attribute {name!r}: expected weight (K, d), bias (K,) or "
                "None, and temperature, the norm that it scales features to, or None if it does not normalise them"
            )
    weight = _array("weight", getattr(head, "weight", None))
    if weight.ndim != 2 or len(weight) < 2:
        raise ExportError(f"the head's weight has shape {weight.shape}: expected (K, d), one row per class, K ≥ 2")
    bias = getattr(head, "bias", None)
    bias = np.zeros(len(weight), np.float32) if bias is None else _array("bias", bias)
    if bias.shape != weight.shape[:1]:
        raise ExportError(f"the head's bias has shape {bias.shape}: expected ({len(weight)},), one per class")
    temperature = None if _is_linear(head) else _temperature(getattr(head, "temperature", None))
    stored = uncompiled(model.get_submodule("head")).weight  # not yet copied to float32
    eps = torch.finfo(stored.dtype).eps if isinstance(stored, torch.Tensor) and stored.is_floating_point() else 0.0
    return Frozen(backbone, head, weight, bias, temperature, eps)


def uncompiled(module: nn.Module) -> nn.Module:
    """The module inside the wrappers of `torch.compile`, of data-parallel training and of `AveragedModel`."""
    for wrapper in ("_orig_mod", "module"):
        children = dict(module.named_children())
        if len(children) == 1 and wrapper in children:
            return uncompiled(children[wrapper])
    return module


def _copied(name: str, module: nn.Module) -> nn.Module:
    """A copy on the CPU, in float32 and eval mode; tensors in attributes are copied without their autograd graph."""
    for parameter in (*module.parameters(), *module.buffers()):
        if isinstance(parameter, UninitializedParameter | UninitializedBuffer):
            raise ExportError(f"the {name} has lazy layers without a shape: run the model on one batch first")
        if parameter.is_meta:
            raise ExportError(f"the {name} is on the meta device, where weights have no values: load them first")
    attributes = (value for part in module.modules() for value in vars(part).values())
    left = [value for value in attributes if isinstance(value, torch.Tensor) and not value.is_leaf]
    try:
        copied = copy.deepcopy(module, {id(value): value.detach().clone() for value in left})
        return copied.cpu().float().eval().requires_grad_(False)
    except Exception as error:
        raise ExportError(f"the {name}, a {type(module).__name__}, cannot be copied: {first_line(error)}") from error


def _is_linear(head: nn.Module) -> bool:
    """Whether the head has the forward of `nn.Linear`; a subclass may override it and normalise features there."""
    return isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward


def _temperature(found: Any) -> float | None:
    """τ as a positive number, or None."""
    if found is None:
        return None
    try:
        tau = float(found)
    except (TypeError, ValueError):
        tau = math.nan
    if not (math.isfinite(tau) and tau > 0):
        raise ExportError(
            f"the head's temperature is {found!r}: expected a positive number, or None without normalised features"
        )
    return tau


def _array(name: str, values: object) -> Array:
    if not isinstance(values, torch.Tensor):
        raise ExportError(f"the head's {name} is a {type(values).__name__}: expected a tensor")
    array: Array = values.detach().cpu().float().numpy().copy()
    if not np.isfinite(array).all():
        raise ExportError(f"the head's {name} contains NaN or infinite entries: train it first")
    return array
