"""Two processes with the same global batch compute what one process does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nearest_etf.torchport.training.checkpoint import load_checkpoint
from nearest_etf.torchport.training.run_folder import read_rows
from nearest_etf.torchport.training.settings import Settings
from nearest_etf.torchport.training.train import train

# Twenty steps; twenty images, a process's half of a batch, lack one of the ten classes most of the time.
SETTINGS = Settings(
    backbone="mlp", samples_per_class=40, batch_size=40, epochs=2, num_features=24, crop_padding=1, lr=0.05
)
IN_PROCESSES = """
import json, sys, torch
from nearest_etf.torchport.training.settings import settings_from
from nearest_etf.torchport.training.train import train
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
for head in ("learned", "fixed", "implicit"):
    train(settings_from({**json.loads(sys.argv[2]), "head": head}), f"{sys.argv[1]}/{head}")
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-W", "ignore", "-c", IN_PROCESSES, str(folder), json.dumps(SETTINGS.to_dict())]
    ranks = [
        subprocess.Popen(command, env={**environment, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=300)
        assert rank.returncode == 0, errors
    return folder


@pytest.fixture
def float64() -> Iterator[None]:
    """Leave rounding out of it: twenty steps through the solver amplify that of float32 to 1e-5."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("head", ["learned", "fixed", "implicit"])
def test_two_processes_are_one(two_processes: Path, tmp_path: Path, head: str, float64: None) -> None:
    train(Settings(**{**SETTINGS.to_dict(), "head": head}), tmp_path / "one")
    ours, theirs = (load_checkpoint(path / "last.pt")["model"] for path in (two_processes / head, tmp_path / "one"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-6, atol=1e-6)
    for row, other in zip(read_rows(two_processes / head), read_rows(tmp_path / "one"), strict=True):
        for key in ("running_loss", "running_accuracy", "train_loss", "test_accuracy", "train_nc1"):
            assert row[key] == pytest.approx(other[key], rel=1e-5, abs=1e-6), key
