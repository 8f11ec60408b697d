"""One process at a time writes a run folder: a second one is refused with its name, and a killed one blocks nobody."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nearest_etf.torchport.training.run.folder import RunFolder
from nearest_etf.torchport.training.run.lock import FolderLock
from nearest_etf.torchport.training.run.reading import RunError
from nearest_etf.torchport.training.run.settings import Settings

TINY = Settings(epochs=3)
HOLDING = """
import sys, time, os
from pathlib import Path
from nearest_etf.torchport.training.run.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print(lock.take(), flush=True)
if len(sys.argv) > 2 and os.fork() == 0:  # a worker that outlives the process
    time.sleep(float(sys.argv[2]))
    os._exit(0)
time.sleep(60)
"""


def holder(folder: Path, *words: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDING, folder, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "\n"
    return process


def test_a_second_process_is_refused_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    process = holder(tmp_path, "1")
    try:
        where = (
            f"{tmp_path} is in use by process {process.pid} on {socket.gethostname()}: wait until it ends, or choose"
        )
        for attempt in (FolderLock(tmp_path).take, FolderLock(tmp_path).look):
            with pytest.raises(RunError) as refused:
                attempt()
            assert str(refused.value).startswith(where)
        with pytest.raises(RunError, match="is in use by process"):
            RunFolder(tmp_path, TINY, overwrite=True)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (tmp_path / ".lock").exists()
    began = time.monotonic()
    lock = FolderLock(tmp_path)
    lock.look()
    assert lock.take() == ""
    assert time.monotonic() - began < 10
    assert (tmp_path / ".lock").read_text() == f"{os.getpid()} {socket.gethostname()}\n"
    lock.release()
    assert not list(tmp_path.iterdir())


def test_two_new_runs_in_one_folder(tmp_path: Path) -> None:
    first, second = (RunFolder(tmp_path / "run", TINY) for _ in range(2))
    first.begin()
    with pytest.raises(RunError, match=f"run is in use by process {os.getpid()} on"):
        second.begin()
    first.write_config(TINY, {"name": "digits"}, {})
    with first:
        pass
    with pytest.raises(RunError, match=r"another process has written to .*run meanwhile: start again"):
        second.begin()
    assert (tmp_path / "run" / "config.json").exists()
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_file_system_without_locks_is_written_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FolderLock) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(FolderLock, "_acquire", refuse)
    folder = RunFolder(tmp_path / "run", TINY)
    (note,) = folder.begin()
    assert "run cannot be locked ([Errno 95] Operation not supported): make sure that no other process" in note
    with folder:
        folder.append({"epoch": 1})


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="no users here")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    def attempt() -> str:
        with pytest.raises(RunError) as refused:
            FolderLock(tmp_path).take()
        return str(refused.value)

    tmp_path.chmod(0o555)
    reading_end, writing_end = os.pipe()
    if (child := os.fork()) == 0:  # root may write anywhere
        try:
            if os.getuid() == 0:
                for parent in (tmp_path.parent, tmp_path.parent.parent):
                    parent.chmod(0o755)
                os.setuid(65534)
            os.write(writing_end, attempt().encode())
        finally:
            os._exit(0)
    os.close(writing_end)
    os.waitpid(child, 0)
    with os.fdopen(reading_end) as answer:
        assert answer.read() == f"{tmp_path} cannot be written: choose another --output"
