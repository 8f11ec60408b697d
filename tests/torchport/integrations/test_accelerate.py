"""Heads in a loop with Accelerate: against a plain loop, in bfloat16, and resumed from a checkpoint bit by bit."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from nearest_etf.reference import etf_error
from nearest_etf.torchport import Classifier, Head, ImplicitETFHead, LearnedHead, TightFrameHead

pytest.importorskip("accelerate")
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from nearest_etf.torchport.integrations.accelerate import WarmStarts

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Reset Accelerate's settings, which are global to the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def data(K: int, size: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(size) % K
    means = 2 * torch.randn(K, 80, generator=generator)
    return means[labels] + torch.randn(size, 80, generator=generator), labels


def made(kind: type[Head], K: int) -> tuple[Classifier[Any], torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Classifier(nn.Sequential(nn.Linear(80, 80), nn.ReLU(), nn.Linear(80, 80)), kind(80, K))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def epoch(accelerator: Accelerator, model: Any, optimizer: Any, batches: Any) -> None:
    model.train()
    for images, labels in batches:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(images, labels), labels))
            optimizer.step()
            optimizer.zero_grad()


def assert_equal(found: nn.Module, expected: nn.Module) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("kind", [ImplicitETFHead, TightFrameHead, LearnedHead])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_agrees_with_a_plain_loop(kind: type[Head], accumulate: int) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model, optimizer, batches = accelerator.prepare(*made(kind, 4), DataLoader(TensorDataset(*data(4)), 8))
    epoch(accelerator, model, optimizer, batches)
    expected, optimizer = made(kind, 4)
    images, labels = data(4)
    for index, rows in enumerate(torch.arange(48).split(8)):
        (F.cross_entropy(expected(images[rows], labels[rows]), labels[rows]) / accumulate).backward()
        if (index + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert_equal(accelerator.unwrap_model(model), expected)


def test_mixed_precision_solves_in_float32() -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model, optimizer, batches = accelerator.prepare(*made(ImplicitETFHead, 4), DataLoader(TensorDataset(*data(4)), 8))
    seen = set[torch.dtype]()
    model.head.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].dtype))
    epoch(accelerator, model, optimizer, batches)
    assert seen == {torch.bfloat16}
    head = accelerator.unwrap_model(model).head
    assert {value.dtype for value in head.state_dict().values()} == {torch.float32, torch.int64}
    assert etf_error(head.weight.double().numpy()) < 1e-6


@pytest.mark.parametrize("registered", [True, False])
def test_the_warm_start_of_the_solver_is_in_the_checkpoint(tmp_path: Path, registered: bool) -> None:
    """Late in training, when the class means hardly change, the last bits depend on it."""

    def begun() -> tuple[Accelerator, Any, Any, Any]:
        accelerator = Accelerator(cpu=True)
        model, optimizer = made(ImplicitETFHead, 70)
        images, labels = data(70, 280)
        model.head.fit(model.backbone(images), labels)
        for count in (model.head.running.steps, model.head.running.batches):
            count.fill_(10**6)
        if registered:
            accelerator.register_for_checkpointing(WarmStarts(model))
        return accelerator, *accelerator.prepare(model, optimizer, DataLoader(TensorDataset(images, labels), 140))

    straight = begun()
    epoch(*straight)
    assert straight[1].head.warm_start is not None
    straight[0].save_state(str(tmp_path))
    epoch(*straight)
    resumed = begun()
    resumed[0].load_state(str(tmp_path))
    epoch(*resumed)
    if registered:
        assert_equal(resumed[1], straight[1])
        assert torch.equal(resumed[1].head.warm_start, straight[1].head.warm_start)
    else:  # equal up to rounding
        assert not torch.equal(resumed[1].head.weight, straight[1].head.weight)
        torch.testing.assert_close(resumed[1].head.weight, straight[1].head.weight)


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["accelerate_loop.py", "--output", str(tmp_path), "--epochs", "2"])
    names = runpy.run_path(str(EXAMPLES / "accelerate_loop.py"))
    assert names["accuracy"] > 0.9
    assert names["same"]
