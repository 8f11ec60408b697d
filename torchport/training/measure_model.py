"""Neural collapse of a network trained elsewhere: built by name or function, weights from a file, measured on images.

At the input of the classifier the metrics are those of `etf-measure RUN`, from the same evaluation pass; at the output
of another layer they are those of `measure_collapse`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ...common.errors import UserError, first_line
from ..any_model import catching, linear_layer, linear_names, measure_collapse, named_layer, one_matrix
from ..heads import Classifier, Head, LinearHead
from .backbones.foreign import library_models
from .backbones.own import call
from .backbones.view import View
from .data.images import ImageData
from .data.load import seen_by, training_data
from .data.loaders import make_loader
from .device import computing_device
from .evaluate import evaluate
from .measurement import Measurement
from .run.settings import FOREIGN_BACKBONES, Settings
from .weights import load_weights


class ModelError(UserError):
    """A network that cannot be measured; the message names what was found and the remedy."""


@dataclass(frozen=True)
class ImagesFor:
    """The images and their preprocessing. None: the network's own, else ImageNet's.

    Attributes
    ----------
    data : str
        An image folder, root/CLASS/… or root/{train,val,test}/CLASS/…, or the name of a data set.
    size : int
        Side in pixels of the images cropped from a folder's photos.
    mean, std : per channel, on the 0…1 scale
    data_dir : path
        Folder of the data sets, as for `etf-train`.
    """

    data: str
    size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    data_dir: str | Path | None = None


def measure_model(
    model: str,
    images: ImagesFor,
    *,
    weights: str | None = None,
    classifier: str | None = None,
    layer: str | None = None,
    device: str | torch.device | None = None,
    log: Callable[[str], object] = lambda line: None,
) -> Measurement:
    """Measure a network on every split of a data set.

    Parameters
    ----------
    model : str
        PACKAGE.MODULE:FUNCTION or FILE.py:FUNCTION that returns the whole network, or timm:NAME, torchvision:NAME.
    images : ImagesFor
    weights : path, optional
        A file of weights, see `load_weights`. Default: the library's own, or those that the function sets.
    classifier : str, optional
        The linear layer that outputs the logits. Without it, `layer` is required and metrics of W are left out.
    layer : str, optional
        The layer whose output is measured. Default: the input of the classifier is measured.
    device : str or torch.device, optional
        Default: a GPU if there is one.
    log : function
        Called with lines about the weights and the images.

    Returns
    -------
    Measurement
        Its `epoch` is None. Metrics of a folder without splits have the prefix `images_`. `loss`, `accuracy`, `top5`
        and `numerical_rank` exist only for the input of the classifier.

    Raises
    ------
    UserError
        If network, weights or images are missing or do not fit each other, or there is no such layer.

    Examples
    --------
    >>> pixels = measure_model("torch.nn:Flatten", ImagesFor("digits", mean=[0.3], std=[0.4]), layer="", device="cpu")
    >>> pixels.splits, pixels.figures["test_nc1"] > 1  # of the pixels themselves
    (('train', 'test'), True)
    """
    if ":" not in model:
        raise ModelError(f"{model}: expected PACKAGE.MODULE:FUNCTION, FILE.py:FUNCTION, timm:NAME or torchvision:NAME")
    named = Settings(
        backbone=model,
        weights=weights or "",
        pretrained=not weights,
        data=images.data,
        image_size=images.size,
        val_fraction=0.0,
        batch_size=2,  # unused here, but loaders check it
    )
    data = _images(named, images)
    height, width, _ = data.image_shape
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (data.mean, data.std))
    log(f"images of {height}×{width} pixels, normalised by mean {mean} and std {std}")
    network = _network(model, named, data, classifier, log)
    try:
        linear = None if classifier is None else linear_layer(network, classifier)
        part = linear if layer is None else named_layer(network, layer, "layer")
    except (ValueError, TypeError) as error:
        raise ModelError(str(error)) from error
    if part is None:
        names = linear_names(network)
        raise ModelError(
            f"{model}: name the layer that outputs the logits (--classifier) or the layer whose output is "
            f"measured (--layer). Its linear layers: {', '.join(names[-8:]) or 'none'}"
        )
    if linear is not None and len(linear.weight) != data.num_classes:
        raise ModelError(
            f"{classifier} outputs {len(linear.weight)} logits, but {images.data} has {data.num_classes} classes: use "
            "images of the classes that the network was trained on, one folder per class, named in the order of the "
            "logits; or measure features alone (--layer without --classifier)"
        )
    place = computing_device(device)
    network = network.to(place).eval()
    probed = _Features(network, part, of_input=layer is None)
    _try(probed, model, data)
    figures: dict[str, float] = {}
    alone = len(data.splits()) == 1
    for name, split in data.splits().items():
        loader = make_loader(split, data, named, device=place)
        if layer is None:
            assert linear is not None
            found = evaluate(Classifier(probed, _as_head(linear)), loader.ordered(), numerical_rank=True).figures
        else:
            again = _Passes(loader.ordered)
            try:
                collapse = measure_collapse(
                    network, again, classifier=linear, features=part, num_classes=data.num_classes
                )
            except ValueError as error:
                raise error if isinstance(error, UserError) else ModelError(f"{model}: {error}") from error
            found = {key: value for key, value in asdict(collapse).items() if isinstance(value, float)}
        found = {key: value for key, value in found.items() if math.isfinite(value)}
        figures |= {f"{'images' if alone else name}_{key}": value for key, value in found.items()}
    return Measurement(None, figures, {})


def _images(named: Settings, images: ImagesFor) -> ImageData:
    """The whole data set with the network's preprocessing."""
    data = training_data(named, images.data_dir)
    channels = data.image_shape[2]
    for name in ("mean", "std"):
        values = getattr(images, name)
        if values is not None and len(values) not in (1, channels):
            raise ModelError(f"{name} has {len(values)} numbers, but images of {images.data} have {channels} channels")
    if images.std is not None and not min(images.std) > 0:
        raise ModelError(f"std is {', '.join(map(str, images.std))}: expected positive numbers, on the 0…1 scale")
    mean, std = (None if v is None else tuple(v) for v in (images.mean, images.std))
    return seen_by(data, View(mean=mean, std=std).channels(channels))


