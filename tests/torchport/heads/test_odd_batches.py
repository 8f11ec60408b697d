"""Unusual batches: one sample, one class, constant features, rare classes; second derivatives, temperatures."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nearest_etf.torchport import (
    ClassMeanHead,
    ClassMeans,
    FixedETFHead,
    Head,
    ImplicitETFHead,
    LearnedHead,
    LinearHead,
    TightFrameHead,
    nearest_etf,
)
from nearest_etf.torchport.heads import default_temperature, largest_probability

METHODS = ["auto", "svd", "eigh", "matmul", "trust-region"]


def stepped_gradient(head: Head, features: Tensor, labels: Tensor) -> Tensor:
    leaf = features.clone().requires_grad_()
    loss = F.cross_entropy(head(leaf, labels), labels)
    return torch.autograd.grad(loss, leaf)[0]


@pytest.mark.filterwarnings("ignore:the polar factor")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("formulation", ["paper", "gauge-free"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["batch of one", "one class", "constant features", "nearly constant features"])
def test_equal_class_means_give_finite_gradients(method: str, formulation: Any, dtype: torch.dtype, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    head = ImplicitETFHead(16, 6, formulation=formulation, method=method).to(dtype)
    for _ in range(3):
        features = torch.randn(12, 16, dtype=dtype, generator=generator)
        labels = torch.randint(0, 6, (12,), generator=generator)
        if kind == "batch of one":
            features, labels = features[:1], labels[:1]
        elif kind == "one class":
            features = features[:1].expand(12, 16).clone()
            labels = torch.full((12,), 2)
        elif kind == "constant features":
            features = torch.full((12, 16), 3.7, dtype=dtype)
        else:
            features = 3.7 * (1 + torch.finfo(dtype).eps * torch.randn(12, 16, dtype=dtype, generator=generator))
        gradient = stepped_gradient(head, features, labels)
        assert gradient.isfinite().all()
        # W is constant, so this is the gradient of logits with a fixed classifier, of the size of 1/‖f‖.
        assert float(gradient.norm()) <= 2 * head.temperature * 12 / float(features.norm(dim=1).min())
        assert head.weight.isfinite().all()


def test_class_means_at_rounding_level_give_no_gradient() -> None:
    with_gradient, without = (ImplicitETFHead(16, 6, gradient=g) for g in (True, False))
    features, labels = torch.full((12, 16), 1e5), torch.arange(12) % 6
    for _ in range(2):
        for_both = [stepped_gradient(head, features, labels) for head in (with_gradient, without)]
        torch.testing.assert_close(*for_both)


def errors_of_class_means(averaging: Any, steps: int, num_classes: int) -> Tensor:
    """Relative errors of the running means of fixed centres, after the given number of batches of 16."""
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(num_classes, 32, generator=generator), dim=1)
    running = ClassMeans(32, num_classes, averaging=averaging)
    for _ in range(steps):
        labels = torch.randint(num_classes, (16,), generator=generator)
        running(centres[labels] + 0.02 * torch.randn(16, 32, generator=generator), labels)
    wanted = centres - centres.mean(0)
    error = (running.class_means.T - wanted).norm(dim=1) / wanted.norm(dim=1)
    return error[running.seen]


def test_late_classes_enter_at_their_full_length() -> None:
    by_step, by_class = (errors_of_class_means(averaging, 250, 250).median() for averaging in ("step", "class"))
    assert float(by_step) < 0.3  # the remaining noise is from the centring by a batch's own mean
    assert float(by_class) < 0.15
    assert float(by_class) < float(by_step)


def test_both_averages_are_the_papers_if_every_batch_contains_every_class() -> None:
    by_step, by_class = ClassMeans(8, 4).double(), ClassMeans(8, 4, averaging="class").double()
    H = torch.zeros(8, 4, dtype=torch.float64)
    for t in range(1, 6):
        features = torch.randn(12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(t))
        labels = torch.arange(12) % 4
        means = torch.stack([features[labels == c].mean(0) for c in range(4)], 1) - features.mean(0)[:, None]
        H = H + 2 / (t + 1) * (means - H)
        torch.testing.assert_close(by_step(features, labels)[0], H)
        torch.testing.assert_close(by_class(features, labels)[0], H)


@pytest.mark.parametrize("formulation", ["paper", "gauge-free"])
@pytest.mark.parametrize("absent", [[], [4], [1, 3]])
def test_the_gradient_of_the_first_step_agrees_with_finite_differences(formulation: Any, absent: list[int]) -> None:
    """Also if the first batch lacks classes, whose columns of the frame follow the others."""
    fresh = ImplicitETFHead(9, 6, formulation=formulation, temperature=5.0).double()
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([k for k in range(6) if k not in absent]).repeat(3)
    features = torch.randn(len(labels), 9, dtype=torch.float64, generator=generator).requires_grad_()
    target = torch.randn(len(labels), 6, dtype=torch.float64, generator=generator)

    def loss(features: Tensor) -> Tensor:
        return (copy.deepcopy(fresh)(features, labels) * target).sum()

    assert torch.autograd.gradcheck(loss, features)


@pytest.mark.parametrize("formulation", ["paper", "gauge-free"])
@pytest.mark.parametrize("absent", [[], [2]])
def test_create_graph_does_not_change_the_first_derivative(formulation: Any, absent: list[int]) -> None:
    generator = torch.Generator().manual_seed(3)
    labels = torch.tensor([k for k in range(6) if k not in absent]).repeat(3)
    features = torch.randn(len(labels), 9, generator=generator)
    for dtype in (torch.float32, torch.float64):
        head = ImplicitETFHead(9, 6, formulation=formulation).to(dtype)
        for _ in range(2):
            gradients = []
            for create_graph in (False, True):
                leaf = features.to(dtype, copy=True).requires_grad_()
                loss = F.cross_entropy(head(leaf, labels, update=False), labels)
                gradients.append(torch.autograd.grad(loss, leaf, create_graph=create_graph)[0].detach())
            torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-7)
            head(features.to(dtype), labels)


@pytest.mark.parametrize("formulation", ["paper", "gauge-free"])
def test_second_derivatives_of_the_frame_without_a_proximal_point(formulation: Any) -> None:
    H = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda H: nearest_etf(H, formulation=formulation), H)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_that_is_not_finite_does_not_change_the_state_of_a_compiled_head(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    head = FixedETFHead(16, 6).to(dtype)
    step = torch.compile(head, backend="aot_eager")
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(12, 16, dtype=dtype, generator=generator), torch.arange(12) % 6
    step(features, labels)
    before = copy.deepcopy(head.state_dict())
    logits = step(torch.full_like(features, torch.inf), labels)
    assert not logits.isfinite().all()
    assert all(torch.equal(value, head.state_dict()[name]) for name, value in before.items())
    step(features, labels)
    assert head.running.class_means.isfinite().all()


def test_temperatures_bound_the_probabilities() -> None:
    for K in (3, 10, 100):
        for tau in (2.0, 5.0, default_temperature(K)):
            W = math.sqrt(K / (K - 1)) * (torch.eye(K, dtype=torch.float64) - 1 / K)
            logits = tau * W @ (W / W.norm(dim=1, keepdim=True)).T
            assert logits.softmax(1).max().item() == pytest.approx(largest_probability(tau, K), rel=1e-9)


def test_a_temperature_with_a_high_least_loss_warns() -> None:
    with pytest.warns(UserWarning, match="no probability exceed 0.13 with 1000 classes"):
        ImplicitETFHead(2048, 1000, temperature=5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for K in (2, 10, 100, 1000):
            LearnedHead(16, K)
        ImplicitETFHead(512, 100, temperature=5.0)  # the paper's: 0.61


@pytest.mark.parametrize("kind", [LearnedHead, FixedETFHead, ImplicitETFHead, ClassMeanHead, TightFrameHead])
def test_a_learned_temperature_is_trained_and_bounded(kind: type[Any]) -> None:
    head = kind(16, 6, temperature="learned")
    assert head.temperature == pytest.approx(default_temperature(6))
    features, labels = torch.randn(12, 16, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 6
    F.cross_entropy(head(features, labels), labels).backward()
    assert head.log_temperature.grad is not None
    assert head.log_temperature.grad.abs() > 0
    with torch.no_grad():
        head.log_temperature.fill_(50.0)
    assert head.temperature == pytest.approx(100.0)
    assert "'learned'" in repr(head)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan, "high", True])
def test_bad_temperatures_are_refused(temperature: Any) -> None:
    with pytest.raises(ValueError, match="temperature"):
        ImplicitETFHead(16, 6, temperature=temperature)


def test_the_linear_head_agrees_with_nn_linear() -> None:
    torch.manual_seed(0)
    head = LinearHead(16, 6)
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 6)
    features = torch.randn(5, 16)
    torch.testing.assert_close(head(features, torch.arange(5)), linear(features))
    assert torch.equal(head.normalise(features), features)
    assert head.temperature is None


@pytest.mark.parametrize("initial", ["random", "frame"])
def test_the_fixed_head_accepts_any_frame(initial: str) -> None:
    frame = torch.linalg.qr(torch.randn(16, 6, generator=torch.Generator().manual_seed(0)))[0]
    head = FixedETFHead(16, 6, initial=frame if initial == "frame" else initial)
    torch.testing.assert_close(head.weight @ head.weight.T, (6 * torch.eye(6) - 1) / 5, rtol=0, atol=1e-5)
    assert not torch.allclose(head.weight, FixedETFHead(16, 6).weight, atol=0.1)
