"""Everything that defines a training run, in one frozen dataclass.

A recipe (`recipes/NAME.toml`) sets some of the fields, the command line overrides them, and the other fields keep
their defaults. Field names are TOML keys, and command-line flags with dashes for underscores; each field has its own
help text and bounds. Importing this file imports neither torch nor NumPy.
"""

from __future__ import annotations

import difflib
import math
import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from ....common.errors import LONGEST_NAME, UserError, nearest_name, shown
from ....common.files import read_json, read_text, reading
from ....common.old_names import SETTINGS, present_settings
from ....common.shapes import check_shape

DATA_SETS = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "stl10", "imagenet", "ufm")
BACKBONES = (
    *("small-cnn", "mlp", "resnet18", "resnet34", "resnet50", "resnet101"),
    *("vgg11", "vgg13", "vgg16", "vgg19"),
)
LARGEST = {int: 2**63 - 1, float: 1e30}  # for settings without a bound of their own: far beyond useful values
SCALE = 0.08  # least share of a photo in a random crop
FOLLOWS_MEANS = ("implicit", "class-mean", "tight-frame")  # heads whose classifier comes from the class means
FOREIGN_BACKBONES = ("torchvision:", "timm:")  # before a name, which may have a weights tag: resnet18.a1_in1k


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
    """A field with help text, choices or bounds, and type.

    A field whose default is None accepts None; a numeric field also accepts `words`.
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
        "reduce class sizes: geometrically, or for half of the classes",
        choices=("none", "exponential", "step"),
    )
    imbalance_ratio: float = _option(100.0, "largest class size over smallest", least=1)
    label_noise: float = _option(0.0, "share of training labels replaced by another class", least=0, most=1)
    stratified: bool = _option(False, "spread each class evenly over the batches of an epoch")
    image_size: int | None = _option(
        None,
        "side in pixels of the images cropped from an image folder",
        least=8,
        type_if_given=int,
        default_text="that of a network of torchvision or timm, else 224",
    )
    flip: bool = _option(False, "augmentation: mirror half of the images")
    scale: float = _option(SCALE, "augmentation of image folders: least share of a photo in a crop", least=1e-3, most=1)
    color_jitter: float = _option(
        0.0, "augmentation: change brightness, contrast, saturation by up to this share", least=0
    )
    mixup: float = _option(
        0.0, "augmentation: alpha of mixup; images and labels are blended with others (0: off)", least=0
    )
    cutmix: float = _option(0.0, "augmentation: alpha of cutmix; boxes come from other images (0: off)", least=0)
    crop_padding: int = _option(0, "augmentation: shift by up to this many pixels, filling with zeros", least=0)
    rotation: float = _option(0.0, "augmentation: rotate by up to this many degrees", least=0, most=180)
    workers: int = _option(4, "worker processes that read an image folder", least=0)
    strict_images: bool = _option(False, "stop at an image that cannot be read instead of skipping it")

    backbone: str = _option(
        "small-cnn",
        f"{', '.join(BACKBONES)}; torchvision:NAME or timm:NAME if installed; FILE.py:FUNCTION or "
        "PACKAGE.MODULE:FUNCTION that returns a module (N, C, H, W) -> (N, d)",
    )
    pretrained: bool = _option(False, "start from the library's weights; with FUNCTION: its network is pretrained")
    weights: str = _option("", "start the backbone from this file: safetensors, or a checkpoint of torch.save")
    freeze: str = _option("none", "freeze parts of the backbone: none, all, or everything defined before this module")
    freeze_bn: bool = _option(False, "freeze the statistics of batch norm in the backbone")
    width: int = _option(
        64, "resnet, vgg: channels of the first stage; later stages have 2, 4, 8 times as many", least=1
    )
    stem: str = _option("cifar", "resnet: 7x7 stride 2 with pooling, or 3x3 stride 1", choices=("imagenet", "cifar"))
    features: str = _option("relu", "the ReLU before pooling, or none", choices=("relu", "signed"))

    head: str = _option(
        "implicit",
        "the classifier; linear takes raw features, the others normalised ones",
        choices=("linear", "learned", "fixed", "implicit", "class-mean", "tight-frame"),
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
        "all but linear, learned: the rate of the running class means, the paper's or one per class",
        choices=("step", "class"),
    )
    delta: float = _option(1e-3, "implicit, tight-frame: weight of the proximal term", least=0)
    formulation: str = _option("paper", "implicit: the problem that is solved", choices=("paper", "gauge-free"))
    norms: str = _option(
        "unit",
        "tight-frame: rows of length one, the tight frame itself, or a tight frame with rows of equal length",
        choices=("unit", "tight", "equal"),
    )
    gradient: bool = _option(True, "implicit, class-mean, tight-frame: differentiate through the solution")
    method: str = _option(
        "auto",
        "implicit, tight-frame: how the problem is solved; trust-region is the paper's method",
        choices=("auto", "svd", "eigh", "matmul", "trust-region"),
    )
    initial: str = _option(
        "canonical",
        "fixed: the frame; implicit, tight-frame: the start of the first step; random depends on the seed",
        choices=("canonical", "random"),
    )
    start: str | None = _option(
        None,
        "before the first step: aligned sets class means, W and b from one pass over the training images",
        choices=("none", "aligned"),
        type_if_given=str,
        default_text="aligned with pretrained or weights, except for head linear; else none",
    )

    loss: str = _option(
        "cross-entropy",
        "training loss; ntce and nonl compare the samples of a batch instead of the classes",
        choices=("cross-entropy", "dot-regression", "mse", "ntce", "nonl"),
    )
    smoothing: float = _option(0.0, "cross-entropy: share of the target spread over all classes", least=0, most=0.99)
    class_weights: str = _option(
        "none",
        "cross-entropy: balanced weighs each image by N / (K times the size of its class)",
        choices=("none", "balanced"),
    )
    optimizer: str = _option(
        "sgd",
        "adam adds weight decay to the gradient; agd is automatic gradient descent, without hyperparameters",
        choices=("sgd", "adam", "adamw", "agd"),
    )
    lr: float = _option(0.1, "peak learning rate (for agd: its gain)", least=0)
    head_lr: float = _option(1.0, "learning rate of the head as a multiple of lr", least=0)
    layer_decay: float = _option(
        1.0, "learning rate of each layer as a multiple of the next one's, the head being the last", least=1e-3, most=1
    )
    momentum: float = _option(0.9, "sgd: Nesterov momentum", least=0, most=1)
    weight_decay: float = _option(5e-4, "on matrices and kernels, of the backbone and of a linear head", least=0)
    schedule: str = _option("none", "learning rate over the run", choices=("none", "step", "cosine", "one-cycle"))
    warmup_epochs: float = _option(0.0, "epochs over which the learning rate rises linearly from a hundredth", least=0)
    epochs: int = _option(200, "passes over the training set (ufm: iterations)", least=1)
    batch_size: int = _option(256, "images per step, over all processes together", least=2)
    grad_accum_steps: int = _option(
        1,
        "microbatches per step, to save memory; batch statistics and class means are per microbatch",
        least=1,
    )
    clip: float = _option(0.0, "largest gradient norm (0: no clipping)", least=0)
    model_ema: bool = _option(False, "average the weights over steps; the averaged model is evaluated and exported")
    model_ema_decay: float = _option(0.9998, "largest decay of the average per step", least=0, most=1)

    eval_interval: int = _option(1, "epochs between evaluations; the last epoch always has one", least=1)
    precision: str = _option("float32", "arithmetic of the backbone", choices=("float32", "bfloat16", "float16"))
    channels_last: bool = _option(False, "memory layout that is faster for convolutions on GPUs")
    compile: bool = _option(False, "torch.compile the backbone")

    num_classes: int = _option(10, "ufm: number of classes K", least=2)
    num_features: int = _option(512, "ufm, mlp, small-cnn: feature dimension d", least=1)

    def __post_init__(self) -> None:
        for f in fields(self):
            value: Any = getattr(self, f.name)
            kind: type = f.metadata["type"]
            if value is None and f.default is None:
                continue
            if value in f.metadata["words"]:
                continue
            if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
                object.__setattr__(self, f.name, value := float(value))
            if type(value) is not kind:
                words = "".join(f" or {word!r}" for word in f.metadata["words"])
                raise SettingsError(f"{f.name} is {shown(value)}, but has to be of type {kind.__name__}{words}")
            if isinstance(value, float) and not math.isfinite(value):
                raise SettingsError(f"{f.name} is {shown(value)}, but has to be finite")
            choices, least, most = (f.metadata[k] for k in ("choices", "least", "most"))
            if kind in (int, float) and most is None:
                most = LARGEST[kind]
            if choices and value not in choices:
                raise SettingsError(nearest_name(f.name, str(value), choices))
            if least is not None and not value >= least:
                raise SettingsError(f"{f.name} is {shown(value)}, but has to be at least {least}")
            if most is not None and not value <= most:
                raise SettingsError(f"{f.name} is {shown(value)}, but has to be at most {most}")
        self._check_network()
        self._check_loss()
        if self.batch_size % self.grad_accum_steps:
            raise SettingsError(
                f"grad_accum_steps {self.grad_accum_steps} does not divide the batch size {self.batch_size}"
            )

    def _check_loss(self) -> None:
        """Refuse a loss that has no minimum, or no meaning, with this head and temperature."""
        if self.head == "linear" and self.loss in ("dot-regression", "ntce", "nonl"):
            raise SettingsError(
                f"loss {self.loss} is for unit features, but head linear takes raw features: use head learned, or "
                "loss cross-entropy or mse"
            )
        if self.head == "class-mean" and self.loss == "dot-regression":
            raise SettingsError(
                "loss dot-regression pushes no classes apart, and with head class-mean nothing else does: use head "
                "tight-frame or implicit, or loss mse"
            )
        if self.loss != "cross-entropy" and (self.smoothing or self.class_weights != "none"):
            raise SettingsError(f"smoothing and class_weights are for loss cross-entropy, not for {self.loss}")
        if self.loss not in ("cross-entropy", "mse") and (self.mixup or self.cutmix):
            raise SettingsError(f"mixup and cutmix make soft labels: use loss cross-entropy or mse, not {self.loss}")
        learned = self.temperature == "learned" and self.head != "linear"
        if learned and self.loss in ("dot-regression", "mse", "nonl"):
            raise SettingsError(
                f"loss {self.loss} needs a fixed temperature, since its minimum moves with it: set temperature to a "
                "number, or use loss cross-entropy or ntce"
            )

    def _check_network(self) -> None:
        if self.backbone not in BACKBONES and not all(self.backbone.partition(":")):
            raise SettingsError(nearest_name("backbone", self.backbone, BACKBONES))
        if self.pretrained and self.backbone in BACKBONES:
            raise SettingsError(
                f"backbone {self.backbone} has no pretrained weights: pass a file of weights (--weights FILE), "
                "or use a backbone of torchvision or timm"
            )
        if self.optimizer == "agd" and (self.freeze != "none" or self.head_lr != 1 or self.layer_decay != 1):
            raise SettingsError(
                "optimizer agd takes its steps from the architecture: leave out freeze, head_lr and layer_decay"
            )
        if self.start == "aligned" and self.head == "linear":
            raise SettingsError("start aligned needs class means, and head linear has none: leave start out")
        if self.pretrained and self.weights:
            raise SettingsError("pretrained and weights both set the weights of the backbone: use one of them")
        for name in ("backbone", "weights"):  # a run works from any working directory
            path, colon, function = (
                getattr(self, name).rpartition(".py:") if name == "backbone" else (self.weights, "", "")
            )
            if path:
                object.__setattr__(self, name, f"{os.path.abspath(os.path.expanduser(path))}{colon}{function}")

    @property
    def aligned(self) -> bool:
        """Whether a pass over the training images sets the head before the first step."""
        return self.head != "linear" and (self.fine_tuning if self.start is None else self.start == "aligned")

    @property
    def fine_tuning(self) -> bool:
        """Whether the backbone starts from pretrained weights."""
        return self.pretrained or bool(self.weights)

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
            close = difflib.get_close_matches(name[:LONGEST_NAME], known, n=1, cutoff=0.0)[0]
            raise SettingsError(f"unknown setting {shown(name)}: did you mean {close!r}?")
    return Settings(**values)


def _translated(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their present names; the old and the present name of the same setting are refused."""
    for old, name in SETTINGS.items():
        if old in values and name in values:
            raise SettingsError(f"{old!r} is the old name of {name!r}: use only {name!r}")
    return present_settings(values)


