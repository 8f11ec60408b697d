"""What a head keeps, casts, averages and loads: state dicts, half precision, the meta device, old versions."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
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
    del old["made_with"]  # which that version did not have
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
def test_heads_in_half_precision_follow_the_single_one(kind: type[Head], K: int) -> None:
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
def test_heads_built_under_a_half_default_keep_their_averages_in_single(kind: type[Head]) -> None:
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
def test_a_state_made_with_other_settings_is_noticed(other: dict[str, Any], named: str) -> None:
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
