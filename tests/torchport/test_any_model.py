"""measure_collapse against the reference on collected features; afterwards the model is unchanged."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from nearest_etf.reference import NeuralCollapse, neural_collapse
from nearest_etf.torchport import Classifier, ImplicitETFHead, LearnedHead, LinearHead, measure_collapse
from nearest_etf.torchport.any_model import OF_THE_WEIGHT

K, D = 4, 10


class Net(nn.Module):
    """Convolution with batch norm, pooling, dropout, and a linear layer named fc; ReLU works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(6, D)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(D, K)

    def features(self, images: Tensor) -> Tensor:
        pooled = self.pool(self.norm(self.conv(images))).flatten(1)
        return self.drop(self.relu(self.hidden(pooled)))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images))


def data(seed: int = 0, size: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % K
    images = torch.randn(size, 1, 6, 6, generator=generator) + labels[:, None, None, None]
    return images, labels


def in_batches(x: Tensor, y: Tensor, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def seeded(build: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build()


@torch.no_grad()
def expected(model: Net, x: Tensor, y: Tensor) -> NeuralCollapse:
    """The reference, on features collected by hand from a copy in eval mode."""
    model = copy.deepcopy(model).eval()
    h = model.features(x)
    return neural_collapse(
        h.double().numpy(), y.numpy(), *(t.double().numpy() for t in (model.fc.weight, model.fc.bias))
    )


def assert_same(found: NeuralCollapse, wanted: NeuralCollapse, relative: float, skip: tuple[str, ...] = ()) -> None:
    for name, value in asdict(wanted).items():
        if name in (*skip, "numerical_rank"):
            continue
        np.testing.assert_allclose(getattr(found, name), value, rtol=relative, atol=1e-9, err_msg=name, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_the_reference_on_collected_features(dtype: torch.dtype, seed: int) -> None:
    model = seeded(Net, seed).to(dtype)
    x, y = data(seed)
    x = x.to(dtype)
    found = measure_collapse(model, in_batches(x, y))
    skip = () if dtype == torch.float64 else ("margin_histogram",)
    assert_same(found, expected(model, x, y), 1e-8 if dtype == torch.float64 else 1e-3, skip)
    assert np.isnan(found.numerical_rank)


@pytest.mark.parametrize("name", ["fc", "module"])
def test_classifier_by_name_or_as_a_module_with_a_data_loader(name: str) -> None:
    model = seeded(Net)
    x, y = data()
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    found = measure_collapse(model, loader, classifier="fc" if name == "fc" else model.fc)
    assert_same(found, expected(model, x, y), 1e-3, ("margin_histogram",))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64, "numpy", "list"])
def test_labels_of_any_integer_type(dtype: Any) -> None:
    model = seeded(Net)
    x, y = data()
    given: Any = {"numpy": y.numpy(), "list": y.tolist()}[dtype] if isinstance(dtype, str) else y.to(dtype)
    assert_same(measure_collapse(model, [(x, given)]), measure_collapse(model, [(x, y)]), 0.0)


class ByName(Net):
    def forward(self, images: Tensor, shift: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(images + shift)


def test_inputs_as_mapping_tuple_or_object() -> None:
    model, (x, y) = seeded(ByName), data()
    shift = torch.ones(len(x), 1, 1, 1)
    wanted = expected(model, x + shift, y)
    for inputs in ({"shift": shift, "images": x}, (x, shift), [x, shift]):
        assert_same(measure_collapse(model, [(inputs, y)]), wanted, 1e-3, ("margin_histogram",))

    class Wrapped(Net):
        def forward(self, batch: Any) -> Tensor:
            return super().forward(batch.images)

    class Batch:
        images = x

    plain = seeded(Wrapped)
    assert_same(measure_collapse(plain, [(Batch(), y)]), expected(plain, x, y), 1e-3, ("margin_histogram",))


def mixed_modes() -> Net:
    model = seeded(Net).train()
    model.norm.eval()  # like a frozen batch norm
    return model


def state(model: nn.Module) -> dict[str, Any]:
    hooks = {f"{n} hooks": (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()}
    modes = {f"{n} mode": m.training for n, m in model.named_modules()}
    return hooks | modes


def test_model_and_random_state_do_not_change() -> None:
    """Modes, hooks, buffers, gradients, and the stream of random numbers."""
    model, (x, y) = mixed_modes(), data()
    before, tensors = state(model), copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    measure_collapse(model, loader)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))
    assert state(model) == before
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("where", ["data", "model", "labels"])
def test_everything_is_restored_after_an_exception(where: str) -> None:
    model, (x, y) = mixed_modes(), data()
    before = state(model)

    class Broken:
        def __iter__(self) -> Iterator[Any]:
            yield x, y
            if where == "data":
                raise OSError("disk")
            yield (x[:, :, :1, :1], y) if where == "model" else (x, y + K)

    with pytest.raises((OSError, RuntimeError, ValueError), match=r"disk|[Kk]ernel|labels span"):
        measure_collapse(model, Broken())
    assert state(model) == before
    assert torch.is_grad_enabled()


def test_eval_and_train_are_not_called() -> None:
    class Overloaded(nn.Linear):
        def train(self, mode: bool = True) -> Overloaded:
            raise AssertionError("called")

    model, (x, y) = seeded(Net), data()
    model.hidden.__class__ = Overloaded
    assert_same(measure_collapse(model, [(x, y)]), expected_without_train(model, x, y), 1e-3, ("margin_histogram",))


def expected_without_train(model: Net, x: Tensor, y: Tensor) -> NeuralCollapse:
    plain = seeded(Net)
    plain.load_state_dict(model.state_dict())
    return expected(plain, x, y)


@pytest.mark.parametrize("head", [LinearHead, LearnedHead, ImplicitETFHead])
def test_our_heads_are_measured_on_normalised_features(head: Any) -> None:
    model = seeded(lambda: Classifier(nn.Sequential(nn.Flatten(), nn.Linear(36, D), nn.ReLU()), head(D, K))).double()
    x, y = data()
    x = x.double()
    model(x, y)  # class means for the implicit head
    model.eval()
    with torch.no_grad():
        h = model.head.normalise(model.backbone(x))
    W, b = (t.detach().double().numpy() for t in (model.head.weight, model.head.bias))
    wanted = neural_collapse(h.double().numpy(), y.numpy(), W, b)
    for options in ({"classifier": "head"}, {"classifier": model.head}, {"classifier": "head", "features": "backbone"}):
        assert_same(measure_collapse(model, in_batches(x, y), **options), wanted, 1e-8)


def test_output_of_another_layer() -> None:
    model, (x, y) = seeded(Net).double(), data()
    x = x.double()
    model.eval()
    with torch.no_grad():
        pooled = model.pool(model.norm(model.conv(x))).flatten(1)  # (N, 6): not the input size of fc
        hidden = model.hidden(pooled)  # (N, D): before the ReLU, which works in place
    found = measure_collapse(model, in_batches(x, y), features="pool")
    unknown: dict[str, Any] = dict.fromkeys(OF_THE_WEIGHT, float("nan"))
    wanted = neural_collapse(pooled.numpy(), y.numpy(), np.eye(K, 6))
    assert_same(found, replace(wanted, **unknown), 1e-8, ("margin_histogram",))
    assert found.margin_histogram.sum() == 0
    assert {name for name, value in asdict(found).items() if np.isnan(value).any()} == {
        *OF_THE_WEIGHT,
        "numerical_rank",
    }

    found = measure_collapse(model, in_batches(x, y), features=model.hidden)
    W, b = (t.detach().numpy() for t in (model.fc.weight, model.fc.bias))
    assert_same(found, neural_collapse(hidden.numpy(), y.numpy(), W, b), 1e-8)


def test_without_a_classifier() -> None:
    model, (x, y) = seeded(Net).double(), data()
    x = x.double()
    found = measure_collapse(model, in_batches(x, y), classifier=None, features="pool", num_classes=K)
    assert_same(found, measure_collapse(model, in_batches(x, y), features="pool"), 0.0)
    with torch.no_grad():
        hidden = model.eval().hidden(model.pool(model.norm(model.conv(x))).flatten(1)).numpy()
    unknown: dict[str, Any] = dict.fromkeys(OF_THE_WEIGHT, float("nan"))
    found = measure_collapse(model, in_batches(x, y), classifier=None, features="hidden", num_classes=K)
    assert_same(
        found, replace(neural_collapse(hidden, y.numpy(), np.eye(K, D)), **unknown), 1e-8, ("margin_histogram",)
    )


def test_figures_of_the_means_do_not_depend_on_the_weight() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40, 6)), np.arange(40) % K
    two = [asdict(neural_collapse(X, y, rng.standard_normal((K, 6)))) for _ in range(2)]
    assert {n for n in two[0] if np.any(two[0][n] != two[1][n])} == {*OF_THE_WEIGHT, "margin_histogram"}


