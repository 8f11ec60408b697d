"""The state of a head: state dicts, half precision, averages of models, the meta device, old versions."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from nearest_etf.reference import etf_error
from nearest_etf.torchport import (
    Classifier,
    ClassMeanHead,
    FixedETFHead,
    Head,
    ImplicitETFHead,
    LearnedHead,
    LinearHead,
    TightFrameHead,
)
from nearest_etf.torchport.heads import AveragingHead

AVERAGING_HEADS = [FixedETFHead, ImplicitETFHead, ClassMeanHead, TightFrameHead]
HEADS = [LinearHead, LearnedHead, *AVERAGING_HEADS]


def batch(step: int, d: int = 16, K: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(20, d, generator=generator).to(dtype), torch.randint(0, K, (20,), generator=generator)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("kind", AVERAGING_HEADS)
def test_a_state_dict_of_version_0_1_0_loads_strictly(kind: type[Head]) -> None:
    head = kind(16, 6)
    head(*batch(0))
    names = {"running.class_means": "means.means", "running.batches": "means.seen"}
    old = {names.get(name, name.replace("running.", "means.")): value for name, value in head.state_dict().items()}
    assert {"means.means", "means.seen", "means.steps", "means.global_mean"} < old.keys()
    old["means.seen"] = old["means.seen"] > 0
    del old["made_with"]  # not in that version
    if kind is ImplicitETFHead:
        old["basis"] = torch.eye(0)
    fresh = Classifier(nn.Identity(), kind(16, 6))
    fresh.load_state_dict({f"head.{name}": value for name, value in old.items()})
    for name, value in head.state_dict().items():
        assert torch.equal(value, fresh.head.state_dict()[name]), name


def test_the_learned_rows_of_version_0_1_0_load() -> None:
    head = LearnedHead(16, 6)
    rows = nn.functional.normalize(torch.randn(6, 16), dim=1)
    head.load_state_dict({"weight": rows, "bias": torch.zeros(6)})
    torch.testing.assert_close(head.weight, rows)


@pytest.mark.parametrize("kind", HEADS)
def test_the_state_is_contiguous_and_independent_of_the_method(kind: type[Head]) -> None:
    head = kind(80, 70)
    for step in range(2):
        head(*batch(step, 80, 70))
    assert all(value.is_contiguous() for value in head.state_dict().values())
    if kind in (ImplicitETFHead, TightFrameHead):
        for method in ("svd", "matmul", "trust-region"):
            other = kind(80, 70, method=method)  # type: ignore[call-arg]
            assert {k: v.shape for k, v in other.state_dict().items()} == {
                k: v.shape for k, v in head.state_dict().items()
            }
            other.load_state_dict(head.state_dict())


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("K", [6, 70])
def test_heads_in_half_precision_follow_those_in_float32(kind: type[Head], K: int) -> None:
    torch.manual_seed(0)
    single = kind(80, K)
    half = copy.deepcopy(single).bfloat16()
    for step in range(3):
        features, labels = batch(step, 80, K, torch.bfloat16)
        logits = half(features, labels)
        assert logits.dtype == torch.bfloat16
        wanted = single(features.float(), labels)
        assert float((logits.float() - wanted).norm() / wanted.norm()) < 0.02
    if isinstance(half, AveragingHead):
        assert half.running.class_means.dtype == torch.float32
        assert isinstance(single, AveragingHead)
        torch.testing.assert_close(half.running.class_means, single.running.class_means, rtol=0.01, atol=0.01)
    if isinstance(half, ImplicitETFHead | TightFrameHead):
        assert half.frame.dtype == torch.float32
        assert etf_error(half.weight.double().numpy()) < 0.02


@pytest.mark.parametrize("kind", AVERAGING_HEADS)
def test_heads_built_with_a_half_default_dtype_keep_their_averages_in_float32(kind: type[Head]) -> None:
    with default_dtype(torch.bfloat16):
        head = kind(80, 70)
    other = kind(80, 70)
    for step in range(3):
        features, labels = batch(step, 80, 70, torch.bfloat16)
        head(features, labels)
        other(features.float(), labels)
    torch.testing.assert_close(head.running.class_means, other.running.class_means)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", HEADS)
def test_deferred_construction_on_the_meta_device(kind: type[Head]) -> None:
    with torch.device("meta"):
        deferred = kind(80, 70)
    head = kind(80, 70)
    for step in range(2):
        head(*batch(step, 80, 70))
    deferred.load_state_dict(copy.deepcopy(head.state_dict()), assign=True)
    features, labels = batch(5, 80, 70)
    torch.testing.assert_close(deferred(features, labels), head(features, labels), rtol=1e-4, atol=1e-4)
    empty = copy.deepcopy(kind(80, 70)).to("meta").to_empty(device="cpu")
    empty.load_state_dict(head.state_dict())
    torch.testing.assert_close(empty.eval()(features), head.eval()(features))


@pytest.mark.parametrize("kind", HEADS)
def test_averaged_models_average_the_buffers_too(kind: type[Head]) -> None:
    model = Classifier(nn.Linear(16, 16), kind(16, 6))
    averaged = AveragedModel(model, use_buffers=True)
    for step in range(3):
        model(*batch(step))
        averaged.update_parameters(model)
    head = averaged.module.head
    if isinstance(head, ImplicitETFHead | TightFrameHead):
        head.refresh()
        assert etf_error(head.weight.double().numpy()) < 1e-6
    assert averaged.eval()(batch(4)[0]).isfinite().all()


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"temperature": 7.0}, "temperature = 5 and not 7"),
        ({"delta": 0.5}, "delta = 0.001 and not 0.5"),
        ({"formulation": "gauge-free"}, "gauge-free = 0 and not 1"),
    ],
)
def test_a_state_with_other_settings_warns(other: dict[str, Any], named: str) -> None:
    head = ImplicitETFHead(16, 6, temperature=5.0)
    head(*batch(0))
    with pytest.warns(UserWarning, match=named):
        ImplicitETFHead(16, 6, **{"temperature": 5.0, **other}).load_state_dict(head.state_dict())
    same = ImplicitETFHead(16, 6, temperature=5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same.load_state_dict(head.state_dict())


def test_a_head_can_be_copied_and_pickled_in_the_middle_of_training(tmp_path: Any) -> None:
    head = ImplicitETFHead(80, 70)
    for step in range(2):
        features, labels = batch(step, 80, 70)
        head(features.requires_grad_(), labels).sum().backward()
    torch.save(head, tmp_path / "head.pt")
    loaded = torch.load(tmp_path / "head.pt", weights_only=False)
    for other in (copy.deepcopy(head), loaded):
        assert torch.equal(other(*batch(2, 80, 70), update=False), head(*batch(2, 80, 70), update=False))


def by_load_state_dict(new: Head, trained: Head) -> Head:
    new.load_state_dict(trained.state_dict())
    return new


def by_assignment(new: Head, trained: Head) -> Head:
    new.load_state_dict(copy.deepcopy(trained.state_dict()), assign=True)
    return new


def by_setattr(new: Head, trained: Head) -> Head:  # as `from_pretrained` of Transformers
    for name, value in trained.state_dict().items():
        owner, _, last = name.rpartition(".")
        setattr(new.get_submodule(owner), last, value.clone())
    return new


def by_setattr_on_meta(new: Head, trained: Head) -> Head:
    return by_setattr(new.to("meta"), trained)


def by_setattr_as_floats(new: Head, trained: Head) -> Head:  # as by_setattr with modules kept in float32
    by_setattr(new, trained)
    for module in list(new.modules()):
        for name, value in list(module.named_buffers(recurse=False)):
            setattr(module, name, value.float())
    return new


def by_copies_in_place(new: Head, trained: Head) -> Head:  # as moving averages of models and DDP's broadcasts
    for own, value in zip(new.buffers(), trained.buffers(), strict=True):
        own.copy_(value)
    return new


def by_to_empty(new: Head, trained: Head) -> Head:
    return by_assignment(new.to("meta").to_empty(device="cpu"), trained)


def by_swapping(new: Head, trained: Head) -> Head:
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return by_load_state_dict(new, trained)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def by_deepcopy(new: Head, trained: Head) -> Head:
    return copy.deepcopy(trained)


def by_pickle(new: Head, trained: Head) -> Head:
    file = io.BytesIO()
    torch.save(trained, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_safetensors(new: Head, trained: Head) -> Head:
    safetensors = pytest.importorskip("safetensors.torch")
    new.load_state_dict(safetensors.load(safetensors.save(trained.state_dict())))
    return new


def by_averaging(new: Head, trained: Head) -> Head:
    averaged = AveragedModel(new, use_buffers=True)
    averaged.update_parameters(trained)  # the first update copies the model
    module: Any = averaged.module
    return module


ROUTES = [
    by_load_state_dict, by_assignment, by_setattr, by_setattr_on_meta, by_setattr_as_floats, by_copies_in_place,
    by_to_empty, by_swapping, by_deepcopy, by_pickle, by_safetensors, by_averaging,
]  # fmt: skip


@pytest.mark.parametrize("kind", AVERAGING_HEADS)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("K", [6, 70])
def test_a_head_continues_after_every_way_to_load_its_state(
    kind: type[Head], route: Callable[[Head, Head], Head], K: int
) -> None:
    trained = kind(80, K)
    for step in range(2):
        trained(*batch(step, 80, K))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = route(kind(80, K), trained)
    plain = by_load_state_dict(kind(80, K), trained)  # without a warm start, which changes the last bits
    if route in (by_deepcopy, by_pickle):
        plain = trained
    for step in (2, 3):  # after two steps, the third one has a proximal point
        assert torch.equal(other(*batch(step, 80, K)), plain(*batch(step, 80, K)))
    for name, value in plain.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
        assert other.state_dict()[name].dtype == value.dtype, name


@pytest.mark.parametrize("kind", [ImplicitETFHead, TightFrameHead])
@pytest.mark.parametrize("route", [by_load_state_dict, by_assignment, by_setattr, by_setattr_on_meta, by_safetensors])
def test_a_trained_head_can_load_the_state_of_a_new_one(kind: type[Head], route: Callable[[Head, Head], Head]) -> None:
    trained, fresh = kind(80, 70), kind(80, 70)
    for step in range(2):
        trained(*batch(step, 80, 70))
    again = route(trained, fresh)
    for step in (2, 3):
        assert torch.equal(again(*batch(step, 80, 70)), fresh(*batch(step, 80, 70)))


@pytest.mark.parametrize("kind", [ImplicitETFHead, TightFrameHead])
def test_a_functional_call_uses_the_given_state(kind: type[Head]) -> None:
    stateless, trained, fresh = (kind(16, 6) for _ in range(3))
    for step in range(2):
        trained(*batch(step))
    states = {head: copy.deepcopy(dict(head.named_buffers())) for head in (trained, fresh)}
    for step in (2, 3):  # in turns, in one module
        for head, state in states.items():
            assert torch.equal(functional_call(stateless, state, batch(step)), head(*batch(step)))
    assert stateless.running.steps == 0  # type: ignore[union-attr]
    assert torch.equal(stateless(*batch(2)), kind(16, 6)(*batch(2)))


@pytest.mark.parametrize(
    ("kind", "route"),
    [(ImplicitETFHead, by_setattr), (TightFrameHead, by_setattr), (ImplicitETFHead, by_load_state_dict)],
)
def test_a_compiled_head_continues_without_a_graph_break(kind: type[Head], route: Callable[[Head, Head], Head]) -> None:
    torch._dynamo.reset()
    trained = kind(16, 6)
    for step in range(2):
        trained(*batch(step))
    other = route(kind(16, 6).to(torch.float32), trained)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for step in (2, 3, 4):
        torch.testing.assert_close(compiled(*batch(step)), trained(*batch(step)))
    assert other._steps is other.running.steps  # type: ignore[union-attr]


def test_a_compiler_treats_a_moved_untrained_head_as_new() -> None:
    torch._dynamo.reset()
    head, twin = ImplicitETFHead(16, 6), ImplicitETFHead(16, 6)
    twin._apply(lambda x: x.clone())  # as `.to(device)` does it
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for step in range(3):
        torch.testing.assert_close(compiled(*batch(step)), head(*batch(step)))
