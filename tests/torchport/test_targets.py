"""Labels: any integer type, ignored rows, soft labels, and errors for all others."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nearest_etf.torchport import FixedETFHead, Head, ImplicitETFHead

HEADS = [FixedETFHead, ImplicitETFHead]
FEATURES = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 4


def stepped(kind: type[Head], features: torch.Tensor, labels: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    head = kind(8, 4).double()
    logits = head(features.double(), labels)
    return logits, head.state_dict()


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_integer_type(kind: type[Head], dtype: torch.dtype) -> None:
    logits, state = stepped(kind, FEATURES, LABELS.to(dtype))
    wanted, wanted_state = stepped(kind, FEATURES, LABELS)
    assert torch.equal(logits, wanted)
    assert all(torch.equal(value, wanted_state[name]) for name, value in state.items())


@pytest.mark.parametrize("kind", HEADS)
def test_ignored_rows_do_not_count(kind: type[Head]) -> None:
    labels = LABELS.clone()
    labels[[1, 5, 6]] = -100
    kept = labels >= 0
    logits, state = stepped(kind, FEATURES, labels)
    wanted, wanted_state = stepped(kind, FEATURES[kept], labels[kept])
    torch.testing.assert_close(logits[kept], wanted)
    for name, value in state.items():
        torch.testing.assert_close(value, wanted_state[name])


@pytest.mark.parametrize("kind", HEADS)
def test_a_batch_of_ignored_rows_changes_nothing(kind: type[Head]) -> None:
    head = kind(8, 4)
    head(FEATURES, LABELS)
    before = copy.deepcopy(head.state_dict())
    features = FEATURES.clone().requires_grad_()
    head(features, torch.full((12,), -100)).sum().backward()
    for name in ("running.class_means", "running.global_mean", "running.batches", "running.steps"):
        assert torch.equal(head.state_dict()[name], before[name]), name
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("kind", HEADS)
def test_one_hot_soft_labels_equal_hard_labels(kind: type[Head]) -> None:
    logits, state = stepped(kind, FEATURES, F.one_hot(LABELS, 4).double())
    wanted, wanted_state = stepped(kind, FEATURES, LABELS)
    torch.testing.assert_close(logits, wanted)
    for name, value in state.items():
        torch.testing.assert_close(value, wanted_state[name])


def test_soft_labels_weight_the_class_means() -> None:
    mixed = 0.7 * F.one_hot(LABELS, 4) + 0.3 * F.one_hot(LABELS.flip(0), 4)  # as in mixup
    head = ImplicitETFHead(8, 4).double()
    head(FEATURES.double(), mixed.double())
    h, Y = head.normalise(FEATURES.double()), mixed.double()
    means = (Y.T @ h) / Y.sum(0)[:, None]
    torch.testing.assert_close(head.running.class_means, (means - h.mean(0)).T)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (FEATURES, [0] * 12, r"labels are a list; expected an integer tensor \(N,\).*torch.as_tensor"),
        (FEATURES, np.zeros(12, np.int64), "labels are a ndarray"),
        (FEATURES.numpy(), LABELS, "features are a ndarray"),
        (FEATURES.long(), LABELS, "floating point"),
        (FEATURES, LABELS.bool(), "labels are torch.bool; expected integer class indices 0…3"),
        (FEATURES, LABELS.float(), "labels are torch.float32"),
        (FEATURES, LABELS[:5], r"labels have shape \(5,\); expected \(12,\)"),
        (FEATURES, torch.zeros(12, 5), r"labels have shape \(12, 5\); expected \(12, 4\)"),
        (FEATURES, torch.full((12, 4), -1.0), "soft labels contain negative"),
        (FEATURES, torch.full((12,), -1), "labels run from -1 to -1; expected 0…3, or -100"),
        (FEATURES[:0], LABELS[:0], "the batch is empty"),
    ],
)
def test_bad_batches_are_refused(features: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImplicitETFHead(8, 4)(features, labels)
