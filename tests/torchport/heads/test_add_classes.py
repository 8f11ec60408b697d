"""New classes: constant and changed vectors and the angles between them, pinned rows, states, bad input."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
from nearest_etf.torchport.heads.growing import drift_in_degrees
from nearest_etf.torchport.training.data.load import load_data

Make = Callable[..., Any]
MAKERS: dict[str, Make] = {
    "linear": LinearHead,
    "learned": partial(LearnedHead, temperature=10.0),
    "fixed": partial(FixedETFHead, temperature=10.0),
    "implicit": partial(ImplicitETFHead, temperature=10.0),
    "gauge-free": partial(ImplicitETFHead, temperature=10.0, formulation="gauge-free"),
    "class-mean": partial(ClassMeanHead, temperature=10.0),
    "tight-frame": partial(TightFrameHead, temperature=10.0),
}
ETFS = ["fixed", "implicit", "gauge-free", "tight-frame"]
D, OLD, NEW = 24, 8, 3

every_head = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
pytestmark = pytest.mark.filterwarnings("ignore:.*new Parameter objects")


def batch(step: int, classes: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Features around fixed centres, one per class."""
    centres = torch.randn(OLD + NEW + 20, D, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, classes, (64,), generator=generator)
    features = centres[labels] + 0.3 * torch.randn(64, D, generator=generator)
    return features.to(dtype), labels


def trained(make: Make, steps: int = 4) -> Any:
    torch.manual_seed(0)
    head = make(D, OLD)
    for step in range(steps):
        head(*batch(step, OLD))
    return head


@every_head
def test_old_classes_keep_their_means_and_new_ones_are_unseen(make: Make) -> None:
    head = trained(make)
    before = copy.deepcopy(head.state_dict())
    old = head.weight.detach().clone()
    drift = head.add_classes(NEW)
    assert head.num_classes == OLD + NEW
    assert head.weight.shape == (OLD + NEW, D)
    assert head.bias.shape == (OLD + NEW,)
    assert drift.shape == (OLD,)
    torch.testing.assert_close(drift, drift_in_degrees(old, head.weight.detach()[:OLD]))
    if isinstance(head, AveragingHead):
        assert torch.equal(head.running.class_means[:, :OLD], before["running.class_means"])
        assert torch.equal(head.running.batches[:OLD], before["running.batches"])
        assert torch.equal(head.running.steps, before["running.steps"])
        assert head.running.seen.tolist() == [True] * OLD + [False] * NEW
        torch.testing.assert_close(head.bias, -head.weight @ head.running.global_mean)
        refreshed = copy.deepcopy(head)
        refreshed.refresh()
        assert float(drift_in_degrees(old, refreshed.weight[:OLD]).mean()) <= 1.01 * float(drift.mean())
    features, labels = batch(9, OLD + NEW)
    loss = F.cross_entropy(head(features.requires_grad_(), labels), labels)
    loss.backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("name", ETFS)
def test_a_simplex_turns_by_the_least_angle(name: str) -> None:
    head = trained(MAKERS[name])
    old = head.weight.clone()
    drift = head.add_classes(NEW)
    wanted = math.degrees(math.atan(math.sqrt(NEW / ((OLD + NEW) * (OLD - 1)))))
    torch.testing.assert_close(drift, torch.full_like(drift, wanted), rtol=1e-4, atol=1e-3)
    assert etf_error(head.weight.double().numpy()) < 1e-5
    # All old vectors turn in the same direction, so that their differences keep their directions.
    differences, before = head.weight[1:OLD] - head.weight[:1], old[1:] - old[:1]
    cosines = F.cosine_similarity(differences, before)
    torch.testing.assert_close(cosines, torch.ones_like(cosines))


def test_no_simplex_of_that_size_is_nearer_to_the_old_one() -> None:
    """The extended frame maximises `⟨U M, [F 0]⟩`, whose bound is the nuclear norm K−1."""
    head = trained(MAKERS["gauge-free"]).double()
    old = head.weight.clone()
    head.add_classes(NEW)
    value = math.sqrt((OLD - 1) / OLD * (OLD + NEW - 1) / (OLD + NEW)) * float((head.weight[:OLD] * old).sum())
    assert value == pytest.approx(OLD - 1, rel=1e-6)


