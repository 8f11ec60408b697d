"""Sweeps: every head with every seed, finished runs skipped, failures reported at the end."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path

import pytest

from nearest_etf.torchport.training.etf_train import main
from nearest_etf.torchport.training.progress import Progress
from nearest_etf.torchport.training.run.settings import Settings
from nearest_etf.torchport.training.sweep import sweep

QUICK = ["digits", "--samples-per-class", "10", "--batch-size", "50", "--epochs", "1", "--backbone", "mlp"]


def test_a_sweep_skips_finished_runs_and_continues_after_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sweep", *QUICK, "--heads", "fixed", "implicit", "--seeds", "1", "--output", str(tmp_path)]
    (tmp_path / "fixed-seed0").mkdir()
    (tmp_path / "fixed-seed0" / "notes.txt").touch()
    assert main(command) == 1
    captured = capsys.readouterr()
    assert "fixed-seed0 exists: choose another --output" in captured.err.splitlines()[-1]
    assert captured.out.splitlines()[-1].endswith("implicit-seed0: done")
    (tmp_path / "fixed-seed0" / "notes.txt").unlink()
    assert main(command) == 0
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()[-2:]] == ["done", "done before"]
    (tmp_path / "implicit-seed0" / "recalibrated.json").unlink()  # as if killed on its last steps
    assert main(command) == 0
    assert [line.split(": ")[1] for line in capsys.readouterr().out.splitlines()[-2:]] == ["done before", "done"]
    assert main([*command, "--epochs", "2"]) == 1  # a run that is extended is not one that began with two
    assert "trained with epochs = 1, not 2: choose another --output, train again (--overwrite), or extend it" in (
        capsys.readouterr().err
    )
    assert main([*command[:-5], "fixd", *command[-4:]]) == 2
    assert "did you mean 'fixed'" in capsys.readouterr().err


def test_a_stopped_sweep_prints_the_command_that_continues_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The word sweep may follow flags; the command neither replaces finished runs nor depends on a quoted name."""
    output = tmp_path / "two  runs"
    given = ["--quiet", "sweep", *QUICK, "--heads", "fixed", "learned", "--seeds", "1", "--output", str(output)]
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", lambda self: os.kill(os.getpid(), signal.SIGINT))
        assert main([*given, "--overwrite"]) == 128 + signal.SIGINT
    printed = capsys.readouterr()
    message, _, command = printed.err.strip().partition("resume with: etf-train ")
    assert (printed.out, message) == ("", "etf-train sweep: SIGINT: saved; ")
    assert shlex.split(command) == ["sweep", "--quiet", *given[2:]]
    assert main(shlex.split(command)) == 0
    assert "resumed in epoch 1" in (output / "fixed-seed0" / "log.txt").read_text()
    assert (output / "learned-seed0" / "metrics.csv").is_file()


def test_a_run_killed_before_its_table_was_written_is_concluded(tmp_path: Path) -> None:
    settings = Settings(
        data="ufm", num_classes=3, samples_per_class=2, batch_size=6, num_features=4, epochs=2, head="fixed"
    )
    folder = tmp_path / "fixed-seed0"
    assert sweep([settings], tmp_path, quiet=True, device="cpu") == {"fixed-seed0": "done"}
    table = (folder / "metrics.csv").read_bytes()
    for left in (None, table[: table.index(b"\n") + 1]):  # none, and one of fewer epochs
        (folder / "metrics.csv").unlink()
        if left is not None:
            (folder / "metrics.csv").write_bytes(left)
        (folder / "curves.png.tmp").write_bytes(b"")
        assert sweep([settings], tmp_path, quiet=True, device="cpu") == {"fixed-seed0": "done"}
        assert (folder / "metrics.csv").read_bytes() == table
        assert not (folder / "curves.png.tmp").exists()
    assert sweep([settings], tmp_path, quiet=True, device="cpu") == {"fixed-seed0": "done before"}
