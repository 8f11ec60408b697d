"""The contents that a checkpoint needs to be resumed, and the errors if they are missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nearest_etf.torchport.training import progress
from nearest_etf.torchport.training import train as loop
from nearest_etf.torchport.training.etf_train import main
from nearest_etf.torchport.training.run.checkpoint import load_checkpoint, save_checkpoint
from nearest_etf.torchport.training.run.settings import Settings

TINY = Settings(
    data="ufm", num_classes=3, samples_per_class=2, batch_size=6, num_features=4, epochs=2, lr=0.05, model_ema=True
)


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "draw_curves", lambda *_: "")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("state") / "run"
    loop.train(TINY, folder, device="cpu", quiet=True, recalibrate=False)
    return folder


def first(saved: dict[str, Any]) -> dict[str, Any]:
    return next(iter(saved["optimizer"]["state"].values()))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda saved: saved.pop("optimizer"), "(optimizer is missing)"),
        (lambda saved: saved.update(epoch="2"), "(epoch is '2', expected an integer)"),
        (lambda saved: saved.update(epoch=-1), "(its epoch, step or totals are not those of a run)"),
        (lambda saved: saved.update(totals=torch.zeros(2)), "(its epoch, step or totals are not those of a run)"),
        (lambda saved: saved.update(totals=[0.0] * 3), "(totals is list of 3, expected Tensor)"),
        (lambda saved: saved["model"].popitem(), "RuntimeError: Error(s) in loading state_dict"),
        (lambda saved: saved["model"].update(more=torch.zeros(2)), "RuntimeError: Error(s) in loading state_dict"),
        (lambda saved: saved["data"].update(class_names=["a", 1]), "(data.class_names[1] is 1, expected str)"),
        (lambda saved: saved["data"].pop("mean"), "(data.mean is missing)"),
        (lambda saved: saved["ema"].update(steps=None), "(ema.steps is None, expected an integer)"),
        (lambda saved: first(saved).update(momentum_buffer=torch.zeros(7)), "momentum_buffer of parameter 0 does not"),
        (lambda saved: first(saved).update(momentum_buffer="x"), "momentum_buffer of parameter 0 is of type str"),
        (lambda saved: saved["optimizer"]["param_groups"].pop(), "(its optimizer has other parameters)"),
        (lambda saved: saved["optimizer"]["param_groups"][0].update(lr=None), "(lr of its optimizer is of type NoneT"),
        (lambda saved: saved.update(solver={"gap": "small"}), "(solver.gap is 'small', expected a number)"),
    ],
)
def test_checkpoints_that_cannot_be_resumed_are_refused_in_one_line(
    run: Path, change: Callable[[dict[str, Any]], object], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    last, contents = run / "last.pt", (run / "last.pt").read_bytes()
    saved = load_checkpoint(last)
    change(saved)
    save_checkpoint(last, saved)
    try:
        assert main(["--resume", "--quiet", "--epochs", "3", "--output", str(run)]) == 2
    finally:
        last.write_bytes(contents)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"etf-train: {last} is damaged" in error
    assert complaint in error


def test_optimizer_options_missing_in_an_older_checkpoint_keep_their_values(run: Path, tmp_path: Path) -> None:
    contents = (run / "last.pt").read_bytes()
    saved = load_checkpoint(run / "last.pt")
    for group in saved["optimizer"]["param_groups"]:
        del group["dampening"]
    save_checkpoint(run / "last.pt", saved)
    try:
        assert main(["--resume", "--quiet", "--output", str(run)]) == 0
    finally:
        (run / "last.pt").write_bytes(contents)