def test_wrappers_are_unwrapped() -> None:
    model, (x, y) = seeded(Net).eval(), data()
    wanted = measure_collapse(model, in_batches(x, y))
    assert_same(measure_collapse(nn.DataParallel(model), in_batches(x, y)), wanted, 0.0)
    whole: Any = torch.compile(model, backend="eager")
    whole(x)
    assert_same(measure_collapse(whole, in_batches(x, y)), wanted, 0.0)
    inner = nn.ModuleDict({"net": whole})
    inner.forward = lambda images: inner["net"](images)  # type: ignore[method-assign]
    assert_same(measure_collapse(inner, in_batches(x, y), classifier="net.fc"), wanted, 0.0)
    in_place = seeded(Net).eval()
    in_place.compile(backend="eager")
    in_place(x)
    assert_same(measure_collapse(in_place, in_batches(x, y)), wanted, 0.0)


def test_half_precision() -> None:
    x, y = data()
    model = seeded(Net).to(torch.bfloat16)
    found = measure_collapse(model, in_batches(x.to(torch.bfloat16), y))
    wanted = expected(model, x.to(torch.bfloat16), y)
    assert_same(found, wanted, 1e-3, ("margin_histogram", "nc4", "cosine_margin", "cosine_margin_std"))
    model = seeded(Net)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = measure_collapse(model, in_batches(x, y))
    assert found.nc1 == pytest.approx(expected(model, x, y).nc1, rel=0.1)