@every_head
def test_pinned_rows_do_not_change(make: Make) -> None:
    head = trained(make)
    old = head.weight.detach().clone()
    drift = head.add_classes(NEW, pin=True)
    assert not drift.any()
    assert head.kind == "pinned"
    assert type(head).kind != "pinned"
    new = head.weight.detach()[OLD:].clone()
    parameters = list(head.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.5, momentum=0.9, weight_decay=0.1) if parameters else None
    for step in range(5, 9):
        features, labels = batch(step, OLD + NEW)
        F.cross_entropy(head(features, labels), labels).backward() if optimizer else head(features, labels)
        if optimizer:
            optimizer.step()
        assert torch.equal(head.weight[:OLD], old)
    if isinstance(head, AveragingHead):
        head.refresh()
        torch.testing.assert_close(head.bias, -head.weight @ head.running.global_mean)
    if isinstance(head, FixedETFHead):
        head.align()
    assert torch.equal(head.weight[:OLD], old)
    assert head.add_classes(1).tolist()[:OLD] == [0.0] * OLD  # pinned rows stay pinned
    assert torch.equal(head.weight[:OLD], old)
    assert not torch.equal(head.weight[OLD : OLD + NEW], new)
    head(*batch(9, OLD + NEW))
    everything = head.weight.detach().clone()
    head.add_classes(1, pin=True)
    assert torch.equal(head.weight[: OLD + NEW + 1], everything)
    assert f"pinned={OLD + NEW + 1}" in repr(head)


@pytest.mark.parametrize("pin", [False, True])
@every_head
def test_the_state_of_an_extended_head_loads_into_a_new_one(make: Make, pin: bool, tmp_path: Path) -> None:
    head = trained(make)
    head.add_classes(NEW, pin=pin)
    head(*batch(5, OLD + NEW))
    torch.save(Classifier(nn.Identity(), head).state_dict(), tmp_path / "model.pt")
    fresh = make(D, OLD + NEW)
    Classifier(nn.Identity(), fresh).load_state_dict(torch.load(tmp_path / "model.pt"))
    assert fresh.kind == head.kind
    for step in range(6, 8):
        torch.testing.assert_close(fresh(*batch(step, OLD + NEW)), head(*batch(step, OLD + NEW)), rtol=0, atol=0)
    assert head.state_dict().keys() == fresh.state_dict().keys()
    assert ("pinned" in fresh.state_dict()) == pin
    for value in (copy.deepcopy(head), copy.deepcopy(fresh)):
        assert torch.equal(value.eval()(batch(8, OLD)[0]), head.eval()(batch(8, OLD)[0]))
    # A state without pinned rows unpins them: the state is complete.
    fresh.load_state_dict(make(D, OLD + NEW).state_dict())
    assert fresh.kind == type(fresh).kind
    assert fresh.pinned is None
    with torch.device("meta"):
        deferred = make(D, OLD + NEW)
    deferred.load_state_dict(copy.deepcopy(head.state_dict()), assign=True)
    features = batch(8, OLD)[0]
    torch.testing.assert_close(deferred.eval()(features), head.eval()(features), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [LinearHead, LearnedHead])
