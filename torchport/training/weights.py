"""Pretrained weights for a backbone: from timm, torchvision or a file.

A file holds tensors by name, as safetensors or as a checkpoint that `torch.load(weights_only=True)` reads. Names are
matched after removing or adding the prefix that fits best (`module.`, `backbone.`, `_orig_mod.`, …).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...common.files import reading
from .backbones.foreign import without_classifier
from .backbones.resnet import ResNet
from .run.settings import FOREIGN_BACKBONES, Settings, SettingsError

HOLDERS = ("ema", "state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module")  # in this order
LISTED = 6  # names in a message


def start_weights(backbone: nn.Module, settings: Settings, channels: int) -> list[str]:
    """Load the weights that training starts from; return lines for the log, none for random weights.

    Parameters
    ----------
    backbone : nn.Module
        From `build_backbone`.
    settings : Settings
    channels : int
        Of the images.

    Raises
    ------
    SettingsError
        If the weights cannot be downloaded or read, or no tensor of the file fits the backbone.

    Examples
    --------
    >>> start_weights(nn.Linear(2, 2), Settings(), channels=1)
    []
    """
    if settings.weights:
        return [f"weights of {settings.weights}: {load_weights(backbone, settings.weights)}"]
    if not settings.pretrained:
        return []
    if not settings.backbone.startswith(FOREIGN_BACKBONES):
        return [f"weights set by {settings.backbone}"]
    library, _, name = settings.backbone.partition(":")
    with torch.random.fork_rng(devices=[]):
        network = without_classifier(library, name, channels, pretrained=True)
    backbone.load_state_dict(network.state_dict())
    return [f"pretrained weights of {settings.backbone}"]


def load_weights(backbone: nn.Module, path: str | Path) -> str:
    """Load the tensors of a file that fit a backbone; return a summary of what fits and what does not.

    Raises
    ------
    SettingsError
        If the file is missing, damaged or of another kind, or no tensor fits.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"module.weight": torch.ones(2, 3), "module.fc.bias": torch.ones(9)}, f"{folder}/w.pt")
    ...     load_weights(nn.Linear(3, 2, bias=False), f"{folder}/w.pt")
    "1 of 1 tensors, by the prefix 'module.'; not used: fc.bias"
    """
    found = read_weights(path)
    if isinstance(backbone, ResNet):  # the names of torchvision, whose networks these are
        found = {re.sub(r"\blayer(\d)\.", _stage, name): tensor for name, tensor in found.items()}
    own = backbone.state_dict()
    prefix, renamed = best_names(own, found)
    fitting = {name: renamed[name] for name in own if name in renamed and renamed[name].shape == own[name].shape}
    if not any(own[name].is_floating_point() for name in fitting):
        raise SettingsError(
            f"{path}: no tensor fits the backbone. The file holds {_names(found)}; the backbone has {_names(own)}"
        )
    backbone.load_state_dict({**own, **fitting})
    counted = [name for name in own if not name.endswith("num_batches_tracked")]
    other = [f"{n} {tuple(renamed[n].shape)}, here {tuple(own[n].shape)}" for n in own if n in renamed.keys() - fitting]
    words = [f"{sum(name in fitting for name in counted)} of {len(counted)} tensors"]
    words[0] += f", by the prefix {prefix!r}" if prefix else ""
    for what, names in (
        ("left out, of another size", other),
        ("not in the file", [name for name in counted if name not in renamed]),
        ("not used", [name for name in renamed if name not in own]),
    ):
        if names:
            words.append(f"{what}: {_names(names)}")
    return "; ".join(words)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a checkpoint.

    Raises
    ------
    SettingsError
        If the file is missing, damaged, or holds no tensors by name, or safetensors is not installed.
    """
    expected = "tensors by name, as safetensors or as a checkpoint that torch.load(weights_only=True) reads"
    with reading(path, expected, SettingsError):
        if Path(path).suffix == ".safetensors":
            try:
                from safetensors.torch import load_file
            except ImportError as error:
                raise SettingsError(f"{path} needs safetensors: pip install safetensors") from error
            contents: Any = load_file(path)
        else:
            contents = torch.load(path, map_location="cpu", weights_only=True)
        while holders := [contents[name] for name in HOLDERS if isinstance(contents.get(name), Mapping)]:
            contents = next((holder for holder in holders if holder), {})
        tensors = {str(name): value for name, value in contents.items() if isinstance(value, Tensor)}
    if not tensors:
        raise SettingsError(f"{path} holds no tensors: expected {expected}")
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}  # of compiled modules


def best_names(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The prefix with which most tensors fit, and the tensors by the backbone's names.

    >>> x = torch.zeros(1)
    >>> prefix, renamed = best_names({"net.a": x, "net.b": x}, {"a": x, "b": x, "c": x})
    >>> prefix, sorted(renamed)
    ('', ['c', 'net.a', 'net.b'])
    """
    probes = [name for name in own if own[name].is_floating_point()]
    probes = [*probes[:4], *probes[len(probes) // 2 :][:4]]
    off = {name.removesuffix(probe) for name in found for probe in probes if name.endswith(f".{probe}")}
    on = {probe.removesuffix(name) for name in found for probe in probes if probe.endswith(f".{name}")}

    def renamed(taken: str, put: str) -> dict[str, Tensor]:
        named = {(put + n.removeprefix(taken) if n.startswith(taken) else n): t for n, t in found.items()}
        return {n if n in own else n.removeprefix(put) if put else n: t for n, t in named.items()}

    choices = [("", ""), *((prefix, "") for prefix in sorted(off)), *(("", prefix) for prefix in sorted(on))]

    def fitting(choice: tuple[str, str]) -> int:
        return sum(n in own and own[n].shape == t.shape for n, t in renamed(*choice).items())

    best = max(choices, key=fitting)  # the first of equals
    return best[0], renamed(*best)


def _stage(match: re.Match[str]) -> str:
    return f"stages.{int(match[1]) - 1}."


def _names(names: Iterable[str]) -> str:
    """Some of the names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
