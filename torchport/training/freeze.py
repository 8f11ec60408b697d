"""Frozen parts of a backbone, and the order of its layers.

A frozen part does not learn and stays in eval mode, batch norm and dropout included, while the rest trains.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...common.errors import nearest_name
from ..heads import Classifier
from .run.settings import Settings, SettingsError

CONTAINERS = (nn.Sequential, nn.ModuleList)


def freeze(model: Classifier[Any], settings: Settings) -> list[nn.Module]:
    """Freeze the parts that the settings name; return the modules that `train_mode` keeps in eval mode.

    `freeze = "all"` freezes the whole backbone: only the head learns. The name of a module (`layer4`, `blocks.10`)
    freezes everything defined before it; that module and all later ones learn. `freeze_bn` freezes the statistics of
    every batch norm in the backbone; its scale and shift still learn.

    Raises
    ------
    SettingsError
        If there is no such module, or nothing is left to learn.

    Examples
    --------
    >>> from ..heads import FixedETFHead
    >>> backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    >>> model = Classifier(backbone, FixedETFHead(4, 3))
    >>> [type(module).__name__ for module in freeze(model, Settings(freeze="2"))]
    ['Linear', 'BatchNorm1d']
    >>> [name for name, p in model.named_parameters() if p.requires_grad]
    ['backbone.2.weight', 'backbone.2.bias']
    """
    backbone = model.backbone
    if settings.freeze == "all":
        still: list[nn.Module] = [backbone]
        backbone.requires_grad_(False)
    elif settings.freeze == "none":
        still = []
    else:
        still = _before(backbone, settings.freeze)
    if settings.freeze_bn:
        still += [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    if not any(p.requires_grad for p in model.parameters()):
        raise SettingsError(
            f"freeze {settings.freeze} leaves nothing to learn: the classifier of head {settings.head} follows from "
            "class means; use head learned or linear, or freeze less"
        )
    return still


def train_mode(model: nn.Module, still: Iterable[nn.Module]) -> None:
    """Put a model into training mode, except the modules that stay in eval mode."""
    model.train()
    for module in still:
        module.eval()


def _before(backbone: nn.Module, name: str) -> list[nn.Module]:
    """Freeze everything defined before a module; return the outermost frozen modules."""
    modules = dict(backbone.named_modules())
    if name not in modules or not name:
        near = [known for known in modules if known and known.count(".") <= name.count(".")]
        raise SettingsError(nearest_name("module to freeze up to", name, near[:40] or ["all"]))
    path = [".".join(name.split(".")[:depth]) for depth in range(name.count(".") + 1)]  # the containers of the module
    still = []
    for holder in path:
        module = modules[holder]
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
        for child_name, child in module.named_children():
            full = f"{holder}.{child_name}".lstrip(".")
            if full == name or name.startswith(f"{full}."):
                break
            still.append(child.requires_grad_(False))
    return still


def _with_parameters(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, child) for name, child in module.named_children() if any(True for _ in child.parameters())]


def _is_stack(module: nn.Module) -> bool:
    """Whether a container holds several blocks of one kind, each made of other modules."""
    parts = [part for _, part in _with_parameters(module)]
    composed = all(any(True for _ in part.children()) for part in parts)
    return isinstance(module, CONTAINERS) and len(parts) > 1 and len({type(part) for part in parts}) == 1 and composed


def layer_numbers(backbone: nn.Module) -> dict[str, int]:
    """The layer of each parameter of a backbone, numbered from 0 in the order of definition.

    * A container of layers is opened: `nn.Sequential` and `nn.ModuleList`; a module that holds a stack of blocks of one
      kind, such as the encoder of a transformer; a wrapper around the whole network.
    * Every other module is one layer.
    * A module that has vectors only, such as a normalisation, belongs to the layer before it; so do the parameters that
      an opened module has itself.

    >>> layer_numbers(nn.Sequential(nn.Linear(2, 2, bias=False), nn.LayerNorm(2), nn.Linear(2, 2, bias=False)))
    {'0.weight': 0, '1.weight': 0, '1.bias': 0, '2.weight': 1}
    """
    numbers: dict[str, int] = {}
    current = -1

    def visit(module: nn.Module, prefix: str, opened: bool) -> None:
        nonlocal current
        children = _with_parameters(module)
        own = dict(module.named_parameters(recurse=False))
        stack = isinstance(module, CONTAINERS) or any(_is_stack(child) for _, child in children)
        if children and (opened or stack):
            numbers.update({f"{prefix}{name}": max(current, 0) for name in own})
            around = opened and len(children) == 1 and not own
            for name, child in children:
                visit(child, f"{prefix}{name}.", around)
            return
        parameters = dict(module.named_parameters(prefix.removesuffix(".")))
        if current < 0 or any(p.ndim > 1 for p in parameters.values()):
            current += 1
        numbers.update(dict.fromkeys(parameters, current))

    visit(backbone, "", True)
    return numbers