class Twice(Net):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + super().forward(images.flip(0))


class Never(Net):
    def forward(self, images: Tensor) -> Tensor:
        return F.linear(self.features(images), self.fc.weight, self.fc.bias)


class Dense(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images)[:, None].expand(-1, 5, -1))


class Pair(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.hidden(self.two(images)[0]))

    def __init__(self) -> None:
        super().__init__()
        self.two = nn.GRU(6, 6)


X, Y = data()


@pytest.mark.parametrize(
    ("model", "batches", "options", "error", "message"),
    [
        (Twice, [(X, Y)], {}, ValueError, r"classifier ran 2 times .* expected once: choose"),
        (Never, [(X, Y)], {}, ValueError, r"classifier ran 0 times .*: if the model uses only its weight.*features="),
        (Never, [(X, Y)], {"features": "fc"}, ValueError, r"layer given as features ran 0 times"),
        (Dense, [(X, Y)], {}, ValueError, r"input of the classifier has shape \(60, 5, 10\).*pool"),
        (Net, [(X, Y)], {"features": "conv"}, ValueError, r"output of .* has shape \(60, 6, 4, 4\).*pool"),
        (Pair, [(X[:, 0], Y)], {"features": "two"}, ValueError, r"is a tuple; expected a floating tensor"),
        (Net, iter([(X, Y)]), {}, TypeError, r"list_iterator.*list\(batches\)"),
        (Net, ((x, y) for x, y in [(X, Y)]), {}, TypeError, r"generator.*two passes"),
        (Net, [], {}, ValueError, "batches are empty"),
        (Net, [X], {}, TypeError, r"a batch is a Tensor; expected a pair"),
        (Net, [(X, Y, Y)], {}, TypeError, r"tuple of 3; expected a pair"),
        (Net, [{"images": X, "labels": Y}], {}, TypeError, r"a dict; .*take the labels out of it"),
        (Net, [(X, F.one_hot(Y).float())], {}, ValueError, r"labels are torch.float32.*argmax"),
        (Net, [(X, Y[:, None])], {}, ValueError, r"labels have shape \(60, 1\); expected \(60,\)"),
        (Net, [(X, Y - 1)], {}, ValueError, r"labels span -1…2; expected 0…3"),
        (
            Net,
            [(X, Y)],
            {"classifier": "head"},
            ValueError,
            r"no such layer. Its linear layers: 'hidden', 'fc'",
        ),
        (Net, [(X, Y)], {"features": "hiden"}, ValueError, r"no such layer: did you mean 'hidden'\?"),
        (Net, [(X, Y)], {"classifier": None}, ValueError, r"without a classifier, features .* and num_classes"),
        (Net, [(X, Y)], {"classifier": None, "features": "pool"}, ValueError, r"without a classifier"),
        (Net, [(X, Y)], {"num_classes": 3}, ValueError, r"num_classes is 3, but the classifier has 4 rows"),
        (Net, [(X, Y)], {"classifier": "conv"}, TypeError, r"a Conv2d; expected an nn.Linear or a head"),
        (Net, [(X, Y)], {"classifier": nn.Linear(D, K)}, ValueError, r"not a layer of the model"),
        (Net, [(X, Y)], {"device": "meta"}, ValueError, r"device is meta, but the model is on cpu: move"),
        (Net, [(X, torch.zeros_like(Y))], {}, ValueError, r"1 class\(es\) have been seen"),
    ],
)
def test_bad_input_is_refused(
    model: Any, batches: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    network = seeded(model)
    before = state(network)
    with pytest.raises(error, match=message):
        measure_collapse(network, batches, **options)
    assert state(network) == before


def test_a_second_pass_of_other_samples_is_refused() -> None:
    class Augmented:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield X + torch.randn_like(X), Y

    with pytest.raises(ValueError, match="second pass was over other data"):
        measure_collapse(seeded(Net), Augmented())


def test_a_network_whose_only_parameters_are_lazy() -> None:
    last = nn.LazyLinear(K)
    model = nn.Sequential(nn.Flatten(), last)
    found = measure_collapse(model, [(X, Y)], classifier="1")
    W, b = (t.detach().double().numpy() for t in (last.weight, last.bias))
    wanted = neural_collapse(X.flatten(1).double().numpy(), Y.numpy(), W, b)
    assert_same(found, wanted, 1e-3, ("margin_histogram",))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_on_the_gpu_with_inputs_on_the_host(precision: torch.dtype) -> None:
    model = seeded(Net).cuda().to(precision)
    found = measure_collapse(model, in_batches(X.to(precision), Y), device="cuda")
    wanted = expected(copy.deepcopy(model).float().cpu(), X.to(precision).float(), Y)
    assert found.nc1 == pytest.approx(wanted.nc1, rel=1e-3 if precision == torch.float32 else 5e-2)
