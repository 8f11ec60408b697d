"""Checkpoints: written whole, read by version."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from nearest_etf import __version__
from nearest_etf.torchport.training.run.checkpoint import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)


def test_a_checkpoint_is_read_as_written(tmp_path: Path) -> None:
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


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no devices here")
def test_a_device_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "last.pt").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"cannot be read \(it is a pipe or a device\): expected a checkpoint"):
        load_checkpoint(tmp_path / "last.pt")


def test_one_changed_bit_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"epoch": 3, "model": {"weight": torch.arange(4.0)}})
    data = path.read_bytes()
    for position in range(0, len(data), 7):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"last\.pt is damaged .*expected a checkpoint of etf-train"):
            load_checkpoint(path)
    path.write_bytes(data.replace(b"nearest-etf sha256", b"nearest-etf sha257"))
    with pytest.raises(CheckpointError, match="its seal is missing"):
        load_checkpoint(path)
    path.write_bytes(data)
    assert torch.equal(load_checkpoint(path)["model"]["weight"], torch.arange(4.0))
    assert torch.equal(torch.load(path, weights_only=True)["model"]["weight"], torch.arange(4.0))  # by torch alone


def test_weights_of_an_unsealed_checkpoint_are_checked_by_their_crc(tmp_path: Path) -> None:
    weight = torch.arange(4.0) + 0.123
    torch.save({"format": "nearest-etf checkpoint, version 2", "model": {"weight": weight}}, tmp_path / "old.pt")
    data = (tmp_path / "old.pt").read_bytes()
    assert torch.equal(load_checkpoint(tmp_path / "old.pt")["model"]["weight"], weight)
    at = data.index(weight.numpy().tobytes())
    (tmp_path / "old.pt").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(CheckpointError, match=r"old\.pt is damaged \(the CRC-32 of .*data/0 is wrong\)"):
        load_checkpoint(tmp_path / "old.pt")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", b"\0" * 10**6)
    with pytest.raises(CheckpointError, match=r"bomb\.pt is damaged \(it has compressed members\)"):
        load_checkpoint(tmp_path / "bomb.pt")
    for contents in (b"", b"\x80\x02}q\0."):
        (tmp_path / "none.pt").write_bytes(contents)
        with pytest.raises(CheckpointError, match=r"none\.pt is damaged"):
            load_checkpoint(tmp_path / "none.pt")


def test_resuming_requires_a_complete_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", {"epoch": 3, "model": {}})
    with pytest.raises(CheckpointError, match=r"last\.pt is damaged \(\w+ is missing\)"):
        load_checkpoint(tmp_path / "last.pt", resuming=True)
    save_checkpoint(tmp_path / "last.pt", {"model": {"weight": [1.0]}})
    with pytest.raises(CheckpointError, match=r"\(model\.weight is list of 1, expected Tensor\)"):
        load_checkpoint(tmp_path / "last.pt")
