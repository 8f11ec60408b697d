"""The command `etf-verify`: its output, its files and its exit statuses."""

import json
import sys

import pytest

from nearest_etf.reference.claims import Claim
from nearest_etf.reference.etf_verify import main
from nearest_etf.reference.verify import CLAIMS

SMALL = ["--sizes", "5x3"]


def test_command_prints_the_table_and_writes_json_and_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    report, picture = tmp_path / "checks.json", tmp_path / "convergence.png"
    assert main([*SMALL, "--seeds", "1", "--json", str(report), "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert f"{len(CLAIMS)} of {len(CLAIMS)} checks passed" in out
    figures = json.loads(report.read_text())
    assert figures["passed"]
    assert len(figures["checks"]) == len(CLAIMS)
    assert set(figures["provenance"]["versions"]) >= {"numpy", "scipy"}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_quiet_prints_nothing_and_still_writes_the_file(tmp_path, capsys):
    report = tmp_path / "checks.json"
    assert main([*SMALL, "--quiet", "--json", str(report)]) == 0
    assert capsys.readouterr() == ("", "")
    assert json.loads(report.read_text())["passed"]


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_a_failed_check_is_status_one(quiet, monkeypatch, capsys):
    impossible = Claim("impossible", -1.0, lambda case: 0.0)
    monkeypatch.setattr("nearest_etf.reference.verify.CLAIMS", (*CLAIMS[:1], impossible))
    assert main([*SMALL, *quiet]) == 1
    out = capsys.readouterr().out
    assert out == "" if quiet else "FAILED  impossible: 0 at (5, 3) paper" in out


def test_an_unknown_picture_format_is_refused_before_the_checks(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main([*SMALL, "--plot", str(tmp_path / "convergence.doc")]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert "ends in '.doc'; expected a picture" in error


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([*SMALL, "--plot", str(tmp_path / "convergence.png")]) == 2
    assert "pip install 'nearest-etf[train]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "5by3"], "expected DxK"),
        (["--sizes", f"{10**20}x3"], "is too large"),
        (["--seeds", str(10**20)], "is too large"),
        (["--sizes", "1x3"], "at least K−1 features"),
        (["--sizes", "3x1"], "K ≥ 2 classes"),
        (["--seeds", "0"], "whole number of at least 1"),
        (["--json", "/no/such/folder/x.json"], "does not exist"),
        (["--seed", "2"], "did you mean '--seeds'"),
        (["--dtype", "float16"], "invalid choice"),
    ],
)
def test_usage_errors_are_one_line_and_status_two(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
