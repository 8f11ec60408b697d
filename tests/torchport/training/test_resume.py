"""A run killed at any moment and resumed ends with the same bits; and other ends of a run."""

from __future__ import annotations

import math
import os
import random
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nearest_etf.torchport.collapse import NeuralCollapseMeter
from nearest_etf.torchport.training import assembly
from nearest_etf.torchport.training.etf_train import main
from nearest_etf.torchport.training.optim import build_optimizer
from nearest_etf.torchport.training.progress import Interrupt, Progress, Stopped
from nearest_etf.torchport.training.run.checkpoint import load_checkpoint, trained_epochs
from nearest_etf.torchport.training.run.folder import RunFolder
from nearest_etf.torchport.training.run.reading import read_rows, read_run
from nearest_etf.torchport.training.run.settings import Settings, SettingsError
from nearest_etf.torchport.training.train import TrainingError, train

TINY = Settings(
    val_fraction=0.2,
    samples_per_class=20,
    batch_size=40,
    epochs=3,
    num_features=16,
    crop_padding=1,
    lr=0.05,
    schedule="cosine",
)  # five steps an epoch
HEADS = ("learned", "fixed", "implicit")

# Every run is a fork of one process that has imported torch and computed nothing.  A run is killed at its nth step,
# at its nth evaluation, or at its nth renaming of a finished temporary file: between the checkpoint before an
# evaluation, the metrics, best.pt and last.pt of an epoch.
KILLED_RUNS = """
import os, signal, sys
import sklearn.datasets, torch, torch._dynamo  # once, for all forks
from dataclasses import replace
from nearest_etf.torchport.training import progress, train as loop
from nearest_etf.torchport.training.run.settings import settings_from

torch.set_num_threads(1)
torch.optim.SGD([torch.zeros(1, requires_grad=True)])
folder, settings, heads, points = sys.argv[1], *map(eval, sys.argv[2:])

def run(output, settings, resume=False, event=None, count=0):
    if os.fork():
        return os.wait()[1]
    def lethal(function):
        def count_down(*arguments):
            nonlocal count
            count -= 1
            if count == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)
        return count_down
    if event == "step":
        progress.Progress.advance = lethal(progress.Progress.advance)
    elif event == "evaluation":
        loop.evaluate_splits = lethal(loop.evaluate_splits)
    elif event == "rename":
        os.replace = lethal(os.replace)
    loop.train(settings, output, resume=resume)
    os._exit(0)

for head in heads:
    chosen = settings_from({**settings, "head": head})
    assert run(f"{folder}/{head}", chosen) == 0
    for event, count in points:
        output = f"{folder}/{head}-{event}{count}"
        assert run(output, chosen, event=event, count=count) == signal.SIGKILL
        assert run(output, chosen, resume=True) == 0
"""


def without_times(run: Path) -> list[dict[str, float]]:
    times = ("seconds", "images_per_second", "solver_milliseconds")
    return [{k: v for k, v in row.items() if k not in times} for row in read_rows(run)]


def assert_equal(ours: object, theirs: object, where: str = "") -> None:
    if isinstance(ours, dict):
        assert isinstance(theirs, dict)
        assert ours.keys() == theirs.keys(), where
        for key, value in ours.items():
            assert_equal(value, theirs[key], f"{where}.{key}")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where  # type: ignore[arg-type]
    else:
        assert ours == theirs, where