def _recipes() -> Traversable:
    """The folder of the recipes that come with the package."""
    return resources.files(f"{__package__.rpartition('.')[0]}.recipes")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    return sorted(Path(entry.name).stem for entry in _recipes().iterdir() if entry.name.endswith(".toml"))


def recipe_text(name: str) -> str:
    """The TOML text of a recipe, by its name or by the path of a TOML file."""
    if name.endswith(".toml"):
        return read_text(name, "a recipe", SettingsError)
    if name not in recipe_names():
        raise SettingsError(nearest_name("recipe", name, recipe_names()))
    return (_recipes() / f"{name}.toml").read_text(encoding="utf-8")


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings of a recipe, or of the run that a config.json belongs to, with `overrides` on top.

    Raises
    ------
    SettingsError
        If there is no such recipe, it is no TOML, or a setting cannot be used.

    Examples
    --------
    >>> load_recipe("digits", {"head": "fixed"}).head
    'fixed'
    """
    if name.endswith(".json"):
        expected = "the config.json of a run of etf-train"
        config = read_json(name, expected, SettingsError)
        with reading(name, expected, SettingsError):
            check_shape(config, {"settings": {str: (str, bool, float, None)}})
            values = _translated(config["settings"])
        return settings_from({**values, **_translated(overrides or {})})
    text = recipe_text(name)
    with reading(f"recipe {name}", "TOML", SettingsError):
        values = _translated(tomllib.loads(text))
    return settings_from({**values, "recipe": Path(name).stem, **_translated(overrides or {})})
