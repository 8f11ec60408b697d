"""Two processes with the same global batch compute the same as one, and stop and resume together.

How near they are: rounding differs, since the two halves of a batch are summed in another order, and training
amplifies it, as it amplifies any change. At a rate of 0.05 with four images per class the implicit head's twenty steps
do so by 1e3, whether processes share a batch, its rows change places or one weight moves by its last bit; float32
then ends up 1e-4 apart, and 4e-3 where a ReLU happens to switch. It is the same with a condition number of 14
(gauge-free) and of 450 (paper), and 30 times less without the gradient through the solution, so it is the training
that does it. At a hundredth of that rate float32 stays within 1e-6.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nearest_etf.torchport.heads import default_temperature
from nearest_etf.torchport.simplex import centred
from nearest_etf.torchport.training import assembly
from nearest_etf.torchport.training import train as loop
from nearest_etf.torchport.training.data.load import training_data
from nearest_etf.torchport.training.data.loaders import make_loader
from nearest_etf.torchport.training.evaluate import evaluate
from nearest_etf.torchport.training.model import build_model, load_model
from nearest_etf.torchport.training.run.checkpoint import load_checkpoint
from nearest_etf.torchport.training.run.reading import read_rows
from nearest_etf.torchport.training.run.settings import Settings

HEADS = ("learned", "fixed", "implicit")
# Twenty steps without batch statistics.
SETTINGS = Settings(
    backbone="mlp", samples_per_class=40, batch_size=40, epochs=2, num_features=24, crop_padding=1, lr=0.05
)
GENTLE = Settings(**{**SETTINGS.to_dict(), "lr": 5e-4})


def in_float64(build_model: Callable[..., torch.nn.Module]) -> Callable[..., torch.nn.Module]:
    """The same model, computing in float64."""

    def build(*arguments: object) -> torch.nn.Module:
        model = build_model(*arguments).double()
        model.get_submodule("backbone").register_forward_pre_hook(lambda _, images: images[0].double())
        return model

    return build


# Runs of the given settings in float32 or float64, from the same weights. A run that is to be interrupted sends
# itself a signal after a step, from the second process only.
IN_PROCESSES = f"""
from __future__ import annotations
import json, os, signal, sys, torch, torch.distributed
from nearest_etf.torchport.training import assembly, progress, train as loop
from nearest_etf.torchport.training.run.settings import settings_from
torch.set_num_threads(1)
{inspect.getsource(in_float64)}
advance = progress.Progress.advance
def interrupted(step):
    def counting(self):
        nonlocal step
        advance(self)
        step -= 1
        if step == 0 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
    return counting
build_model = assembly.build_model
for output, settings, double, resume, step in json.loads(sys.argv[1]):
    assembly.build_model = in_float64(build_model) if double else build_model
    progress.Progress.advance = interrupted(step)
    try:
        loop.train(settings_from(settings), output, resume=resume, device="cpu")
        assert step == 0
    except progress.Stopped as stopped:
        assert step and stopped.code == 128 + signal.SIGTERM, stopped.message
        assert "resume with: torchrun --nproc-per-node 2 -m nearest_etf.torchport.training.etf_train --resume" in str(
            stopped.message
        )