def test_killed_runs_end_with_the_same_bits(tmp_path: Path) -> None:
    anywhere = random.Random(5).sample(range(6, 15), 2)  # steps of the second and third epoch
    points = [*(("step", step) for step in anywhere), *(("rename", n) for n in (4, 5, 6, 8)), ("evaluation", 2)]
    arguments = [str(tmp_path), repr(TINY.to_dict()), repr(HEADS), repr(points)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED_RUNS, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for head in HEADS:
        whole = tmp_path / head
        assert [row["epoch"] for row in read_rows(whole)] == [1, 2, 3]
        for event, count in points:
            resumed = tmp_path / f"{head}-{event}{count}"
            assert without_times(resumed) == without_times(whole), resumed
            for name in ("last.pt", "best.pt"):
                assert_equal(load_checkpoint(resumed / name), load_checkpoint(whole / name), f"{resumed.name}/{name}")


@pytest.mark.parametrize("step", [8, 10])
def test_a_signal_saves_in_the_middle_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    run = tmp_path / "a  run's"
    train(TINY, tmp_path / "whole")
    advance, steps = Progress.advance, iter(range(1, 1000))

    def interrupting(self: Progress) -> None:
        advance(self)
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "advance", interrupting)
    with pytest.raises(Stopped, match=str(128 + signal.SIGTERM)) as stopped:
        train(TINY, run, data_dir=tmp_path / "no data", device="cpu", recalibrate=False)
    saved, _, command = stopped.value.message.partition("resume with: etf-train ")
    assert saved == "SIGTERM: saved; "
    given = f"--data-dir {shlex.quote(str(tmp_path / 'no data'))} --device cpu --no-recalibrate"
    assert command == f"--resume --output {shlex.quote(str(run))} {given}"
    epochs = [line.split(",")[0] for line in (run / "metrics.csv").read_text().splitlines()]
    assert epochs == ["epoch", "1"]  # after the last step of an epoch, its evaluation is left to the resumed run
    assert (run / "curves.png").exists()
    found = load_checkpoint(run / "last.pt")
    assert (found["epoch"], found["step"], found["steps_per_epoch"], found["evaluated"]) == (2, step - 5, 5, False)
    assert trained_epochs(found) == ((2, False) if step == 10 else (1, True))
    assert main(shlex.split(command)) == 0
    assert not (run / "recalibrated.pt").exists()
    log = (run / "log.txt").read_text().splitlines()
    assert log[0].startswith(
        "digits: 200 training, 287 validation and 360 test images 8x8x1, K = 10; small-cnn, d = 16, implicit head"
    )
    assert f"resumed in epoch 2 of 3 after {step - 5} of 5 steps" in log
    assert without_times(run) == without_times(tmp_path / "whole")
    ours, theirs = (load_checkpoint(path / "last.pt") for path in (run, tmp_path / "whole"))
    assert_equal(ours, theirs)


@pytest.mark.parametrize("batch", [1, 2, 5, 11])  # in an evaluation on training data, on validation data, …, at the end
def test_a_signal_stops_an_evaluation_between_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], batch: int
) -> None:
    train(TINY, tmp_path / "whole")
    update, batches = NeuralCollapseMeter.update, iter(range(1, 1000))

    def interrupting(self: NeuralCollapseMeter, features: torch.Tensor, labels: torch.Tensor) -> None:
        update(self, features, labels)
        if next(batches) == batch:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(NeuralCollapseMeter, "update", interrupting)
    with pytest.raises(Stopped, match=str(128 + signal.SIGINT)):
        train(TINY, tmp_path / "run")
    assert next(batches) == batch + 1
    assert "SIGINT: stopping after this batch (Ctrl-C again ends at once)\n" in capfd.readouterr().err
    assert len(read_rows(tmp_path / "run")) == (batch - 1) // 3
    train(TINY, tmp_path / "run", resume=True)
    assert without_times(tmp_path / "run") == without_times(tmp_path / "whole")
    for name in ("last.pt", "best.pt", "recalibrated.pt"):
        assert_equal(load_checkpoint(tmp_path / "run" / name), load_checkpoint(tmp_path / "whole" / name), name)


