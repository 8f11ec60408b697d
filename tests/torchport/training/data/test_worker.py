"""Worker processes ignore the signals of their group, and end with the process that started them."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import os, signal
from nearest_etf.torchport.training.data.worker import ignore_signals
ignore_signals()
os.kill(os.getpid(), signal.{name})
print("alive")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_ignore_the_signals_of_their_group(number: signal.Signals) -> None:
    script = SCRIPT.format(name=number.name)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")