torch.distributed.destroy_process_group()  # its threads may abort the process at exit
"""


# A network that draws random numbers.
DRAWING = """
from torch import nn
def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Dropout(0.5))
"""

# Name of the folder, settings, whether in float64, whether resumed, step after which a signal comes (0: never).
Run = tuple[str, dict[str, object], bool, bool, int]


def run_in_two(folder: Path, runs: list[Run]) -> None:
    """Runs, one after the other, in two processes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command = [*launch, sys.executable, "-W", "ignore", "-c", IN_PROCESSES, json.dumps(runs)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs of this file in two processes, started once because starting takes most of the time."""
    folder = tmp_path_factory.mktemp("two")
    runs: list[Run] = []
    for head in HEADS:
        runs += [(f"{head}-float64", {**SETTINGS.to_dict(), "head": head}, True, False, 0)]
        runs += [(f"{head}-float32", {**GENTLE.to_dict(), "head": head}, False, False, 0)]
    small_cnn = {**SETTINGS.to_dict(), "backbone": "small-cnn"}
    runs += [("whole", small_cnn, False, False, 0)]
    for step in (3, 10, 13):
        runs += [(f"stopped{step}", small_cnn, False, False, step), (f"stopped{step}", small_cnn, False, True, 0)]
    (folder / "drawing.py").write_text(DRAWING)
    drawing = {**small_cnn, "backbone": f"{folder / 'drawing.py'}:network", "mixup": 0.8, "epochs": 1}
    runs += [("drawn", drawing, False, False, 0)]
    runs += [("drawn-stopped", drawing, False, False, 3), ("drawn-stopped", drawing, False, True, 0)]
    run_in_two(folder, runs)
    return folder


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-9), ("float32", 1e-6)])
def test_two_processes_compute_the_same_as_one(
    two_processes: Path, tmp_path: Path, head: str, precision: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if precision == "float64":
        monkeypatch.setattr(assembly, "build_model", in_float64(build_model))
    settings = SETTINGS if precision == "float64" else GENTLE
    loop.train(Settings(**{**settings.to_dict(), "head": head}), tmp_path / "one", device="cpu")
    two = two_processes / f"{head}-{precision}"
    ours, theirs = (load_checkpoint(path / "last.pt")["model"] for path in (two, tmp_path / "one"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        other, slack = theirs[name], 1.0
        if name == "head.frame":
            # The direction U·1 has no part in the classifier, and only delta pins it: 450 times less than the rest.
            torch.testing.assert_close(value, other, rtol=0, atol=100 * tolerance)
            value, other = centred(value), centred(other)
        elif name == "head.bias":
            slack = default_temperature(10)  # the norm of the features that it is measured against
        torch.testing.assert_close(value, other, rtol=tolerance, atol=slack * tolerance, msg=(name + ": {}").format)
    for row, other_row in zip(read_rows(two), read_rows(tmp_path / "one"), strict=True):
        for key in ("running_loss", "running_accuracy", "train_loss", "test_loss", "test_accuracy"):
            assert row[key] == pytest.approx(other_row[key], rel=tolerance, abs=tolerance), key
        assert row["train_nc1"] == pytest.approx(other_row["train_nc1"], rel=100 * tolerance)  # inverts a covariance


def test_each_process_lacks_classes_most_of_the_time() -> None:
    data = training_data(SETTINGS)
    absent = [0, 0]
    for rank in (0, 1):
        loader = make_loader(data.train, data, SETTINGS, device=torch.device("cpu"), rank=rank, world_size=2)
        absent[rank] = sum(len(labels.unique()) < 10 for epoch in (1, 2) for _, labels in loader.epoch(epoch))
    assert min(absent) > 10  # of twenty steps


def test_metrics_are_those_of_the_saved_model(two_processes: Path) -> None:
    # Each process gathers batch-norm statistics of its own; those of the first one are saved.
    model, settings = load_model(two_processes / "whole", "last")
    data = training_data(settings)
    loader = make_loader(data.train, data, settings, device=torch.device("cpu"))
    figures = evaluate(model, loader.ordered()).prefixed("train")
    row = read_rows(two_processes / "whole")[-1]
    assert {name: row[name] for name in figures} == pytest.approx(figures, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("step", [3, 10, 13])
def test_processes_stop_together_and_resume_with_the_same_bits(two_processes: Path, step: int) -> None:
    whole, stopped = two_processes / "whole", two_processes / f"stopped{step}"
    ours, theirs = (load_checkpoint(path / "last.pt") for path in (stopped, whole))
    # Bit by bit: two summands have one sum, whatever their order.
    torch.testing.assert_close(ours["model"], theirs["model"], rtol=0, atol=0)
    torch.testing.assert_close(ours["optimizer"]["state"], theirs["optimizer"]["state"], rtol=0, atol=0)
    log = (stopped / "log.txt").read_text()
    # The signal reached the other process one step later; after the last step of an epoch, in its evaluation.
    where = "epoch 1 of 2 after 10" if step == 10 else f"epoch {step // 10 + 1} of 2 after {step % 10 + 1}"
    assert f"resumed in {where} of 10 steps" in log
    for row, other in zip(read_rows(stopped), read_rows(whole), strict=True):
        for name in row.keys() - {"seconds", "images_per_second", "solver_milliseconds"}:
            assert row[name] == pytest.approx(other[name], rel=1e-12), name  # sums were taken in another order


def test_processes_that_draw_random_numbers_resume_with_their_own(two_processes: Path) -> None:
    ours, theirs = (load_checkpoint(two_processes / name / "last.pt") for name in ("drawn-stopped", "drawn"))
    torch.testing.assert_close(ours["model"], theirs["model"], rtol=0, atol=0)
    torch.testing.assert_close(ours["optimizer"]["state"], theirs["optimizer"]["state"], rtol=0, atol=0)
