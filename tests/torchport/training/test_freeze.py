"""Frozen parts neither learn nor update their statistics; layers are numbered in the order of definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nearest_etf.torchport import Classifier, FixedETFHead, LearnedHead
from nearest_etf.torchport.training.backbones.resnet import ResNet
from nearest_etf.torchport.training.freeze import freeze, layer_numbers, train_mode
from nearest_etf.torchport.training.run.settings import Settings, SettingsError


class Wrapped(nn.Module):
    """A network in a wrapper, with parameters beside its blocks, as in vision transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.network: Any = nn.Module()
        self.network.token = nn.Parameter(torch.zeros(1, 4))
        self.network.stem = nn.Linear(4, 4)
        self.network.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)) for _ in range(3)
        )
        self.network.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.network.stem(x + self.network.token)
        for block in self.network.blocks:
            x = block(x)
        return self.network.norm(x)


def model() -> Classifier[LearnedHead]:
    return Classifier(Wrapped(), LearnedHead(4, 3))


def learning(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_nothing_is_frozen_by_default() -> None:
    made = model()
    assert freeze(made, Settings()) == []
    assert learning(made) == {name for name, _ in made.named_parameters()}


def test_all_freezes_the_whole_backbone() -> None:
    made = model()
    still = freeze(made, Settings(freeze="all"))
    assert learning(made) == {"head.rows"}
    train_mode(made, still)
    assert made.training
    assert not any(module.training for module in made.backbone.modules())


def test_everything_before_a_module_is_frozen() -> None:
    made = model()
    still = freeze(made, Settings(freeze="network.blocks.1"))
    later = ("backbone.network.blocks.1.", "backbone.network.blocks.2.", "backbone.network.norm.", "head.")
    assert learning(made) == {name for name, _ in made.named_parameters() if name.startswith(later)}
    made.eval()
    train_mode(made, still)
    blocks: Any = made.backbone.get_submodule("network.blocks")
    assert [block[1].training for block in blocks] == [False, True, True]
    assert [block[2].training for block in blocks] == [False, True, True]


def test_frozen_parts_do_not_change_a_bit() -> None:
    made = model()
    still = freeze(made, Settings(freeze="network.blocks.2", freeze_bn=True))
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.5, weight_decay=0.5)
    for _ in range(2):
        train_mode(made, still)
        logits = made(torch.randn(8, 4), torch.arange(8) % 3)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, torch.arange(8) % 3).backward()
        optimizer.step()
    moved = {name for name, tensor in made.state_dict().items() if not torch.equal(tensor, before[name])}
    last = "backbone.network.blocks.2"
    assert moved == {f"{last}.{n}" for n in ("0.weight", "0.bias", "1.weight", "1.bias")} | {
        "backbone.network.norm.weight",
        "backbone.network.norm.bias",
        "head.rows",
    }


def test_frozen_batch_norm_keeps_its_statistics_while_its_scale_learns() -> None:
    made = Classifier(ResNet("resnet18", 3, width=4), LearnedHead(32, 3))
    still = freeze(made, Settings(freeze_bn=True))
    train_mode(made, still)
    norms = [m for m in made.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(still) == len(norms) == 20
    assert not any(norm.training for norm in norms)
    assert all(norm.weight.requires_grad for norm in norms)
    made(torch.randn(4, 3, 16, 16))
    assert all(norm.num_batches_tracked == 0 for norm in norms)


def test_impossible_freezes_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"unknown module to freeze up to 'network.block': did you mean"):
        freeze(model(), Settings(freeze="network.block"))
    with pytest.raises(SettingsError, match="leaves nothing to learn: the classifier of head fixed"):
        freeze(Classifier(Wrapped(), FixedETFHead(4, 3)), Settings(freeze="all", head="fixed"))


def test_layers_of_a_wrapped_network() -> None:
    numbers = layer_numbers(Wrapped())
    assert numbers["network.token"] == 0
    assert [numbers[f"network.{n}"] for n in ("stem.weight", "stem.bias", "blocks.0.0.weight")] == [0, 0, 1]
    assert [numbers[f"network.blocks.{i}.1.weight"] for i in range(3)] == [1, 2, 3]
    assert numbers["network.norm.weight"] == 3


def test_layers_of_a_residual_network() -> None:
    backbone = ResNet("resnet18", 3, width=4)
    numbers = layer_numbers(backbone)
    assert numbers.keys() == {name for name, _ in backbone.named_parameters()}
    assert numbers["conv1.weight"] == numbers["bn1.weight"] == 0
    blocks = [numbers[f"stages.{stage}.{block}.conv2.weight"] for stage in range(4) for block in range(2)]
    assert blocks == list(range(1, 9))


class Block(nn.Module):
    """A residual block as libraries write it: its layers in a container of different parts."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))


class Stage(nn.Module):
    """Blocks after a change of resolution."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.downsample = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
        self.blocks = nn.Sequential(*(Block() for _ in range(depth)))


def test_stacks_are_opened_at_any_depth_and_blocks_are_not() -> None:
    backbone = nn.Module()
    backbone.stem = nn.Linear(4, 4)
    backbone.stages = nn.ModuleList([Stage(3), Stage(2)])
    numbers = layer_numbers(backbone)
    assert numbers.keys() == {name for name, _ in backbone.named_parameters()}
    first = {name: numbers[f"stages.0.{name}"] for name in ("downsample.1.weight", "blocks.0.block.0.weight")}
    assert first == {"downsample.1.weight": 1, "blocks.0.block.0.weight": 2}
    for stage, depth, start in ((0, 3, 2), (1, 2, 6)):
        for i in range(depth):
            block = {number for name, number in numbers.items() if name.startswith(f"stages.{stage}.blocks.{i}.")}
            assert block == {start + i}
    assert layer_numbers(nn.Sequential(nn.Linear(2, 2))) == {"0.weight": 0, "0.bias": 0}
    assert layer_numbers(nn.Linear(2, 2)) == {"weight": 0, "bias": 0}
