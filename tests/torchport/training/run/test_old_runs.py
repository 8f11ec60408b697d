"""Runs that version 0.1.0 wrote: read, loaded, resumed and skipped by sweeps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from nearest_etf.torchport.heads import ImplicitETFHead
from nearest_etf.torchport.training.data.load import training_data
from nearest_etf.torchport.training.data.loaders import make_loader
from nearest_etf.torchport.training.etf_train import main
from nearest_etf.torchport.training.evaluate import evaluate
from nearest_etf.torchport.training.model import load_model
from nearest_etf.torchport.training.run.checkpoint import load_checkpoint
from nearest_etf.torchport.training.run.reading import read_run
from nearest_etf.torchport.training.run.settings import settings_from

FIXTURES = Path(__file__).parents[3] / "fixtures" / "written-by-0.1.0"
HEADS = ("learned", "fixed", "implicit")


@pytest.mark.parametrize("head", HEADS)
def test_an_old_run_is_read(head: str) -> None:
    run = read_run(FIXTURES / f"{head}-run")
    settings = settings_from(run.settings)
    assert (settings.head, settings.optimizer, settings.grad_accum_steps) == (head, "adamw", 2)
    assert run.result == "last"  # best.pt was chosen on test data, and stands for nothing
    assert run.checkpoints[:2] == ("best", "last")
    assert run.class_names == tuple("0123456789")
    assert [row["epoch"] for row in run.rows] == [1, 2]


@pytest.mark.parametrize("head", HEADS)
def test_an_old_model_gives_its_old_results(head: str) -> None:
    run = read_run(FIXTURES / f"{head}-run")
    model, settings = load_model(run, "last")
    data = training_data(settings)
    for name, split in data.splits().items():
        assert split.fingerprint() == run.config["data"][f"{name}_sha256"]
        figures = evaluate(model, make_loader(split, data, settings, device=torch.device("cpu")).ordered()).figures
        for figure in ("loss", "accuracy", "nc1"):
            assert figures[figure] == pytest.approx(run.rows[-1][f"{name}_{figure}"], rel=1e-5), (name, figure)
    if isinstance(model.head, ImplicitETFHead):
        old = torch.load(run.path / "last.pt", weights_only=True)["model"]
        assert torch.equal(model.head.running.class_means, old["head.means.means"])
        assert model.head.running.steps == old["head.means.steps"]


def test_an_old_recalibrated_model_is_loaded() -> None:
    model, settings = load_model(FIXTURES / "implicit-run", "recalibrated")
    data = training_data(settings)
    exact = json.loads((FIXTURES / "implicit-run" / "recalibrated.json").read_text())["exact"]
    loader = make_loader(data.train, data, settings, device=torch.device("cpu"))
    assert evaluate(model, loader.ordered()).figures["accuracy"] == pytest.approx(exact["train_accuracy"])


@pytest.mark.parametrize("head", ["fixed", "implicit"])
def test_a_finished_old_run_is_complete(head: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(FIXTURES / f"{head}-run", tmp_path / "run")
    before = {name: (run / name).read_bytes() for name in ("last.pt", "best.pt", "config.json")}
    rows = read_run(run).rows
    assert main(["--resume", "--output", str(run)]) == 0
    assert {name: (run / name).read_bytes() for name in before} == before
    assert read_run(run).rows == rows
    assert "resumed in epoch 3 of 2" in capsys.readouterr().err
    result = "recalibrated.pt (epoch 2, exact class means: " if head == "implicit" else "last.pt (epoch 2)"
    assert f"result: {result}" in (run / "log.txt").read_text()
    assert (run / "recalibrated.pt").exists() == (head == "implicit")


def test_a_stopped_old_run_resumes(tmp_path: Path) -> None:
    """From the middle: an old checkpoint of the first epoch has the format of the one of the last epoch."""
    run = shutil.copytree(FIXTURES / "implicit-run", tmp_path / "run")
    saved = torch.load(run / "last.pt", weights_only=True)
    torch.save({**saved, "epoch": 2}, run / "last.pt")
    assert main(["--resume", "--quiet", "--no-recalibrate", "--output", str(run)]) == 0
    finished = read_run(run)
    assert [row["epoch"] for row in finished.rows] == [1, 2]
    assert finished.checkpoints == ("best", "last", "recalibrated")  # nothing is lost,
    assert finished.result == "last"  # but what was chosen on test data stands for nothing
    assert load_checkpoint(run / "last.pt")["format"].endswith("version 2")


def test_a_sweep_skips_old_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The implicit one lacks the table of metrics, which the first sweep writes; nothing is trained."""
    for head in HEADS:
        shutil.copytree(FIXTURES / f"{head}-run", tmp_path / f"{head}-seed0")
    flags = ["--epochs", "2", "--num-features", "16", "--grad-accum-steps", "2", "--batch-size", "128", "--seeds", "1"]
    flags += ["--temperature", "5"]  # the default of that version
    for implicit in ("done", "done before"):
        assert main(["sweep", "digits", *flags, "--output", str(tmp_path)]) == 0
        ends = {head: implicit if head == "implicit" else "done before" for head in HEADS}
        lines = capsys.readouterr().out.splitlines()
        assert set(lines) >= {f"{tmp_path}/{head}-seed0: {end}" for head, end in ends.items()}
        for head in HEADS:
            old, present = (read_run(folder) for folder in (FIXTURES / f"{head}-run", tmp_path / f"{head}-seed0"))
            assert present.rows == old.rows
