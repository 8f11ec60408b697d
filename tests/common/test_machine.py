"""Provenance: plain values, and a commit only from this project's own repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nearest_etf.common import machine
from nearest_etf.common.machine import available_cores, commit, processor, provenance

GIT = shutil.which("git")
needs_git = pytest.mark.skipif(GIT is None, reason="no git here")


def test_provenance_is_plain_values() -> None:
    record = provenance()
    assert json.loads(json.dumps(record)) == record
    assert set(record["versions"]) >= {"nearest-etf", "numpy"}
    assert record["device"] == processor()
    assert record["threads"] >= 1


def test_provenance_uses_torch_only_if_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert provenance()["threads"] == available_cores()
    cuda = SimpleNamespace(get_device_name=lambda device: f"a GPU, {device}")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, get_num_threads=lambda: 3))
    record = provenance("cuda:1")
    assert (record["device"], record["threads"]) == ("a GPU, cuda:1", 3)
    assert provenance("cpu")["device"] == processor()


def test_cores_respect_the_affinity_of_the_process() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
    if not hasattr(os, "sched_setaffinity"):
        return
    script = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from nearest_etf.common.machine import available_cores
print(available_cores())
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "1\n"


def test_cores_on_systems_without_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None
    assert provenance()["commit"] is None


def _copy(folder: Path, monkeypatch: pytest.MonkeyPatch, place: str = "site-packages/nearest_etf/common") -> Path:
    """A copy of the module, installed below `folder`."""
    copied = folder / place / "machine.py"
    copied.parent.mkdir(parents=True)
    shutil.copy(machine.__file__, copied)
    monkeypatch.setattr(machine, "__file__", str(copied))
    return copied


def _git(folder: Path, *words: str) -> None:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True, env=environment)


@needs_git
def test_outside_any_checkout_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _copy(tmp_path, monkeypatch)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() is None


@needs_git
@pytest.mark.parametrize("committed", [["thesis.tex"], ["thesis.tex", "site-packages"]])
def test_in_another_repository_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, committed: list[str]
) -> None:
    _copy(tmp_path, monkeypatch)
    (tmp_path / "thesis.tex").touch()
    _git(tmp_path, "init")
    _git(tmp_path, "add", *committed)
    _git(tmp_path, "commit", "-m", "Thesis")
    assert commit() is None


@needs_git
def test_in_its_own_checkout_there_is_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = _copy(tmp_path, monkeypatch, "common")
    _git(tmp_path, "init")
    _git(tmp_path, "add", str(copied))
    _git(tmp_path, "commit", "-m", "Code")
    assert re.fullmatch("[0-9a-f]{7,}", commit() or "")
    copied.write_text("# changed")
    assert re.fullmatch("[0-9a-f]{7,}-dirty", commit() or "")
