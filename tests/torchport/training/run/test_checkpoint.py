"""Checkpoints: written whole, read by version."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nearest_etf import __version__
from nearest_etf.torchport.training.run.checkpoint import (
    CheckpointError,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", {"epoch": 3, "model": {"weight": torch.ones(2)}})
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert loaded["epoch"] == 3
    assert torch.equal(loaded["model"]["weight"], torch.ones(2))
    assert loaded["format"] == "nearest-etf checkpoint, version 2"
    assert loaded["written_by"] == __version__
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(tmp_path / "last.pt", {"epoch": lambda: 4})
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_version_1_is_read_by_its_old_names(tmp_path: Path) -> None:
    old = {
        "format": "nearest-etf checkpoint, version 1",
        "settings": {"optimiser": "sgd", "lr": 0.1},
        "optimiser": {"state": {}},
        "model": {"head.means.means": torch.ones(2), "backbone.means.means": torch.zeros(2)},
    }
    torch.save(old, tmp_path / "old.pt")
    loaded = load_checkpoint(tmp_path / "old.pt")
    assert loaded["settings"] == {"optimizer": "sgd", "lr": 0.1}
    assert loaded["optimizer"] == {"state": {}}
    assert list(loaded["model"]) == ["head.running.class_means", "backbone.means.means"]


def test_a_newer_version_is_refused_with_the_one_that_reads_it(tmp_path: Path) -> None:
    torch.save({"format": "nearest-etf checkpoint, version 3", "written_by": "0.9.0"}, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match=r"new\.pt has format 3, newer than 2: update nearest-etf to 0\.9\.0"):
        load_checkpoint(tmp_path / "new.pt")


@pytest.mark.parametrize("contents", [[1, 2], {"format": "another"}, {"weights": 1}, torch.ones(2)])
def test_other_files_of_torch_are_refused(tmp_path: Path, contents: object) -> None:
    torch.save(contents, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt is of another kind: expected a checkpoint of etf-train"):
        load_checkpoint(tmp_path / "other.pt")


def test_random_state_is_put_back() -> None:
    state = random_state()
    first = torch.rand(3)
    set_random_state(state)
    assert torch.equal(torch.rand(3), first)
