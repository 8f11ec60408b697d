"""Options of the training loop: their effects, and what they leave unchanged."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nearest_etf.torchport.heads import ImplicitETFHead, default_temperature
from nearest_etf.torchport.training import progress
from nearest_etf.torchport.training import train as loop
from nearest_etf.torchport.training.model import load_model
from nearest_etf.torchport.training.run.checkpoint import load_checkpoint
from nearest_etf.torchport.training.run.reading import read_rows, read_run
from nearest_etf.torchport.training.run.settings import Settings, SettingsError
from nearest_etf.torchport.training.train import train

TINY = Settings(
    backbone="mlp", samples_per_class=20, batch_size=40, epochs=2, num_features=16, lr=0.02, head="learned"
)  # five steps an epoch, without batch statistics


def trained(folder: Path, settings: Settings) -> dict[str, torch.Tensor]:
    train(settings, folder, device="cpu", recalibrate=False)
    return load_checkpoint(folder / "last.pt")["model"]


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", TINY)
    microbatches = trained(tmp_path / "microbatches", replace(TINY, grad_accum_steps=4))
    torch.testing.assert_close(microbatches, whole, rtol=1e-4, atol=1e-5)


def test_an_implicit_head_takes_each_microbatch_as_a_batch(tmp_path: Path) -> None:
    state = trained(tmp_path / "run", replace(TINY, head="implicit", grad_accum_steps=4))
    assert state["head.running.steps"] == 4 * 5 * 2
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
    settings = replace(TINY, head="implicit", precision=precision, channels_last=True, temperature=5.0)
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


def test_rows_hold_all_solver_diagnostics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    health = {"gap": 1e-9, "sigma_min": 0.25, "news": 3.0, "lost": math.nan}
    monkeypatch.setattr(ImplicitETFHead, "solution_health", lambda self: health)
    train(replace(TINY, head="implicit", eval_interval=2), tmp_path / "run", device="cpu")
    first, last = read_rows(tmp_path / "run")
    assert {name for name in last if name.startswith("solver")} == {"solver_gap", "solver_sigma_min", "solver_news"}
    assert "train_accuracy" not in first
    header, *lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert {line.count(",") for line in lines} == {header.count(",")}


def test_the_best_epoch_is_chosen_on_validation_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = {"train": [0.1, 0.2, 0.3, 0.4], "val": [0.5, 0.7, 0.7, 0.6], "test": [0.9, 0.2, 0.8, 1.0]}
    epochs = iter(range(4))

    def evaluated(model: object, loaders: dict[str, object]) -> dict[str, float]:
        epoch = next(epochs)
        assert list(loaders) == ["train", "val", "test"]
        return {f"{split}_accuracy": accuracies[split][epoch] for split in loaders}

    monkeypatch.setattr(loop, "evaluate_splits", evaluated)
    train(replace(TINY, epochs=4, val_fraction=0.2), tmp_path / "run", device="cpu")
    assert load_checkpoint(tmp_path / "run" / "best.pt")["epoch"] == 2 + 1  # the first of equals
    assert load_checkpoint(tmp_path / "run" / "last.pt")["epoch"] == 4 + 1
    run = read_run(tmp_path / "run")
    assert (run.result, run.result_row["epoch"], run.checkpoints) == ("best", 2, ("best", "last"))
    log = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert "no validation data" not in "".join(log)
    assert log[-1] == ("result: best.pt (epoch 2, chosen on validation data)  train 20.00 %  val 70.00 %  test 20.00 %")


def test_without_validation_data_the_last_epoch_is_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(TINY, tmp_path / "run", device="cpu")
    run = read_run(tmp_path / "run")
    assert (run.result, run.checkpoints) == ("last", ("last",))
    assert run.rows[-1].keys() >= {"train_accuracy", "test_accuracy"}
    assert not any(name.startswith("val") for row in run.rows for name in row)
    log = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert log[1] == "no validation data: the last epoch is the result (--val-fraction 0.1 holds out a tenth)"
    assert log[-1].startswith("result: last.pt (epoch 2)  train ")
    assert capsys.readouterr().err.splitlines() == log


def test_free_features_are_measured_on_training_data_alone(tmp_path: Path) -> None:
    settings = Settings(data="ufm", num_classes=3, num_features=4, samples_per_class=2, batch_size=6, epochs=2)
    row = train(settings, tmp_path / "run", device="cpu", quiet=True)
    assert {name.split("_")[0] for name in row} & {"train", "val", "test"} == {"train"}
    log = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert log[1] == "no validation data: the last epoch is the result"
    assert log[-2].startswith("train accuracy with running means ")


def test_a_failed_picture_does_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "draw_curves", lambda rows, path: f"{path.name} could not be drawn: {len(rows)} rows")
    train(TINY, tmp_path / "run", device="cpu")
    assert "curves.png could not be drawn: 2 rows" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "linear", "lr": 0.3},
        {"head": "learned", "temperature": "learned"},
        {"head": "fixed", "initial": "random"},
        {"head": "implicit", "averaging": "class", "temperature": "learned"},
    ],
)
def test_every_head_trains_resumes_and_loads(tmp_path: Path, changes: dict[str, object]) -> None:
    settings = replace(TINY, epochs=3, **changes)  # type: ignore[arg-type]
    row = train(settings, tmp_path / "run", device="cpu", recalibrate=False)
    first = read_rows(tmp_path / "run")[0]
    assert row["running_loss"] < first["running_loss"]
    model, loaded = load_model(tmp_path / "run")
    assert loaded == settings
    assert model.head.kind == settings.head
    if settings.temperature == "learned":
        assert model.head.temperature != default_temperature(10)
    train(settings, tmp_path / "run", device="cpu", resume=True, recalibrate=False)


@pytest.mark.parametrize("changes", [{"head": "linear"}, {"head": "implicit", "temperature": "learned"}])
def test_dot_regression_needs_a_fixed_temperature(changes: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="dot-regression"):
        replace(TINY, loss="dot-regression", **changes)  # type: ignore[arg-type]
