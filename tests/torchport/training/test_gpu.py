"""Training on a GPU: the loader's batches equal the CPU's, and the whole system runs in its fast setting."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from nearest_etf.torchport.training.data.device_loader import Augmentation, DeviceLoader
from nearest_etf.torchport.training.data.load import load_data
from nearest_etf.torchport.training.data.loaders import make_loader
from nearest_etf.torchport.training.data.split import Split
from nearest_etf.torchport.training.evaluate import evaluate
from nearest_etf.torchport.training.model import load_model
from nearest_etf.torchport.training.run.settings import load_recipe
from nearest_etf.torchport.training.train import train

pytestmark = pytest.mark.gpu


def test_batches_equal_those_of_the_cpu_without_synchronisation() -> None:
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (100, 32, 32, 3)).astype(np.uint8), rng.integers(0, 10, 100))
    make = partial(
        DeviceLoader, split, 16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), augmentation=Augmentation(True, 4)
    )
    expected, loader = list(make(device=torch.device("cpu")).epoch(1)), make(device=torch.device("cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(loader.epoch(1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (images, labels), (others, other_labels) in zip(expected, found, strict=True):
        assert torch.equal(images, others.cpu())
        assert torch.equal(labels, other_labels.cpu())
        assert others.is_contiguous(memory_format=torch.channels_last)


def test_digits_in_bfloat16_channels_last_and_compiled(tmp_path: Path) -> None:
    fast = {"precision": "bfloat16", "channels_last": True, "compile": True, "epochs": 2}
    settings = load_recipe("digits", {"head": "implicit", **fast})
    row = train(settings, tmp_path / "run", device="cuda")
    assert row["test_accuracy"] > 0.8
    model, _ = load_model(tmp_path / "run", "last")
    data = load_data("digits")
    assert data.test is not None
    held_out = make_loader(data.test, data, settings, device=torch.device("cpu"))
    on_cpu = evaluate(model, held_out.ordered()).figures  # in float32
    assert on_cpu["accuracy"] == pytest.approx(row["test_accuracy"], abs=0.02)
