"""Everything that defines a training run, in one frozen dataclass.

A recipe (`recipes/NAME.toml`) gives values for some of the fields, the command line overrides them, and what is left
keeps the default written here. Field names are TOML keys, and command-line flags with dashes for underscores; each
field carries its own help text and bounds. Importing this file imports neither torch nor NumPy.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from ....common.errors import UserError, nearest_name
from ....common.files import reading
from ....common.old_names import SETTINGS, present_settings

DATA_SETS = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "stl10", "imagenet", "ufm")
BACKBONES = (
    *("small-cnn", "mlp", "resnet18", "resnet34", "resnet50", "resnet101"),
    *("vgg11", "vgg13", "vgg16", "vgg19"),
)
FOREIGN_BACKBONES = ("torchvision:", "timm:")


class SettingsError(UserError):
    """A setting that cannot be used; the message is one line that names it, what was found and the remedy."""


def _option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    least: float | None = None,
    most: float | None = None,
    type_if_given: type | None = None,
    default_text: str | None = None,
    words: tuple[str, ...] = (),
) -> Any:
    """A field with its help text, its values or bounds and its type.

    One whose default is None may stay None; `words` stand beside the numbers of a numeric one.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "least": least,
        "most": most,
        "type": type_if_given or type(default),
        "default": str(default) if default_text is None else default_text,
        "words": words,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """All settings of a run; see `etf-train --help` for what each one means.

    Raises
    ------
    SettingsError
        For an unknown name, a value of the wrong type or out of range.

    Examples
    --------
    >>> Settings(head="implicit", epochs=5).batch_size
    256
    """

    recipe: str = _option("custom", "name of the recipe the settings started from")
    seed: int = _option(0, "seed of the weights, the batches and the augmentation", least=0)

    data: str = _option("digits", f"data set ({', '.join(DATA_SETS)}) or path of an image folder")
    val_fraction: float | None = _option(
        None,
        "share of each class's training images held out for validation, by the seed; the best epoch is chosen on it",
        least=0,
        most=0.9,
        type_if_given=float,
        default_text="0.2 for an image folder with neither val/ nor test/, else 0",
    )
    samples_per_class: int = _option(0, "keep this many training images per class (0: all)", least=0)
    imbalance: str = _option(
        "none",
        "thin out classes: to a geometric profile, or half of them",
        choices=("none", "exponential", "step"),
    )
    imbalance_ratio: float = _option(100.0, "largest class size over smallest", least=1)
    label_noise: float = _option(0.0, "share of training labels replaced by another class", least=0, most=1)
    stratified: bool = _option(False, "spread each class evenly over the batches of an epoch")
    image_size: int = _option(224, "side of the images cut from an image folder", least=8)
    flip: bool = _option(False, "augmentation: mirror half of the images")
    crop_padding: int = _option(0, "augmentation: shift by up to this many pixels, filling with zeros", least=0)
    rotation: float = _option(0.0, "augmentation: rotate by up to this many degrees", least=0, most=180)
    workers: int = _option(4, "worker processes that read an image folder", least=0)

    backbone: str = _option(
        "small-cnn", f"{', '.join(BACKBONES)}, or torchvision:NAME and timm:NAME where these are installed"
    )
    width: int = _option(64, "channels of the first stage, of resnet and vgg; 2, 4, 8 times that later", least=1)
    stem: str = _option("cifar", "resnet: 7x7 stride 2 with pooling, or 3x3 stride 1", choices=("imagenet", "cifar"))
    features: str = _option("relu", "the last activation before pooling, or none", choices=("relu", "signed"))

    head: str = _option(
        "implicit",
        "the classifier on the features; linear takes them as they come, the others at unit length",
        choices=("linear", "learned", "fixed", "implicit"),
    )
    temperature: float | str | None = _option(
        None,
        "tau, which multiplies the unit features: logits = tau W f/|f|, larger is sharper; a number, or learned",
        least=1e-6,
        type_if_given=float,
        default_text="by the number of classes: 12 for 10, 16 for 100, 20 for 1000; the paper's is 5",
        words=("learned",),
    )
    averaging: str = _option(
        "step",
        "fixed, implicit: the rate of the running class means, the paper's or one per class",
        choices=("step", "class"),
    )
    delta: float = _option(1e-3, "implicit: weight of the proximal term", least=0)
    formulation: str = _option("paper", "implicit: the problem that is solved", choices=("paper", "gauge-free"))
    gradient: bool = _option(True, "implicit: differentiate through the solution")
    method: str = _option(
        "auto",
        "implicit: how the problem is solved; trust-region is the paper's method",
        choices=("auto", "svd", "eigh", "matmul", "trust-region"),
    )
    initial: str = _option(
        "canonical",
        "fixed: the frame; implicit: the one that the first step starts from; random by the seed",
        choices=("canonical", "random"),
    )

    loss: str = _option("cross-entropy", "training loss", choices=("cross-entropy", "dot-regression"))
    optimizer: str = _option(
        "sgd", "agd is automatic gradient descent, without parameters", choices=("sgd", "adamw", "agd")
    )
    lr: float = _option(0.1, "peak learning rate (for agd: its gain)", least=0)
    momentum: float = _option(0.9, "sgd: Nesterov momentum", least=0, most=1)
    weight_decay: float = _option(5e-4, "on matrices and kernels, of the backbone and of a linear head", least=0)
    schedule: str = _option("none", "learning rate over the run", choices=("none", "step", "cosine", "one-cycle"))
    epochs: int = _option(200, "passes over the training set (ufm: iterations)", least=1)
    batch_size: int = _option(256, "images per step, over all processes together", least=2)
    grad_accum_steps: int = _option(
        1,
        "microbatches per step, to save memory; batch statistics and class means are taken by microbatches",
        least=1,
    )
    clip: float = _option(0.0, "largest gradient norm (0: no clipping)", least=0)

    eval_interval: int = _option(1, "epochs between evaluations; the last epoch always has one", least=1)
    precision: str = _option("float32", "arithmetic of the backbone", choices=("float32", "bfloat16", "float16"))
    channels_last: bool = _option(False, "memory layout that convolutions prefer on GPUs")
    compile: bool = _option(False, "torch.compile the backbone")

    num_classes: int = _option(10, "ufm: number of classes K", least=2)
    num_features: int = _option(512, "ufm: feature dimension d; mlp and small-cnn: features they end in", least=1)

    def __post_init__(self) -> None:
        for f in fields(self):
            value: Any = getattr(self, f.name)
            kind: type = f.metadata["type"]
            if value is None and f.default is None:
                continue
            if value in f.metadata["words"]:
                continue
            if kind is float and type(value) is int:
                object.__setattr__(self, f.name, value := float(value))
            if type(value) is not kind:
                words = "".join(f" or {word!r}" for word in f.metadata["words"])
                raise SettingsError(f"{f.name} is {value!r}, but has to be of type {kind.__name__}{words}")
            if isinstance(value, float) and not math.isfinite(value):
                raise SettingsError(f"{f.name} is {value}, but has to be finite")
            choices, least, most = (f.metadata[k] for k in ("choices", "least", "most"))
            if choices and value not in choices:
                raise SettingsError(nearest_name(f.name, str(value), choices))
            if least is not None and not value >= least:
                raise SettingsError(f"{f.name} is {value}, but has to be at least {least}")
            if most is not None and not value <= most:
                raise SettingsError(f"{f.name} is {value}, but has to be at most {most}")
        if self.backbone not in BACKBONES and not self.backbone.startswith(FOREIGN_BACKBONES):
            raise SettingsError(nearest_name("backbone", self.backbone, BACKBONES))
        if self.loss == "dot-regression" and (self.head == "linear" or self.temperature == "learned"):
            raise SettingsError(
                "loss dot-regression pulls logits to the temperature, which has to be fixed: not for head linear or "
                "temperature learned"
            )
        if self.batch_size % self.grad_accum_steps:
            raise SettingsError(
                f"grad_accum_steps {self.grad_accum_steps} does not divide the batch size {self.batch_size}"
            )

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, as plain values that JSON, TOML and checkpoints hold."""
        return asdict(self)


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Settings from named values; names of earlier versions are translated.

    Raises
    ------
    SettingsError
        For an unknown name, with the nearest valid one, and for what `Settings` refuses.

    Examples
    --------
    >>> settings_from({"batchsize": 64})
    Traceback (most recent call last):
    ...
    nearest_etf.torchport.training.run.settings.SettingsError: unknown setting 'batchsize': did you mean 'batch_size'?
    """
    known = [f.name for f in fields(Settings)]
    for name in (values := _translated(values)):
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise SettingsError(f"unknown setting {name!r}: did you mean {close!r}?")
    return Settings(**values)


