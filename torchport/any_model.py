"""Neural collapse of any network, in any training loop, from the features that enter its classifier.

During a measurement, `measure_collapse` hooks one layer of the unchanged model and streams its features into
`NeuralCollapseMeter`, in memory O(Kd + d²). Formulas and sources are those of `reference.collapse`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..reference.collapse import NeuralCollapse
from .collapse import NeuralCollapseMeter
from .heads import Head

OF_THE_WEIGHT = (
    *("nc2", "nc3", "nc4", "bias_offset", "equinorm_weight", "equinorm_difference"),
    *("cosine_margin", "cosine_margin_std", "etf_distance_weight", "etf_distance_between"),
)


def measure_collapse(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    classifier: str | nn.Module | None = "fc",
    features: str | nn.Module | None = None,
    num_classes: int | None = None,
    device: torch.device | str | None = None,
) -> NeuralCollapse:
    """Metrics of neural collapse of a network, on the input of its last linear layer or the output of any other.

    Parameters
    ----------
    model : nn.Module
        In eval mode during the measurement; afterwards the mode of every submodule is restored and the hook removed.
        The model is not moved. `nn.DataParallel`, `DistributedDataParallel` and `torch.compile` are unwrapped: the
        network itself runs, uncompiled, in this process.
    batches : iterable of (inputs, labels)
        A DataLoader or a list. The measurement takes two passes, so an iterator or generator is refused. The model is
        called as `model(**inputs)` for a mapping, `model(*inputs)` for a tuple or list, and `model(inputs)` for a
        tensor or any other object. Labels are (B,) integers of any type in 0…K−1; the model does not receive them.
    classifier : str, nn.Module or None
        The linear layer that computes the K logits, or its name for `model.get_submodule`: an `nn.Linear`, or a head of
        this package, whose normalised features are measured. None for a network without one: then `features` and
        `num_classes` are required, and all metrics of W are nan.
    features : str or nn.Module, optional
        A layer whose output (B, d′) is measured instead; trailing dimensions of size 1 are dropped. If d′ is the
        classifier's d, the metrics of W are computed too, after a head of this package has normalised the features.
        Else all metrics of W are nan.
    num_classes : int, optional
        K; required without a classifier.
    device : torch.device or str, optional
        The device of the inputs; default: that of the model's first parameter.

    Returns
    -------
    NeuralCollapse
        `numerical_rank` is nan, since it needs all features of a class at once.

    Raises
    ------
    TypeError
        If batches are an iterator, a batch is not a pair, or the classifier is not a linear layer.
    ValueError
        If there is no such layer, it does not run exactly once per batch, or its features are not (B, d); if labels are
        invalid; if the second pass yields other samples; or as `NeuralCollapseMeter.compute`.

    Notes
    -----
    Under several processes, each one measures its own batches. The state of torch's CPU generator, from which a
    shuffling DataLoader draws, is restored. Modes are set by the flag `training`, without calling `train()` or
    `eval()`, since some modules override these with further effects.

    Examples
    --------
    >>> torch.manual_seed(0).initial_seed()
    0
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> batches = [(torch.randn(6, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])) for _ in range(4)]
    >>> found = measure_collapse(model, batches, classifier="3")
    >>> found.nc1 > 0, 0 <= found.nc4 <= 1
    (True, True)
    >>> earlier = measure_collapse(model, batches, classifier="3", features="0")
    >>> earlier.nc1 > 0, earlier.nc4
    (True, nan)
    """
    if isinstance(batches, Iterator):
        raise TypeError(
            f"batches are a {type(batches).__name__}, which can be iterated over only once, but the measurement takes "
            "two passes: give the DataLoader itself, or list(batches)."
        )
    network = _unwrapped(model)
    linear = None if classifier is None else linear_layer(network, classifier)
    if linear is None and (features is None or num_classes is None):
        raise ValueError("without a classifier, features (a layer) and num_classes are required: give both.")
    if linear is not None and num_classes is not None and num_classes != len(linear.weight):
        raise ValueError(f"num_classes is {num_classes}, but the classifier has {len(linear.weight)} rows.")
    layer = linear if features is None else named_layer(network, features, "features")
    assert layer is not None
    target = _input_device(network, device)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled parts would not see the hooks
        stack.enter_context(_evaluating(network))
        caught = stack.enter_context(catching(layer, of_input=features is None))

        def stream() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in batches:
                inputs, labels = _pair(batch)
                caught.clear()
                _run(network, _moved(inputs, target))
                x = one_matrix(caught, features is None)
                if isinstance(linear, Head) and x.shape[1] == linear.num_features:
                    x = linear.normalise(x)
                if x.device.type == "mps":  # MPS lacks float64
                    x = x.cpu()
                yield x, _class_indices(labels, len(x)).to(x.device)

        return _measured(stream, linear, num_classes)


def _measured(
    stream: Callable[[], Iterator[tuple[Tensor, Tensor]]], linear: Any, num_classes: int | None
) -> NeuralCollapse:
    """Both passes, or only the first if W does not apply to the features."""
    meter: NeuralCollapseMeter | None = None
    for x, labels in stream():
        if meter is None:
            meter = NeuralCollapseMeter(x.shape[1], num_classes or len(linear.weight), x.device)
        meter.update(x, labels)
    if meter is None:
        raise ValueError("batches are empty: there is nothing to measure.")
    if linear is None or linear.weight.shape[1] != meter.num_features:
        any_weight = torch.eye(meter.num_classes, meter.num_features)
        unknown: dict[str, Any] = dict.fromkeys(OF_THE_WEIGHT, float("nan"))
        return replace(meter.compute(any_weight), **unknown)
    second = meter.second_pass(linear.weight, linear.bias)
    for x, labels in stream():
        second.update(x, labels)
    return second.compute()


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode in the block; afterwards each module's previous mode."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def catching(layer: nn.Module, of_input: bool) -> Iterator[list[Any]]:
    """The inputs or outputs of the layer, one per call; copies, since a later layer may work in place."""
    caught: list[Any] = []

    def keep(value: Any) -> None:
        caught.append(value.detach().clone() if isinstance(value, Tensor) else value)

    if of_input:
        handle = layer.register_forward_pre_hook(
            lambda _, args, kwargs: keep(next(iter((*args, *kwargs.values())), None)), with_kwargs=True
        )
    else:
        handle = layer.register_forward_hook(lambda _, args, output: keep(output))
    try:
        yield caught
    finally:
        handle.remove()


def _unwrapped(module: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(getattr(module, "_orig_mod", None), nn.Module):
            module = module._orig_mod  # type: ignore[assignment]
        else:
            return module


def named_layer(network: nn.Module, layer: str | nn.Module, argument: str) -> nn.Module:
    """The layer of the network with this name, or the given layer if the network contains it."""
    if isinstance(layer, str):
        try:
            return _unwrapped(network.get_submodule(layer))
        except AttributeError:
            names = [name for name, _ in network.named_modules() if name]
            close = difflib.get_close_matches(layer, names, 3, 0.5)
            hint = f": did you mean {' or '.join(map(repr, close))}?" if close else "."
            raise ValueError(
                f"{argument} = {layer!r}: {type(network).__name__} has no such layer{hint} Its linear layers: "
                f"{', '.join(map(repr, linear_names(network)[-8:])) or 'none'}; model.named_modules() lists all."
            ) from None
    layer = _unwrapped(layer)
    if all(module is not layer for module in network.modules()):
        raise ValueError(f"{argument}: this {type(layer).__name__} is not a layer of the model: give one that is.")
    return layer


def linear_names(network: nn.Module) -> list[str]:
    """Names of the layers that can be a classifier, in the order in which they were defined."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear | Head)]