def test_new_parameters_of_a_learned_head_warn_and_keep_the_old_entries(kind: type[Head]) -> None:
    head = kind(D, OLD).double()
    before = dict(head.named_parameters())
    with pytest.warns(UserWarning, match=r"new Parameter objects: give them to the optimizer.*add_param_group"):
        head.add_classes(NEW)
    for name, parameter in head.named_parameters():
        assert parameter is not before[name]
        assert parameter.requires_grad
        assert parameter.dtype == torch.float64
        assert torch.equal(parameter[:OLD], before[name])
    head(*batch(0, OLD + NEW, torch.float64)).sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_averaging_heads_do_not_warn_and_start_as_usual_if_extended_before_the_first_step() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("fixed", "implicit", "gauge-free", "class-mean", "tight-frame"):
            grown, fresh = MAKERS[name](D, OLD), MAKERS[name](D, OLD + NEW)
            grown.add_classes(NEW)
            torch.testing.assert_close(grown.weight, fresh.weight, rtol=0, atol=1e-6)
            for step in range(3):
                features, labels = batch(step, OLD + NEW)
                torch.testing.assert_close(grown(features, labels), fresh(features, labels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("old", "new"), [(20, 10), (25, 2), (30, 5), (24, 3)])
@pytest.mark.parametrize("norms", ["unit", "tight", "equal"])
def test_frames_stay_tight_for_any_number_of_classes(old: int, new: int, norms: Any) -> None:
    """From K < d+1 to K > d+1, from K = d+1, and from K > d+1: the frame stays tight."""
    head = TightFrameHead(D, old, temperature=10.0, norms=norms).double()
    for step in range(3):
        head(*batch(step, min(old, OLD + NEW + 20), torch.float64))
    before, weight = head.frame.clone(), head.weight.clone()
    drift = head.add_classes(new)
    F_ = head.frame
    torch.testing.assert_close(F_ @ F_.mT, torch.eye(D, dtype=F_.dtype), rtol=0, atol=1e-10)
    torch.testing.assert_close(F_.sum(1), torch.zeros(D, dtype=F_.dtype), rtol=0, atol=1e-10)
    if old >= D + 1:
        assert torch.equal(F_, torch.cat([before, before.new_zeros(D, new)], 1))
        assert head.weight[old:].abs().max() < 1e-12
        if norms != "equal":
            assert float(drift.max()) < 1e-5
        else:
            torch.testing.assert_close(head.weight[:old], weight, rtol=0, atol=1e-2)
    for step in range(3):
        features, labels = batch(step, min(old + new, OLD + NEW + 20), torch.float64)
        leaf = features.requires_grad_()
        F.cross_entropy(head(leaf, labels), labels).backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", ["fixed", "implicit", "gauge-free"])
def test_more_classes_than_a_simplex_has_vertices_are_refused_and_nothing_changes(name: str) -> None:
    head = trained(MAKERS[name])
    before = copy.deepcopy(head.state_dict())
    room = D - OLD + (name != "implicit")
    with pytest.raises(ValueError, match="gauge-free" if name == "implicit" else "TightFrameHead, ClassMeanHead"):
        head.add_classes(room + 1, pin=True)
    with pytest.raises(ValueError, match="TightFrameHead, ClassMeanHead or LearnedHead"):
        head.add_classes(room + 2)
    assert head.num_classes == OLD
    assert head.pinned is None
    assert all(torch.equal(value, head.state_dict()[key]) for key, value in before.items())
    head.add_classes(room)
    assert etf_error(head.weight.double().numpy()) < 1e-5


@every_head
@pytest.mark.parametrize("n", [0, -1, 1.5, True])
def test_the_number_of_new_classes_must_be_positive(make: Make, n: Any) -> None:
    with pytest.raises(ValueError, match="an integer of at least 1"):
        make(D, OLD).add_classes(n)


def test_sizes_without_equal_norms_are_refused() -> None:
    head = TightFrameHead(5, 6, norms="equal")
    with pytest.raises(ValueError, match="sums to zero"):
        head.add_classes(1)
    assert head.num_classes == 6


def test_half_precision_keeps_dtypes() -> None:
    for make in MAKERS.values():
        head = make(D, OLD).bfloat16()
        head(*batch(0, OLD, torch.bfloat16))
        before = {name: value.dtype for name, value in head.state_dict().items()}
        old = head.weight.detach().clone()
        head.add_classes(NEW, pin=True)
        assert {name: value.dtype for name, value in head.state_dict().items() if name != "pinned"} == before
        head(*batch(1, OLD + NEW, torch.bfloat16))
        assert torch.equal(head.weight[:OLD], old)


def test_drift_is_exact_at_0_and_180_degrees() -> None:
    a = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0], [-1.0, 0.0], [1.0, 1e-5]])
    wanted = torch.tensor([0.0, 90.0, 0.0, 180.0, math.degrees(1e-5)], dtype=torch.float64)
    torch.testing.assert_close(drift_in_degrees(a, b), wanted, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("pin", [False, True])
def test_digits_from_eight_to_ten_classes(name: str, pin: bool) -> None:
    """On pixels, without a backbone: old classes stay accurate, and new ones are learned."""
    data = load_data("digits")
    images = torch.as_tensor(data.train.images).float().flatten(1) / 16
    labels = torch.as_tensor(data.train.labels).long()
    images = images - images.mean(0)
    old = labels < 8
    torch.manual_seed(0)
    head = MAKERS[name](images.shape[1], 8)

    def train(features: Tensor, targets: Tensor) -> None:
        if isinstance(head, FixedETFHead):  # its only way to change
            head.fit(features, targets)
            return
        parameters = list(head.parameters())
        optimizer = torch.optim.SGD(parameters, lr=0.5, momentum=0.9) if parameters else None
        order = torch.Generator().manual_seed(1)
        for _ in range(100):
            chosen = torch.randint(len(targets), (64,), generator=order)
            loss = F.cross_entropy(head(features[chosen], targets[chosen]), targets[chosen])
            if optimizer:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def accuracy(rows: Tensor) -> float:
        head.eval()
        right = head(images[rows]).argmax(1) == labels[rows]
        head.train()
        return float(right.float().mean())

    train(images[old], labels[old])
    before = accuracy(old)
    drift = head.add_classes(2, pin=pin)
    kept = accuracy(old)
    train(images, labels)
    after, new = accuracy(old), accuracy(~old)
    print(f"{name}, {pin=}: old {before:.3f} -> {kept:.3f} -> {after:.3f}, new {new:.3f}, {float(drift.mean()):.1f}°")
    assert before > 0.8
    assert kept > 0.7
    assert after > 0.75
    assert new > 0.5
