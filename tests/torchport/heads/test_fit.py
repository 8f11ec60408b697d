"""A classifier for a frozen backbone in one call: the closed form of every head, in blocks, for any type of labels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nearest_etf.reference import etf_error
from nearest_etf.torchport import (
    ClassMeanHead,
    FixedETFHead,
    ImplicitETFHead,
    LearnedHead,
    LinearHead,
    TightFrameHead,
    nearest_etf,
    nearest_tight_frame,
)
from nearest_etf.torchport.class_means import MEANS_AS_OLD_AS
from nearest_etf.torchport.heads import AveragingHead
from nearest_etf.torchport.heads.growing import drift_in_degrees
from nearest_etf.torchport.simplex import classifier_from_frame
from nearest_etf.torchport.training.data.load import load_data

Make = Callable[..., Any]
MAKERS: dict[str, Make] = {
    "learned": LearnedHead,
    "fixed": FixedETFHead,
    "implicit": ImplicitETFHead,
    "gauge-free": partial(ImplicitETFHead, formulation="gauge-free"),
    "class-mean": ClassMeanHead,
    "tight-frame": TightFrameHead,
}
D, K = 12, 5
every_head = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def data(n: int = 203, classes: int = K, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, D, generator=generator)
    labels = torch.randint(0, classes, (n,), generator=generator)
    return (centres[labels] + 0.4 * torch.randn(n, D, generator=generator)).to(dtype), labels


def exact_means(head: Any, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    h = head.normalise(features)
    rows = torch.stack([h[labels == k].mean(0) for k in range(head.num_classes)])
    return rows, h.mean(0)


@every_head
def test_the_classifier_is_the_closed_form_of_the_exact_means(make: Make) -> None:
    head = make(D, K).double()
    features, labels = data(dtype=torch.float64)
    initial = None if isinstance(head, LearnedHead) else head.weight.clone()
    assert head.fit(features, labels) is head
    rows, mean = exact_means(head, features, labels)
    H = (rows - mean).T
    if isinstance(head, LearnedHead | ClassMeanHead):
        wanted = F.normalize(H.T, dim=1)
    elif isinstance(head, TightFrameHead):
        wanted = F.normalize(nearest_tight_frame(H, method="svd").T, dim=1)
    else:
        gauge_free = isinstance(head, FixedETFHead) or head.formulation == "gauge-free"
        U = nearest_etf(H, method="svd", formulation="gauge-free" if gauge_free else "paper")
        wanted = classifier_from_frame(U)
    torch.testing.assert_close(head.weight.detach(), wanted, rtol=0, atol=1e-10)
    if isinstance(head, AveragingHead):
        assert initial is not None
        torch.testing.assert_close(head.bias, -head.weight @ mean)
        torch.testing.assert_close(head.running.class_means, H)
        assert int(head.running.steps) == MEANS_AS_OLD_AS
    else:
        assert not head.bias.any()
    accuracy = (head.eval()(features).argmax(1) == labels).double().mean()
    assert float(accuracy) > 0.9


@every_head
def test_the_result_does_not_depend_on_blocks_and_types_of_labels(make: Make) -> None:
    features, labels = data()
    heads = [make(D, K) for _ in range(6)]
    for other in heads[1:]:
        other.load_state_dict(heads[0].state_dict())
    heads[0].fit(features, labels)
    heads[1].fit(features, labels, batch_size=7)
    heads[2].fit(features, labels.to(torch.uint8))
    heads[3].fit(features, labels.to(torch.int16), batch_size=1)
    heads[4].fit(features.double(), F.one_hot(labels, K).double())
    order = torch.randperm(len(labels))
    heads[5].fit(
        torch.cat([features[order], torch.full((3, D), 9.0)]), torch.cat([labels[order], torch.full((3,), -100)])
    )
    for other in heads[1:]:
        torch.testing.assert_close(other.weight, heads[0].weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.bias, heads[0].bias, rtol=1e-4, atol=1e-5)


@every_head
def test_a_class_without_samples_counts_as_not_seen(make: Make) -> None:
    features, labels = data()
    head = make(D, K + 2)
    before = head.weight.detach().clone()
    head.fit(features, labels)
    assert head.weight.isfinite().all()
    if isinstance(head, AveragingHead):
        assert head.running.seen.tolist() == [True] * K + [False] * 2
    if isinstance(head, LearnedHead):
        torch.testing.assert_close(head.weight[K:], before[K:])
    if isinstance(head, ClassMeanHead):
        assert not head.weight[K:].any()
    if isinstance(head, FixedETFHead | ImplicitETFHead):
        assert etf_error(head.weight.double().numpy()) < 1e-5
    right = head.eval()(features)[:, :K].argmax(1) == labels
    assert float(right.float().mean()) > 0.9


@every_head
def test_bad_input_is_refused_and_changes_nothing(make: Make) -> None:
    features, labels = data()
    head = make(D, K)
    before = copy.deepcopy(head.state_dict())
    bad_feature = features.clone()
    bad_feature[200, 3] = torch.nan
    for arguments, message in (
        ((features[:, :4], labels), r"expected \(N, 12\)"),
        ((features, labels[:-1]), "labels have length 202; expected 203"),
        ((features, labels + 1), "expected 0…4"),
        ((bad_feature, labels), "NaN"),
        ((features[:0], labels[:0]), "empty"),
        ((features, torch.full_like(labels, -100)), "not all zero"),
    ):
        with pytest.raises(ValueError, match=message):
            head.fit(*arguments, batch_size=50)
    with pytest.raises(ValueError, match="batch_size = 0"):
        head.fit(features, labels, batch_size=0)
    assert all(torch.equal(value, head.state_dict()[name]) for name, value in before.items())


def test_the_linear_head_has_no_closed_form() -> None:
    with pytest.raises(NotImplementedError, match="train it with an optimizer, or take a LearnedHead"):
        LinearHead(D, K).fit(*data())


def test_only_align_and_fit_turn_the_fixed_frame() -> None:
    features, labels = data()
    head = FixedETFHead(D, K)
    frame = head.weight.clone()
    rows, mean = exact_means(head, features, labels)
    head.set_means(rows)
    head.refresh()
    head(features, labels)
    assert torch.equal(head.weight, frame)
    head.set_means(rows, torch.bincount(labels, minlength=K))
    head.align()
    assert float(drift_in_degrees(frame, head.weight).min()) > 1.0
    torch.testing.assert_close(head.bias, -head.weight @ mean)
    assert etf_error(head.weight.double().numpy()) < 1e-6
    fitted = FixedETFHead(D, K).fit(features, labels)
    torch.testing.assert_close(fitted.weight, head.weight, rtol=1e-4, atol=1e-5)
    aligned = head.weight.clone()
    head.set_means(torch.randn(K, D))
    assert torch.equal(head.weight, aligned)


def test_the_learned_heads_rows_start_at_the_means_and_stay_one_parameter() -> None:
    features, labels = data()
    head = LearnedHead(D, K)
    parameter = head.rows
    rows, _ = exact_means(head, features, labels)
    counts = torch.bincount(labels, minlength=K)
    head.set_means(rows, counts)
    assert head.rows is parameter
    wanted = F.normalize(rows - counts / counts.sum() @ rows, dim=1)
    torch.testing.assert_close(head.weight, wanted)
    head.set_means(rows, global_mean=torch.zeros(D))
    torch.testing.assert_close(head.weight, F.normalize(rows, dim=1))
    before = head.weight.detach().clone()
    head.set_means(rows[:1].expand(K, D))  # all means equal the global one, so the rows do not change
    torch.testing.assert_close(head.weight, before)
    with pytest.raises(ValueError, match=r"class_mean_rows has shape \(12, 5\).*class_mean_rows.T"):
        head.set_means(rows.T)
    F.cross_entropy(head(features, labels), labels).backward()
    assert parameter.grad is not None


def test_fit_keeps_mode_and_gradients_and_training_continues() -> None:
    features, labels = data()
    head = ImplicitETFHead(D, K).eval()
    head.fit(features.requires_grad_(), labels)
    assert not head.training
    assert not head.weight.requires_grad
    assert features.grad is None
    fitted = head.weight.clone()
    head.train()(features, labels)
    assert 0 < float(drift_in_degrees(fitted, head.weight).max()) < 5.0
    learned = ImplicitETFHead(D, K, temperature="learned")
    learned.fit(features, labels)
    assert learned.log_temperature is not None
    assert learned.log_temperature.grad is None


def test_half_precision() -> None:
    features, labels = data()
    for make in MAKERS.values():
        torch.manual_seed(0)
        single = make(D, K)
        half = copy.deepcopy(single).bfloat16()
        half.fit(features.bfloat16(), labels)
        single.fit(features.bfloat16().float(), labels)
        torch.testing.assert_close(half.weight.float(), single.weight, rtol=0, atol=0.02)


@pytest.mark.parametrize("name", MAKERS)
def test_digits_without_training(name: str) -> None:
    sets = load_data("digits")
    (train, train_labels), (held_out, held_out_labels) = (
        (torch.as_tensor(split.images).float().flatten(1) / 16, torch.as_tensor(split.labels))
        for split in (sets.splits()["train"], sets.splits()["test"])
    )
    mean = train.mean(0)
    head = MAKERS[name](64, 10).fit(train - mean, train_labels).eval()
    accuracy = float((head(held_out - mean).argmax(1) == held_out_labels).float().mean())
    print(f"{name}: {accuracy:.3f}")
    assert accuracy > 0.85