def linear_layer(network: nn.Module, classifier: str | nn.Module) -> nn.Linear | Head:
    """The classifier, given by its name or itself; it must be an `nn.Linear` or a head of this package."""
    linear = named_layer(network, classifier, "classifier")
    if not isinstance(linear, nn.Linear | Head):
        raise TypeError(
            f"classifier is a {type(linear).__name__}; expected an nn.Linear or a head of nearest_etf: name the linear "
            "layer that computes the logits."
        )
    return linear


def _input_device(network: nn.Module, device: torch.device | str | None) -> torch.device | None:
    """The device of the inputs; None, which does not move them, for a network without parameters."""
    places = [p.device for p in network.parameters()]
    if device is None:
        return places[0] if places else None
    device = torch.device(device)
    if places and all(p.type != device.type or device.index not in (None, p.index) for p in places):
        raise ValueError(
            f"device is {device}, but the model is on {places[0]}: move it first, model.to({str(device)!r})."
        )
    return device


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        remedy = ""
        if isinstance(batch, Mapping):
            remedy = ": take the labels out of it, ({k: v for k, v in batch.items() if k != 'labels'}, batch['labels'])"
        count = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise TypeError(f"a batch is a {type(batch).__name__}{count}; expected a pair (inputs, labels){remedy}.")
    return batch[0], batch[1]


def _moved(inputs: Any, device: torch.device | None) -> Any:
    """The inputs with all their tensors on the device."""
    if isinstance(inputs, Tensor):
        return inputs.to(device, non_blocking=True) if device is not None else inputs
    if isinstance(inputs, Mapping):
        return {name: _moved(value, device) for name, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(_moved(value, device) for value in inputs)
    return inputs


def _run(network: nn.Module, inputs: Any) -> None:
    if isinstance(inputs, Mapping):
        network(**inputs)
    elif isinstance(inputs, tuple):
        network(*inputs)
    else:
        network(inputs)


def one_matrix(caught: list[Any], of_input: bool) -> Tensor:
    """The features (B, d) of one forward pass."""
    what = "the input of the classifier" if of_input else "the output of the layer given as features"
    if len(caught) != 1:
        remedy = "choose one that runs once per forward pass"
        if not caught and of_input:
            remedy = "if the model uses only its weight, measure the layer before it: features='its name'"
        layer = "classifier" if of_input else "layer given as features"
        raise ValueError(f"the {layer} ran {len(caught)} times in one forward pass; expected once: {remedy}.")
    x = caught[0]
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
        raise ValueError(f"{what} is {kind}; expected a floating tensor (B, d): choose another layer.")
    if not of_input and x.ndim > 2 and x.shape[2:].numel() == 1:
        x = x.flatten(1)
    if x.ndim != 2:
        raise ValueError(
            f"{what} has shape {tuple(x.shape)}; expected (B, d), one feature vector per sample: pool the other "
            "dimensions in the model, or choose a layer after its pooling."
        )
    return x


def _class_indices(labels: Any, size: int) -> Tensor:
    y = torch.as_tensor(labels)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise ValueError(f"labels are {y.dtype}; expected integers in 0…K−1: for soft labels give labels.argmax(1).")
    if y.shape != (size,):
        raise ValueError(f"labels have shape {tuple(y.shape)}; expected ({size},), one per feature vector.")
    return y.long()
