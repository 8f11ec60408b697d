"""Networks that draw random numbers: a run on photos resumes to the same bits, whatever else draws in between."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nearest_etf.torchport.training import progress
from nearest_etf.torchport.training import train as loop
from nearest_etf.torchport.training.data.folder_loader import FolderLoader
from nearest_etf.torchport.training.data.load import training_data
from nearest_etf.torchport.training.data.loaders import make_loader
from nearest_etf.torchport.training.progress import Progress, Stopped
from nearest_etf.torchport.training.run.checkpoint import load_checkpoint
from nearest_etf.torchport.training.run.settings import Settings
from nearest_etf.torchport.training.seeding import seed_step

# A block that is dropped for some images (stochastic depth), and dropout.
NETWORK = """
import torch
from torch import nn
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
    def forward(self, x):
        kept = torch.rand(len(x), 1, device=x.device) < 0.5 if self.training else 1.0
        return x + kept * self.layer(x).relu()
def network():
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 8), Block(), nn.Dropout(0.5))
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Two epochs of five steps on photos, with a backbone that draws."""
    folder = tmp_path_factory.mktemp("random")
    (folder / "network.py").write_text(NETWORK)
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "emu"):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(9):
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(folder / "photos" / name / f"{i}.png")
    return Settings(
        data=str(folder / "photos"),
        backbone=f"{folder / 'network.py'}:network",
        image_size=8,
        batch_size=4,
        epochs=2,
        lr=0.05,
        workers=0,
        flip=True,
        model_ema=True,
        eval_interval=2,
    )


def state(run: Path) -> dict[str, torch.Tensor]:
    """All tensors at the end of a run."""
    saved = load_checkpoint(run / "last.pt")
    momenta = {f"momentum {n}": entry["momentum_buffer"] for n, entry in saved["optimizer"]["state"].items()}
    return {**saved["model"], **{f"mean {name}": x for name, x in saved["ema"]["model"].items()}, **momenta}


@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_stopped_runs_end_with_the_same_bits(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixup: float
) -> None:
    settings = replace(settings, mixup=mixup)
    monkeypatch.setattr(progress, "draw_curves", lambda *_: "")  # which takes longer than the runs
    loop.train(settings, tmp_path / "whole", device="cpu", quiet=True, recalibrate=False)
    whole = state(tmp_path / "whole")
    advance = Progress.advance
    for workers, stop in ((0, 7), (2, 7), (2, 5)):  # in the second epoch, at the end of the first
        steps = iter(range(1, 100))

        def interrupting(self: Progress, steps=steps, stop=stop) -> None:
            advance(self)
            torch.rand(3)  # a library that draws, too
            if next(steps) == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        run = tmp_path / f"{workers}-{stop}"
        with monkeypatch.context() as patched:
            patched.setattr(Progress, "advance", interrupting)
            with pytest.raises(Stopped):
                loop.train(replace(settings, workers=workers), run, device="cpu", quiet=True, recalibrate=False)
        torch.manual_seed(9)
        loop.train(replace(settings, workers=workers), run, device="cpu", quiet=True, recalibrate=False, resume=True)
        resumed = state(run)
        assert resumed.keys() == whole.keys()
        assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_a_loader_draws_nothing_from_the_global_generator(settings: Settings) -> None:
    data = training_data(settings)
    loader = make_loader(data.train, data, replace(settings, workers=1), device=torch.device("cpu"))
    assert isinstance(loader, FolderLoader)
    before = torch.get_rng_state()
    for batches in (loader.epoch(1), loader.ordered(), loader.epoch(2)):
        assert list(batches)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_step_and_process_has_its_own_random_numbers() -> None:
    drawn = set()
    for place in ((0, 1, 0, 0), (0, 1, 1, 0), (0, 2, 0, 0), (1, 1, 0, 0), (0, 1, 0, 1), (2**63 - 1, 10**6, 10**6, 7)):
        seed_step(torch.device("cpu"), *place)
        drawn.add(torch.rand(()).item())
    assert len(drawn) == 6
