"""Optimizers, schedules and losses against their explicit formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nearest_etf.torchport import Classifier, LearnedHead
from nearest_etf.torchport.training.agd import AGD
from nearest_etf.torchport.training.backbones.small import MLP
from nearest_etf.torchport.training.freeze import freeze
from nearest_etf.torchport.training.losses import training_loss
from nearest_etf.torchport.training.optim import build_optimizer, learning_rate
from nearest_etf.torchport.training.run.settings import Settings, SettingsError


def test_automatic_gradient_descent_follows_its_formulas() -> None:
    torch.manual_seed(0)
    convolution, linear = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)
    model = nn.Sequential(convolution, nn.Flatten(), linear)
    optimizer = AGD(model, gain=0.5)
    sizes = math.sqrt(4 / 2 / 9), math.sqrt(3 / 4)
    singular = torch.linalg.svdvals(convolution.weight.detach().permute(2, 3, 0, 1))  # one matrix per position
    torch.testing.assert_close(singular, torch.full_like(singular, sizes[0]))

    model(torch.randn(5, 2, 3, 3)).square().sum().backward()
    before = [p.detach().clone() for p in (convolution.weight, linear.weight)]
    kernel, matrix = (p.grad if p.grad is not None else p for p in (convolution.weight, linear.weight))
    positions = [kernel[:, :, i, j] for i in range(3) for j in range(3)]
    G = (sum(sizes[0] * float(g.norm()) for g in positions) + sizes[1] * float(matrix.norm())) / 2
    step = 0.5 * math.log((1 + math.sqrt(1 + 4 * G)) / 2) / 2
    optimizer.step()
    torch.testing.assert_close(linear.weight.detach(), before[1] - step * sizes[1] * matrix / matrix.norm())
    expected = before[0][:, :, 1, 2] - step * sizes[0] * positions[5] / positions[5].norm()
    torch.testing.assert_close(convolution.weight.detach()[:, :, 1, 2], expected)
    assert convolution.bias is not None
    assert not convolution.bias.requires_grad


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_weight_decay_is_for_matrices_of_the_backbone(optimizer: str) -> None:
    backbone, head = MLP((2, 2, 1), num_features=4, depth=1), LearnedHead(4, 3)
    model = Classifier(backbone, head)
    decayed, plain = build_optimizer(Settings(optimizer=optimizer, weight_decay=0.25), model).param_groups
    assert [p.shape for p in decayed["params"]] == [(4, 4)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.25, 0.0)
    bias = backbone.get_parameter("layers.1.bias")
    assert {id(p) for p in plain["params"]} == {id(bias), *map(id, head.parameters())}


def test_layers_and_the_head_have_their_own_learning_rates() -> None:
    backbone = MLP((2, 2, 1), num_features=4, depth=2)
    model = Classifier(backbone, LearnedHead(4, 3))
    optimizer = build_optimizer(Settings(lr=0.5, head_lr=10.0, layer_decay=0.5), model)
    names = {id(p): name for name, p in model.named_parameters()}
    scales = {names[id(p)]: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scales == {
        **{f"backbone.layers.1.{kind}": 0.25 for kind in ("weight", "bias")},
        **{f"backbone.layers.3.{kind}": 0.5 for kind in ("weight", "bias")},
        "head.rows": 10.0,
    }
    assert all(group["lr"] == 0.5 * group["lr_scale"] for group in optimizer.param_groups)


def test_frozen_parameters_are_not_optimised() -> None:
    model = Classifier(MLP((2, 2, 1), num_features=4, depth=2), LearnedHead(4, 3))
    freeze(model, Settings(freeze="layers.3"))
    groups = build_optimizer(Settings(optimizer="adamw"), model).param_groups
    found = {id(p) for group in groups for p in group["params"]}
    assert found == {id(p) for p in (*model.backbone.get_submodule("layers.3").parameters(), *model.head.parameters())}


def test_agd_refuses_rates_of_layers() -> None:
    for changes in ({"freeze": "all"}, {"head_lr": 2.0}, {"layer_decay": 0.5}):
        with pytest.raises(SettingsError, match="agd takes its steps from the architecture"):
            Settings(optimizer="agd", **changes)  # type: ignore[arg-type]


def test_warm_up_rises_linearly_before_the_unchanged_schedule() -> None:
    settings = Settings(schedule="cosine", lr=2.0, epochs=20, warmup_epochs=5)
    plain = Settings(schedule="cosine", lr=2.0, epochs=20)
    assert [learning_rate(settings, epochs / 20) for epochs in (0, 2.5)] == pytest.approx([0.02, 2 * 0.505])
    for epochs in (5, 12, 19.5):
        assert learning_rate(settings, epochs / 20) == learning_rate(plain, epochs / 20)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("none", [2, 2, 2, 2]),
        ("step", [2, 2, 0.2, 0.02]),
        ("cosine", [2, 1 + math.cos(math.pi / 5), 1, 1 + math.cos(0.75 * math.pi)]),
        ("one-cycle", [0.2, 2, 1 + math.cos(math.pi * 0.375), 1 + math.cos(math.pi * 0.6875)]),
    ],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    settings = Settings(schedule=schedule, lr=2.0)
    assert [learning_rate(settings, p) for p in (0.0, 0.2, 0.5, 0.75)] == pytest.approx(expected)


def test_dot_regression_has_no_gradient_on_other_classes() -> None:
    logits = torch.tensor([[4.0, 1.0], [2.0, 5.0]], requires_grad=True)
    loss = training_loss("dot-regression", logits, torch.tensor([0, 1]), temperature=5.0)
    loss.backward()
    assert loss.item() == pytest.approx((1 + 0) / 2 / 10)
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.1, 0.0], [0.0, 0.0]]))
