"""The average of the weights against its explicit sum, with every head, and across a checkpoint."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nearest_etf.torchport import Classifier, FixedETFHead, Head, ImplicitETFHead, LearnedHead, LinearHead
from nearest_etf.torchport.training.ema import WeightAverage
from nearest_etf.torchport.training.run.settings import Settings

HEADS = {"linear": LinearHead, "learned": LearnedHead, "fixed": FixedETFHead, "implicit": ImplicitETFHead}


def model(head: str) -> Classifier[Head]:
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU()), HEADS[head](8, 3))


def step(made: Classifier[Head], count: int) -> None:
    rng = torch.Generator().manual_seed(count)
    x, y = torch.randn(12, 5, generator=rng), torch.arange(12) % 3
    loss = nn.functional.cross_entropy(made.train()(x, y), y)
    made.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in made.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad, alpha=0.1)


@pytest.mark.parametrize("decay", [0.9998, 0.25])
@pytest.mark.parametrize("head", HEADS)
def test_the_average_is_the_weighted_sum(head: str, decay: float) -> None:
    made = model(head)
    average = WeightAverage(made, Settings(model_ema=True, model_ema_decay=decay))
    expected = {name: tensor.double().clone() for name, tensor in made.state_dict().items()}
    for t in range(1, 6):
        step(made, t)
        average.update()
        beta = min(decay, (1 + t) / (10 + t))
        for name, tensor in made.state_dict().items():
            expected[name] = beta * expected[name] + (1 - beta) * tensor.double()
    found = average.model().state_dict()
    for name in ("backbone.0.weight", "backbone.1.running_var", *(n for n, _ in made.named_parameters())):
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-6)
    if head in ("fixed", "implicit"):
        torch.testing.assert_close(
            found["head.running.class_means"].double(), expected["head.running.class_means"], rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(found["head.running.steps"], made.state_dict()["head.running.steps"])


def test_an_implicit_head_s_average_is_the_etf_nearest_to_the_averaged_means() -> None:
    made = model("implicit")
    average = WeightAverage(made, Settings(model_ema=True, model_ema_decay=0.5))
    for t in range(1, 6):
        step(made, t)
        average.update()
    head = average.model().head
    assert isinstance(head, ImplicitETFHead)
    torch.testing.assert_close(head.weight @ head.weight.T, 1.5 * torch.eye(3) - 0.5, rtol=0, atol=1e-5)
    solved = copy.deepcopy(made.head)
    assert isinstance(solved, ImplicitETFHead)
    solved.running.load_state_dict(head.running.state_dict())
    solved.refresh()
    torch.testing.assert_close(head.weight, solved.weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(head.bias, solved.bias, rtol=0, atol=1e-5)
    assert not torch.equal(head.weight, made.head.weight)


@pytest.mark.parametrize("head", HEADS)
def test_a_restored_average_continues_with_the_same_bits(head: str) -> None:
    settings = Settings(model_ema=True)
    whole = model(head)
    average = WeightAverage(whole, settings)
    for t in range(1, 7):
        step(whole, t)
        average.update()
        if t == 3:
            saved = copy.deepcopy((whole.state_dict(), average.state_dict()))
            average.model()  # what is evaluated between two steps changes nothing later
    resumed = model(head)
    rest = WeightAverage(resumed, settings)
    resumed.load_state_dict(saved[0])
    rest.load_state_dict(saved[1])
    for t in range(4, 7):
        step(resumed, t)
        rest.update()
    ours, theirs = rest.model().state_dict(), average.model().state_dict()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_without_an_average_the_model_itself_is_used() -> None:
    made = model("implicit")
    average = WeightAverage(made, Settings())
    step(made, 1)
    average.update()
    assert average.model() is made
    assert average.state_dict() == {}
    average.load_state_dict({})
