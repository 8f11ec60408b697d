"""The command etf-report: what it prints, writes and refuses."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nearest_etf.torchport.training.etf_report import main
from nearest_etf.torchport.training.report.groups import group_runs
from nearest_etf.torchport.training.run.reading import read_run

HEADS = ("learned", "fixed", "implicit")


def test_tables(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*runs, "--aggregate", str(tmp_path / "tables"), "--at", "3", "6"]) == 0
    printed = capsys.readouterr().out
    assert all(head in printed for head in HEADS)
    assert "epochs to 95 %" in printed
    rows = list(csv.DictReader((tmp_path / "tables/metrics.csv").open()))
    (row,) = [r for r in rows if (r["head"], r["epoch"], r["metric"]) == ("fixed", "2", "train_nc1")]
    group = group_runs([read_run(run) for run in runs])[1]
    assert float(row["max"]) == pytest.approx(group.values("train_nc1")[:, 1].max(), rel=1e-6)
    assert row["runs"] == "2"
    accuracy = (tmp_path / "tables/accuracy.md").read_text()
    assert "| head | test top-1 % at epoch 3 | test top-1 % at epoch 6 |" in accuracy
    assert len(list((tmp_path / "tables").iterdir())) == 7


def test_quiet(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = [str(tmp_path / "report.html"), str(tmp_path / "report.pdf")]
    assert main([runs[0], "--quiet", "--aggregate", str(tmp_path / "tables"), "--to", *targets]) == 0
    assert capsys.readouterr() == ("", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.pdf", "tables"]


def test_a_report_of_measured_runs_needs_no_torch(runs: list[str], tmp_path: Path) -> None:
    script = f"""
import sys
from nearest_etf.torchport.training.etf_report import main
assert main([{runs[0]!r}, "--to", {str(tmp_path / "report.html")!r}]) == 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_usage_errors_are_one_line(
    write_run: Callable[..., Path], runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = write_run(tmp_path, "fixed", 0)
    (broken / "config.json").write_text("{")
    empty = write_run(tmp_path, "fixed", 1)
    (empty / "metrics.jsonl").write_text("")
    for arguments, message in (
        ([str(tmp_path)], "is not a run folder"),
        ([str(broken)], "is damaged"),
        ([str(empty)], "no metrics yet"),
        ([runs[0], "--to", str(tmp_path / "report.docx")], "ends in .html"),
        ([runs[0], "--to", str(tmp_path / "absent/report.html")], "there is no folder"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
