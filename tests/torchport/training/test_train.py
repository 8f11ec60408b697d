"""Options of the training loop: what they may change and what not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nearest_etf.torchport.heads import ImplicitETFHead
from nearest_etf.torchport.simplex import centred, classifier_from_frame
from nearest_etf.torchport.training.run.checkpoint import build_head, load_checkpoint, load_model, random_frame
from nearest_etf.torchport.training.run.folder import read_rows
from nearest_etf.torchport.training.run.settings import Settings
from nearest_etf.torchport.training.train import train

TINY = Settings(
    backbone="mlp", samples_per_class=20, batch_size=40, epochs=2, num_features=16, lr=0.02, head="learned"
)  # five steps an epoch, without batch statistics


def trained(folder: Path, settings: Settings) -> dict[str, torch.Tensor]:
    train(settings, folder, device="cpu", recalibrate=False)
    return load_checkpoint(folder / "last.pt")["model"]


def test_accumulation_is_the_whole_batch_s_gradient(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", TINY)
    parts = trained(tmp_path / "parts", replace(TINY, accumulation=4))
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_an_implicit_head_takes_each_part_of_a_batch_as_a_batch(tmp_path: Path) -> None:
    state = trained(tmp_path / "run", replace(TINY, head="implicit", accumulation=4))
    assert state["head.means.steps"] == 4 * 5 * 2
    W = state["head.weight"]
    torch.testing.assert_close(W @ W.T, (10 * torch.eye(10) - 1) / 9, rtol=0, atol=1e-5)


def test_clipping_bounds_the_step(tmp_path: Path) -> None:
    settings = replace(TINY, epochs=1, batch_size=200, momentum=0.0, weight_decay=0.0)  # one step
    start = trained(tmp_path / "still", replace(settings, lr=0.0))
    steps = {}
    for clip in (0.0, 1e-3):
        state = trained(tmp_path / f"clip{clip}", replace(settings, clip=clip, lr=1.0, head="fixed"))
        backbone = [name for name in start if name.startswith("backbone")]
        steps[clip] = math.sqrt(sum(float((state[name] - start[name]).square().sum()) for name in backbone))
    assert steps[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert steps[0.0] > 0.1


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_near_single(tmp_path: Path, precision: str) -> None:
    settings = replace(TINY, head="implicit", precision=precision, channels_last=True)
    trained(tmp_path / "half", settings)
    trained(tmp_path / "single", replace(settings, precision="float32"))
    half, single = (read_rows(tmp_path / name)[0]["running_loss"] for name in ("half", "single"))
    assert half != single
    assert half == pytest.approx(single, rel=0.1)  # a scaler leaves the first steps out, until it has found its scale
    scaler = load_checkpoint(tmp_path / "half" / "last.pt")["scaler"]
    assert bool(scaler) == (precision == "float16")


def test_compiled_backbones_compute_the_same(tmp_path: Path) -> None:
    settings = replace(TINY, head="implicit", epochs=1, lr=1e-3)
    compiled = trained(tmp_path / "compiled", replace(settings, compile=True))
    torch.testing.assert_close(compiled, trained(tmp_path / "eager", settings), rtol=1e-3, atol=1e-4)
    model, _ = load_model(tmp_path / "compiled", "last")
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_rows_take_whatever_the_solver_says_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    health = {"gap": 1e-9, "sigma_min": 0.25, "news": 3.0, "lost": math.nan}
    monkeypatch.setattr(ImplicitETFHead, "solution_health", lambda self: health)
    train(replace(TINY, head="implicit", eval_interval=2), tmp_path / "run", device="cpu")
    first, last = read_rows(tmp_path / "run")
    assert {name for name in last if name.startswith("solver")} == {"solver_gap", "solver_sigma_min", "solver_news"}
    assert "train_accuracy" not in first
    header, *lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert {line.count(",") for line in lines} == {header.count(",")}


@pytest.mark.parametrize(("num_features", "formulation"), [(12, "paper"), (12, "gauge-free"), (9, "gauge-free")])
def test_random_initial_frames(num_features: int, formulation: str) -> None:
    settings = Settings(initial="random", formulation=formulation, seed=3)
    before = torch.get_rng_state()
    head = build_head(settings, num_features, 10)
    assert torch.equal(torch.get_rng_state(), before)  # the backbone's weights do not depend on it
    U = random_frame(num_features, 10, seed=3)
    torch.testing.assert_close(head.weight, classifier_from_frame(U))
    torch.testing.assert_close(centred(U).T @ centred(U), centred(torch.eye(10)), rtol=0, atol=1e-6)
    assert not torch.allclose(U, random_frame(num_features, 10, seed=4), atol=0.1)
    features = torch.randn(30, num_features, generator=torch.Generator().manual_seed(0), requires_grad=True)
    head(features, torch.arange(30) % 10).square().sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_random_frames_have_no_preferred_direction() -> None:
    entries = torch.stack([random_frame(3, 3, seed) for seed in range(2000)]).double()
    assert entries.mean(0).abs().max() < 5 * math.sqrt(1 / 3 / 2000)
    assert (entries.square().mean(0) - 1 / 3).abs().max() < 5 * math.sqrt(4 / 45 / 2000)  # u² of a sphere's point
