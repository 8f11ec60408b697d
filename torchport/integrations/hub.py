"""Models in the layout of a model hub: config.json, model.safetensors, and a model card as README.md. No network.

Reading executes no code from the folder: safetensors files contain only tensors, and a user's own backbone is never
imported by the name in config.json, but must be passed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ... import __version__
from ...common.errors import UserError
from ...common.files import read_json, reading, write_file
from ...common.shapes import check_shape
from ...reference import etf_error, frame_geometry
from ..heads import (
    AveragingHead,
    Classifier,
    ClassMeanHead,
    FixedETFHead,
    Head,
    ImplicitETFHead,
    LearnedHead,
    LinearHead,
    TightFrameHead,
)
from ..training.model import build_model, load_model
from ..training.run.data_path import data_label
from ..training.run.reading import read_run
from ..training.run.settings import BACKBONES, settings_from
from .model_card import model_card

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT = 1
LISTED = 6  # names in a message
HEADS: dict[str, type[Head]] = {
    kind.kind: kind for kind in (LinearHead, LearnedHead, FixedETFHead, ImplicitETFHead, ClassMeanHead, TightFrameHead)
}
ARGUMENTS = ("delta", "gradient", "method", "formulation", "norms")  # arguments of heads that are also attributes
LIBRARY_BACKBONE = re.compile(r"(torchvision|timm):[\w.]+")  # without a source of weights
SHAPE = {
    "format": int,
    "written_by": str,
    "num_features": int,
    "num_classes": int,
    "class_names": [str],
    "head": {"kind": str},
    "backbone": str,
    "tied": {str: str},
    "run": (dict, None),
}
RUN_SHAPE = {"settings": {str: object}, "image_shape": [int], "mean": [float], "std": [float]}


class HubError(UserError):
    """A folder that cannot be written or read as a model of this package."""


def save_pretrained(
    model: Classifier[Any] | str | Path,
    folder: str | Path,
    *,
    name: str = "",
    data: str = "",
    class_names: Sequence[str] = (),
    metrics: Mapping[str, float] | None = None,
    certificate: Mapping[str, Any] | None = None,
    licence: str = "",
    task: str = "",
    overwrite: bool = False,
) -> Path:
    """Write a model in a hub's layout.

    Parameters
    ----------
    model : Classifier or path
        A path is that of a run folder of `etf-train`; its result is used, with its data, classes, metrics and task;
        `from_pretrained` then builds the backbone itself. Paths of this machine are not written.
    folder : path
        May exist and contain other files.
    name : str
        Name of the model on the hub; default: that of the folder.
    data, metrics, certificate, licence, task
        For the card, as for `model_card`. By default, the certificate is the geometry of W.
    class_names : sequence of str
        K names in the order of the labels.
    overwrite : bool
        Replace the files of a model in the folder.

    Returns
    -------
    folder : Path

    Raises
    ------
    HubError
        If the folder contains such a file already, the model is not a Classifier with a head of this package, the
        number of class names is wrong, a weight is on the meta device, or safetensors is missing.
    UserError
        If there is no run, or it has no checkpoint.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> model = Classifier(nn.Flatten(), FixedETFHead(num_features=12, num_classes=4))
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     folder = save_pretrained(model, f"{parent}/shapes", licence="apache-2.0")
    ...     print(sorted(path.name for path in folder.iterdir()))
    ...     same = from_pretrained(folder, backbone=nn.Flatten())
    ['README.md', 'config.json', 'model.safetensors']
    >>> torch.equal(same.head.weight, model.head.weight)
    True
    """
    folder = Path(folder)
    present = [file for file in (CONFIG, WEIGHTS, CARD) if (folder / file).exists()]
    if present and not overwrite:
        raise HubError(f"{folder} contains {', '.join(present)} already: choose another folder, or pass overwrite=True")
    run: dict[str, Any] | None = None
    if isinstance(model, str | Path):
        found = read_run(model)
        model, settings = load_model(found)
        recorded = found.config["data"]
        run = {
            "settings": {
                **settings.to_dict(),
                "data": data_label(settings.data),
                "weights": Path(settings.weights).name,
            },
            "image_shape": list(recorded["image_shape"]),
            "mean": list(recorded.get("mean", ())),
            "std": list(recorded.get("std", ())),
            "transform": recorded.get("transform"),
        }
        run["settings"]["backbone"] = _without_path(settings.backbone)
        data, class_names = data or found.data_name, class_names or found.class_names
        figures = {
            name: value for name, value in found.result_row.items() if name.startswith(("train_", "val_", "test_"))
        }
        metrics = figures if metrics is None else metrics
        task = task or "image-classification"
    if not isinstance(model, Classifier) or type(model.head) not in HEADS.values():
        what = (
            f"Classifier with a {type(model.head).__name__}" if isinstance(model, Classifier) else type(model).__name__
        )
        raise HubError(
            f"the model is a {what}: expected a Classifier(backbone, head) with one of {', '.join(HEADS)} as its "
            "head. For a wrapped or compiled model give the one inside."
        )
    if len(class_names) not in (0, model.head.num_classes):
        raise HubError(f"{len(class_names)} class names: expected {model.head.num_classes}, or none")
    tensors, tied = _independent(model.state_dict())
    config = {
        "library_name": "nearest-etf",
        "format": FORMAT,
        "written_by": __version__,
        "num_features": model.head.num_features,
        "num_classes": model.head.num_classes,
        "class_names": list(class_names),
        "head": _head_config(model.head),
        "backbone": f"{type(model.backbone).__module__}.{type(model.backbone).__qualname__}",
        "tied": tied,
        "run": run,
    }
    card = model_card(
        name or folder.resolve().name,
        config,
        data=data,
        metrics=metrics,
        certificate=_geometry(model.head) if certificate is None else certificate,
        licence=licence,
        task=task,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / WEIGHTS, _safetensors().save(tensors, {"format": "pt"}))
    write_file(folder / CARD, card)
    write_file(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    return folder


def from_pretrained(folder: str | Path, backbone: nn.Module | None = None) -> Classifier[Any]:
    """Read a model that `save_pretrained` wrote, in eval mode on the CPU.

    Its state includes class means, counters and the last solution, so that training continues exactly.

    Parameters
    ----------
    folder : path
        On this machine, for example downloaded by a hub's own client.
    backbone : nn.Module, optional
        Maps images to features, with the architecture that was saved; its weights are replaced. Required, unless the
        model came from a run of `etf-train` with a backbone of this package, torchvision or timm.

    Raises
    ------
    HubError
        If a file is missing, damaged or from a newer version, a backbone is required, or the weights do not fit it; the
        message lists the differences.
    """
    folder = Path(folder)
    config = pretrained_config(folder)
    model = _built(folder, config, backbone)
    path, expected = folder / WEIGHTS, "the weights of a model of nearest-etf, as safetensors"
    with reading(path, expected, HubError):
        tensors: dict[str, Tensor] = _safetensors().load_file(path)
        tensors |= {alias: tensors[source] for alias, source in config["tied"].items()}
    _check_fit(path, model, tensors)
    for label, value in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        if value.dtype != tensors[label].dtype:
            value.data = value.data.to(tensors[label].dtype)  # for a model saved in half precision
    model.load_state_dict(tensors)
    return model.eval()


def pretrained_config(folder: str | Path) -> dict[str, Any]:
    """The contents of config.json: `num_features`, `num_classes`, `class_names`, `head`, `run`, …

    Raises
    ------
    HubError
        If it is missing, damaged, of another library or written by a newer version.
    """
    path = Path(folder) / CONFIG
    expected = "the configuration of a model that nearest-etf's save_pretrained wrote"
    config = read_json(path, expected, HubError)
    if not isinstance(config, dict) or config.get("library_name") != "nearest-etf":
        raise HubError(f"{path} belongs to another library: expected {expected}")
    with reading(path, expected, HubError):
        if config["format"] > FORMAT:
            writer = config["written_by"]
            raise HubError(f"{path} has format {config['format']}, newer than {FORMAT}: update nearest-etf to {writer}")
        check_shape(config, SHAPE)
        if config["run"] is not None:
            check_shape(config["run"], RUN_SHAPE)
    return config


def _built(folder: Path, config: dict[str, Any], backbone: nn.Module | None) -> Classifier[Any]:
    """The model before its weights are loaded."""
    run, expected = config["run"], "the settings of a model"
    if backbone is None:
        if run is None:
            raise HubError(f"{folder} has no settings of its backbone: pass backbone=, a {config['backbone']}")
        if (chosen := str(run["settings"]["backbone"])) not in BACKBONES and not LIBRARY_BACKBONE.fullmatch(chosen):
            raise HubError(
                f"{folder} has the backbone {chosen}, code from outside the folder, which is not imported by a name "
                "in a file: pass backbone="
            )
        with reading(folder / CONFIG, expected, HubError):
            settings = settings_from(run["settings"])
            return build_model(settings, tuple(run["image_shape"]), config["num_classes"])
    with reading(folder / CONFIG, expected, HubError):
        arguments = dict(config["head"])
        kind = HEADS[arguments.pop("kind")]
        return Classifier(backbone, kind(config["num_features"], config["num_classes"], **arguments))


def _head_config(head: Head) -> dict[str, Any]:
    """Kind and arguments to build a head with a state of the same form."""
    arguments: dict[str, Any] = {"kind": type(head).kind}
    if not isinstance(head, LinearHead):
        arguments["temperature"] = "learned" if head.log_temperature is not None else head.temperature
    if isinstance(head, AveragingHead):
        arguments["averaging"] = head.running.averaging
    return arguments | {name: getattr(head, name) for name in ARGUMENTS if hasattr(head, name)}


def _independent(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Contiguous tensors on the CPU without shared memory, and for each tied name the name that is written."""
    kept: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    places: set[int] = set()
    for name, value in state.items():
        tensor = value.detach()
        if tensor.is_meta:
            raise HubError(f"{name} is on the meta device, without memory: load the model's weights before saving it")
        storage = tensor.untyped_storage()
        same = storage.data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype
        if tensor.numel() and same in seen:
            tied[name] = seen[same]
            continue
        seen[same] = name
        shared = storage.data_ptr() in places or storage.nbytes() != tensor.numel() * tensor.element_size()
        places.add(storage.data_ptr())
        tensor = tensor.cpu().contiguous()
        kept[name] = tensor.clone() if shared else tensor
    return kept, tied


def _check_fit(path: Path, model: Classifier[Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights of another architecture."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items() if name != "head.pinned"}
    faults = {
        "of another shape": [f"{n} {found[n]}, here {own[n]}" for n in own if n in found and found[n] != own[n]],
        "missing in the file": [name for name in own if name not in found],
        "not in the model": sorted(found.keys() - own),
    }
    if any(faults.values()):
        listed = "; ".join(f"{what}: {_some(names)}" for what, names in faults.items() if names)
        raise HubError(f"{path} does not fit this backbone ({listed}): pass the architecture that was saved")


def _geometry(head: Head) -> dict[str, float]:
    W = head.weight.detach().double().cpu().numpy()
    return {"etf_error": etf_error(W), **asdict(frame_geometry(W))} if W.any() else {}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def _without_path(backbone: str) -> str:
    """A backbone's name; if it is FILE.py:FUNCTION, without the folder of the file."""
    file, separator, function = backbone.rpartition(":")
    return f"{Path(file).name}:{function}" if separator and file.endswith(".py") else backbone


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise HubError("models in the layout of a hub need safetensors: pip install safetensors") from error
    return safetensors.torch
