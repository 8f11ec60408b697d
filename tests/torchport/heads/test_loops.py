"""Heads in foreign training loops: forgotten labels, several forwards per backward, checkpointing, wrappers."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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

AVERAGING_HEADS = [FixedETFHead, ImplicitETFHead, ClassMeanHead, TightFrameHead]
HEADS = [LinearHead, LearnedHead, *AVERAGING_HEADS]


def batch(step: int, d: int = 16, K: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    features = torch.randn(20, d, generator=generator).requires_grad_()
    return features, torch.randint(0, K, (20,), generator=generator)


@pytest.mark.parametrize("kind", AVERAGING_HEADS)
def test_forgotten_labels_warn_once(kind: type[Head]) -> None:
    model = Classifier(nn.Identity(), kind(16, 6))
    with pytest.warns(UserWarning, match=r"model\(images, labels\).*update=False"):
        model(batch(0)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(batch(0)[0])  # no second warning
        fresh = Classifier(nn.Identity(), kind(16, 6))
        fresh(batch(0)[0], update=False)  # intended: no warning
        fresh(*batch(0))
        fresh.eval()(batch(0)[0])
        Classifier(nn.Identity(), LearnedHead(16, 6))(batch(0)[0])


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("compiled", [False, True])
def test_an_unlabelled_and_a_labelled_forward_share_one_backward(kind: type[Head], compiled: bool) -> None:
    """As in semi-supervised training, distillation and consistency losses."""
    torch._dynamo.reset()
    head = kind(16, 6)
    head(*batch(0))
    call = torch.compile(head, backend="aot_eager") if compiled else head
    features, _ = batch(1)
    unlabelled = call(features, update=False)
    labelled = call(*batch(2))
    (unlabelled.logsumexp(1).sum() + labelled.logsumexp(1).sum()).backward()
    assert features.grad is not None
    expected = torch.autograd.grad(unlabelled_again(head, kind, features), features)[0]
    torch.testing.assert_close(features.grad, expected, rtol=1e-4, atol=1e-5)


def unlabelled_again(trained: Head, kind: type[Head], features: Tensor) -> Tensor:
    """The unlabelled loss with the classifier before the labelled forward."""
    torch.manual_seed(0)
    head = kind(16, 6)
    head.load_state_dict({k: v for k, v in trained.state_dict().items()})
    if kind in AVERAGING_HEADS:
        head = kind(16, 6)
        head(*batch(0))
    return head(features, update=False).logsumexp(1).sum()


@pytest.mark.parametrize("kind", AVERAGING_HEADS)
def test_a_teacher_in_eval_mode_and_a_student_step_share_one_backward(kind: type[Head]) -> None:
    head = kind(16, 6)
    head(*batch(0))
    features, _ = batch(1)
    head.eval()
    before = head(features)
    head.train()
    (before.sum() + head(*batch(2)).sum()).backward()
    assert features.grad is not None


@pytest.mark.parametrize("kind", AVERAGING_HEADS)
def test_two_labelled_forwards_share_one_backward(kind: type[Head]) -> None:
    head = kind(16, 6)
    first, second = batch(1), batch(2)
    (head(*first).logsumexp(1).sum() + head(*second).logsumexp(1).sum()).backward()
    assert first[0].grad is not None
    assert first[0].grad.isfinite().all()


@pytest.mark.parametrize("kind", AVERAGING_HEADS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_around_a_head_is_refused(kind: type[Head], reentrant: bool) -> None:
    head = kind(16, 6)
    features, labels = batch(0)
    loss = checkpoint(head, features, labels, use_reentrant=reentrant).sum()
    with pytest.raises(RuntimeError, match="Checkpoint the backbone alone"):
        loss.backward()


def test_activation_checkpointing_of_the_backbone_works() -> None:
    backbone, head = nn.Linear(16, 16), ImplicitETFHead(16, 6)
    images, labels = batch(0)
    plain = copy.deepcopy((backbone, head))
    head(checkpoint(backbone, images, use_reentrant=False), labels).logsumexp(1).sum().backward()
    plain[1](plain[0](images), labels).logsumexp(1).sum().backward()
    torch.testing.assert_close(backbone.weight.grad, plain[0].weight.grad)


@pytest.mark.parametrize("kind", AVERAGING_HEADS)
def test_data_parallel_replicas_are_refused(kind: type[Head]) -> None:
    replica = kind(16, 6)._replicate_for_data_parallel()
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        replica(*batch(0))


@pytest.mark.parametrize("kind", AVERAGING_HEADS)
def test_devices_without_float64_are_refused(kind: type[Head]) -> None:
    head = kind(16, 6)
    with pytest.raises(RuntimeError, match="MPS lacks"):
        head._refuse_unsupported_use("mps")  # type: ignore[operator]