def _network(
    model: str, named: Settings, data: ImageData, classifier: str | None, log: Callable[[str], object]
) -> nn.Module:
    """The whole network with its weights."""
    if model.startswith(FOREIGN_BACKBONES):
        classes = data.num_classes if named.weights and classifier else None
        network = _library_network(model, data.image_shape[2], classes, pretrained=not named.weights)
    else:
        network = call(named.backbone)
    if not named.weights:
        log(f"weights set by {model}")
        return network
    if any(is_lazy(tensor) for tensor in network.state_dict().values()):  # no shape before the first batch
        _try(network.eval(), model, data)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.fill_(math.nan)  # a tensor that stays nan is not in the file
    words = load_weights(network, named.weights)
    unused = tuple(f"{name}." for name in linear_names(network)[-1:] if classifier is None)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() and tensor.isnan().all() and not name.startswith(unused):
            raise ModelError(
                f"{named.weights} lacks values for {name}, and random ones have no meaningful metrics: {words}"
            )
    log(f"weights of {named.weights}: {words}")
    return network


def _library_network(model: str, channels: int, num_classes: int | None, *, pretrained: bool) -> nn.Module:
    """A network of timm or torchvision with its classifier, for `num_classes` or the library's number of classes."""
    library, _, name = model.partition(":")
    models = library_models(library, name)
    if library == "torchvision" and channels != 3:
        raise ModelError(f"{model} takes images of 3 channels, not {channels}")
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    try:
        if library == "timm":
            return models.create_model(name, pretrained=pretrained, in_chans=channels, **options)  # type: ignore[no-any-return]
        plain, _, tag = name.partition(".")
        return models.get_model(plain, weights=(tag or "DEFAULT") if pretrained else None, **options)  # type: ignore[no-any-return]
    except Exception as error:
        remedy = ": offline, pass a file of its weights (--weights FILE)" if pretrained else ""
        raise ModelError(f"{model} cannot be made: {first_line(error)}{remedy}") from error


class _Features(nn.Module):
    """Features (N, d): the input or the output of a layer of a network."""

    def __init__(self, network: nn.Module, layer: nn.Module, of_input: bool) -> None:
        super().__init__()
        self.network, self.layer, self.of_input = network, layer, of_input

    def forward(self, images: Tensor) -> Tensor:
        with catching(self.layer, self.of_input) as caught:
            self.network(images)
        return one_matrix(caught, self.of_input)


def _try(network: nn.Module, model: str, data: ImageData) -> None:
    """Refuse a network that does not take such images, or a layer that does not give features (N, d)."""
    height, width, channels = data.image_shape
    place = next((p.device for p in network.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            network(torch.zeros(2, channels, height, width, device=place))
    except ValueError as error:
        raise ModelError(f"{model}: {error}") from error
    except Exception as error:  # third-party networks raise errors of any type
        raise ModelError(
            f"{model} does not take images of {height}×{width} pixels and {channels} channels ({first_line(error)}): "
            "check --image-size and the number of channels"
        ) from error


def _as_head(linear: nn.Linear | Head) -> Head:
    """The classifier as a head: itself, or a `LinearHead` with its W and b."""
    if isinstance(linear, Head):
        return linear
    head = LinearHead(linear.in_features, linear.out_features).to(linear.weight)
    with torch.no_grad():
        head.weight.copy_(linear.weight)
        head.bias.copy_(torch.zeros_like(head.bias) if linear.bias is None else linear.bias)
    return head.eval()


class _Passes:
    """An iterable that restarts with every iteration."""

    def __init__(self, begin: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> None:
        self.begin = begin

    def __iter__(self) -> Any:
        return iter(self.begin())