def _translated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their present names; the old and the present name of the same setting are refused."""
    for old, name in SETTINGS.items():
        if old in values and name in values:
            raise SettingsError(f"{old!r} is the old name of {name!r}: give only {name!r}")
    return present_settings(values)


def _recipes() -> Traversable:
    """The folder of the recipes that come with the package."""
    return resources.files(f"{__package__.rpartition('.')[0]}.recipes")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    return sorted(Path(entry.name).stem for entry in _recipes().iterdir() if entry.name.endswith(".toml"))


def recipe_text(name: str) -> str:
    """The TOML text of a recipe, by its name or by the path of a TOML file of one's own."""
    if name.endswith(".toml"):
        with reading(name, "a recipe", SettingsError):
            return Path(name).read_text(encoding="utf-8")
    if name not in recipe_names():
        raise SettingsError(nearest_name("recipe", name, recipe_names()))
    return (_recipes() / f"{name}.toml").read_text(encoding="utf-8")


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings of a recipe with `overrides` on top.

    Raises
    ------
    SettingsError
        If there is no such recipe, it is no TOML, or a setting cannot be used.

    Examples
    --------
    >>> load_recipe("digits", {"head": "fixed"}).head
    'fixed'
    """
    text = recipe_text(name)
    with reading(f"recipe {name}", "TOML", SettingsError):
        values = _translated(tomllib.loads(text))
    return settings_from({**values, "recipe": Path(name).stem, **_translated(overrides or {})})