def test_a_second_ctrl_c_ends_at_once_but_a_second_sigterm_does_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with Interrupt(RunFolder(tmp_path, TINY)) as interrupt:
        for _ in range(2):  # one to the process, one to its group, as `timeout` sends them
            signal.raise_signal(signal.SIGTERM)
        assert interrupt.agreed()
        stopped = interrupt.stop()
        assert stopped.code == 128 + signal.SIGTERM
        again = f"etf-train --resume --output {tmp_path}"
        assert stopped.message == f"SIGTERM: stopped before the first checkpoint; start again with: {again}"
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err.count("stopping") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_ignored_stays_so(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with Interrupt(RunFolder(tmp_path, TINY)) as interrupt:
            signal.raise_signal(number)
            assert not interrupt.agreed()
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_replacing_run_stopped_before_its_first_checkpoint_leaves_the_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command with --resume would resume the earlier run."""
    once = replace(TINY, epochs=1, head="fixed")
    train(once, tmp_path / "run")
    before = load_checkpoint(tmp_path / "run" / "last.pt")
    update = NeuralCollapseMeter.update

    def interrupting(self: NeuralCollapseMeter, features: torch.Tensor, labels: torch.Tensor) -> None:
        update(self, features, labels)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(NeuralCollapseMeter, "update", interrupting)
    with pytest.raises(Stopped) as stopped:  # in the evaluation before the first step
        train(replace(once, start="aligned"), tmp_path / "run", overwrite=True)
    kept = f"stopped before the first checkpoint; {tmp_path / 'run'} keeps its earlier run"
    assert stopped.value.message == f"SIGINT: {kept}"
    assert_equal(load_checkpoint(tmp_path / "run" / "last.pt"), before)


@pytest.mark.parametrize("head", ["learned", "implicit"])
def test_an_extended_run_equals_one_with_as_many_epochs(tmp_path: Path, head: str) -> None:
    settings = replace(TINY, head=head, schedule="none")
    train(settings, tmp_path / "whole")
    train(replace(settings, epochs=2), tmp_path / "run")
    train(replace(settings, workers=0), tmp_path / "run", resume=True)
    assert "after 0 of 5 steps; extended from 2 epochs" in (tmp_path / "run" / "log.txt").read_text()
    assert read_run(tmp_path / "run").settings == replace(settings, workers=0).to_dict()
    assert without_times(tmp_path / "run") == without_times(tmp_path / "whole")
    for name in ("last.pt", "best.pt"):
        ours, theirs = (load_checkpoint(tmp_path / run / name) for run in ("run", "whole"))
        assert_equal({**ours, "settings": {}}, {**theirs, "settings": {}}, name)
    with pytest.raises(SettingsError, match="was trained with epochs = 3, not 2"):
        train(replace(settings, epochs=2), tmp_path / "run", resume=True)


def test_the_log_reports_an_extended_schedule(tmp_path: Path) -> None:
    train(replace(TINY, epochs=1, head="fixed"), tmp_path / "run")
    train(replace(TINY, epochs=2, head="fixed"), tmp_path / "run", resume=True)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "extended from 1 epochs, with the rest of a cosine schedule over 2" in log


@pytest.mark.parametrize("head", ["learned", "implicit"])
def test_a_diverging_run_keeps_the_last_good_checkpoint(tmp_path: Path, head: str) -> None:
    settings = {**TINY.to_dict(), "head": head, "backbone": "mlp", "lr": 1e30, "schedule": "none"}
    with pytest.raises(TrainingError, match="loss is not finite in epoch 1"):
        train(Settings(**settings), tmp_path / "run")
    assert not (tmp_path / "run" / "last.pt").exists()
    train(replace(TINY, epochs=1), tmp_path / "good")
    with pytest.raises(TrainingError):  # before it has a checkpoint: the run that it was to replace is back
        train(Settings(**settings), tmp_path / "good", overwrite=True)
    assert len(read_rows(tmp_path / "good")) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "run"]


@pytest.mark.parametrize("signalled", [False, True])
def test_a_later_divergence_leaves_the_last_good_checkpoint_and_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signalled: bool
) -> None:
    advance, steps = Progress.advance, iter(range(1, 1000))
    optimizers: list[torch.optim.Optimizer] = []

    def breaking(self: Progress) -> None:
        advance(self)
        step = next(steps)
        if step == 7:
            for parameter in optimizers[0].param_groups[0]["params"]:
                parameter.data.fill_(math.nan)
            if signalled:
                os.kill(os.getpid(), signal.SIGTERM)

    def remembered(settings: Settings, model: torch.nn.Module) -> torch.optim.Optimizer:
        optimizers.append(build_optimizer(settings, model))
        return optimizers[0]

    train(Settings(**{**TINY.to_dict(), "epochs": 1, "schedule": "none"}), tmp_path / "one")
    monkeypatch.setattr(Progress, "advance", breaking)
    monkeypatch.setattr(assembly, "build_optimizer", remembered)
    # After a signal the weights are looked at, else the next step's loss.
    found = f"loss is not finite in epoch 2, step {2 if signalled else 3}: stopped; the checkpoints of"
    with pytest.raises(TrainingError, match=found):
        train(Settings(**{**TINY.to_dict(), "schedule": "none"}), tmp_path / "run")
    ours, theirs = (load_checkpoint(tmp_path / name / "last.pt") for name in ("run", "one"))
    assert_equal(ours["model"], theirs["model"])
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 2
