"""Take a trained classifier apart into the constants of its file: the backbone, W, b and τ.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 3: logits `W h + b` of normalised features
`h = τ f(x)/‖f(x)‖₂`, or of features as they come, `h = f(x)`, which is what `nn.Linear` computes. At inference W, b and
τ are constants, whichever head they come from; a learned τ has its present value.
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
    """A classifier at rest, on the CPU.

    Attributes
    ----------
    backbone : nn.Module
        Normalised images (N, C, H, W) to features (N, d), in eval mode.
    head : nn.Module
        The live head in eval mode, which the constants are checked against.
    weight : (K, d)
    bias : (K,)
    temperature : float or None
        `τ`: multiplies unit features (it does not divide logits). None: features are taken as they come.
    eps : float
        Machine epsilon of the type that the model keeps W in.
    factor : float or None
        Multiplies the logits of the exported file, by a calibration; None: they are the model's.
    ood : OodScore or None
        A score for foreign images, as one more output of the file.
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
        """The entry `head` of the file's metadata; `temperature` is None where features are taken as they come."""
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
    """Copy a classifier onto the CPU in eval mode and read its constants; the model itself is left alone.

    Parameters
    ----------
    model : nn.Module
        With `.backbone` and `.head`, wrapped or not (`DistributedDataParallel`, `AveragedModel`, `torch.compile`). The
        head is an `nn.Linear`, or has `weight` (K, d), `bias` (K,) or None, and `temperature`: a number, or None where
        it takes features as they come.

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
                f"the model, a {type(model).__name__}, has no module .{name}: name its modules so, or put "
                "them together with nearest_etf.torchport.Classifier(backbone, head)"
            )
        if isinstance(uncompiled(getattr(model, name)), torch.jit.ScriptModule):
            raise ExportError(f"the {name} is TorchScript: export the module that it was made from")
        if "forward" in vars(uncompiled(getattr(model, name))):
            raise ExportError(f"something replaced the forward of the {name}: export the model without it (autocast?)")
    backbone, head = (_copied(name, uncompiled(model.get_submodule(name))) for name in ("backbone", "head"))
    for name in ("weight", "temperature"):
        if not (hasattr(head, name) or _is_linear(head)):
            raise ExportError(
                f"the head, a {type(head).__name__}, has no attribute {name!r}: expected weight (K, d), bias (K,) or "
                "None, and temperature, the norm that it scales features to, or None where it takes them as they come"
            )
    weight = _array("weight", getattr(head, "weight", None))
    if weight.ndim != 2 or len(weight) < 2:
        raise ExportError(f"the head's weight has shape {weight.shape}: expected (K, d), a row for each class, K ≥ 2")
    bias = getattr(head, "bias", None)
    bias = np.zeros(len(weight), np.float32) if bias is None else _array("bias", bias)
    if bias.shape != weight.shape[:1]:
        raise ExportError(f"the head's bias has shape {bias.shape}: expected ({len(weight)},), one per class")
    temperature = None if _is_linear(head) else _temperature(getattr(head, "temperature", None))
    stored = uncompiled(model.get_submodule("head")).weight  # not yet copied to float32
    eps = torch.finfo(stored.dtype).eps if isinstance(stored, torch.Tensor) and stored.is_floating_point() else 0.0
    return Frozen(backbone, head, weight, bias, temperature, eps)


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself where `torch.compile`, a data-parallel wrapper or an average of models stands around it."""
    for wrapper in ("_orig_mod", "module"):
        children = dict(module.named_children())
        if len(children) == 1 and wrapper in children:
            return uncompiled(children[wrapper])
    return module


def _copied(name: str, module: nn.Module) -> nn.Module:
    """A copy on the CPU, in float32 and eval mode; what a forward left in an attribute is copied without its graph."""
    for parameter in (*module.parameters(), *module.buffers()):
        if isinstance(parameter, UninitializedParameter | UninitializedBuffer):
            raise ExportError(f"the {name} has lazy layers without a shape so far: run the model on one batch first")
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
    """Whether it is an `nn.Linear` that computes as one; its subclasses may normalise features in their own forward."""
    return isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward


def _temperature(found: Any) -> float | None:
    """τ as a positive number; None where features are taken as they come."""
    if found is None:
        return None
    try:
        tau = float(found)
    except (TypeError, ValueError):
        tau = math.nan
    if not (math.isfinite(tau) and tau > 0):
        raise ExportError(
            f"the head's temperature is {found!r}: expected a positive number, or None for features as they come"
        )
    return tau


def _array(name: str, values: object) -> Array:
    if not isinstance(values, torch.Tensor):
        raise ExportError(f"the head's {name} is a {type(values).__name__}: expected a tensor")
    array: Array = values.detach().cpu().float().numpy().copy()
    if not np.isfinite(array).all():
        raise ExportError(f"the head's {name} holds NaN or infinite entries: train it first")
    return array
