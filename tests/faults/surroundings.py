"""What happens to the machine under a command: its disk, its folder, its workers, its other processes, its clock.

    python -m tests.faults.surroundings                     all of it, about ten minutes on one core
    python -m tests.faults.surroundings --faults "full disk" "worker killed" --every 5

full disk          a small tmpfs, of many sizes, where one can be mounted; then more room, and the command again
limited files      a bound on the size of a file (RLIMIT_FSIZE), the same
read-only folder   the run folder loses its write permission before a change of the file system, under a user without
                   privileges, since root ignores the bits
vanished folder    the run folder is moved away before such a change, and comes back afterwards
worker killed      SIGKILL for the process that reads images, as the system does where memory runs out
rank killed        SIGKILL for one of two processes under torchrun; the other has to end within a minute
clock set back     the time of day jumps back by a day, again and again; and files that come from the future

After each the user sees one line with the reason, files under a final name are whole, and the command that goes on ends
with the same state as one that nothing happened to, to the last bit.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nearest_etf.common.files import write_file
from tests.faults.children import NO_TRACE, Ended, command, cpu_seconds, get_ready, main_of
from tests.faults.kill_points import ARRAYS, JOBS, PHOTOS, Job, changes, compare, filled, next_words, photos, run
from tests.faults.whole_files import check_whole, final_files, stands_for

RESULTS = Path(__file__).parent / "results" / "surroundings.json"
NOBODY = 65534
SAID = "said.txt"
# One in so many places and sizes is tried: each is a run, a second one, and a comparison.
STRIDES = {"full disk": 8, "limited files": 5, "read-only folder": 4, "vanished folder": 5, "worker killed": 4}
DAY = 86400.0
MINUTE = 60.0
Log = Callable[[str], None]


@dataclass
class Outcome:
    """What became of one fault."""

    fault: str
    every: int = 1  # only every Nth place or size
    tried: int = 0
    went_through: int = 0  # the fault came too late, or the command had no need of what was missing
    torn: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)  # a traceback, or no reason in the last line
    seen: list[str] = field(default_factory=list)  # what users saw, each message once
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing is to be mended."""
        return not (self.torn or self.lost or self.unclear)

    def judge(self, where: str, ended: Ended, folder: Path, words: tuple[str, ...], statuses: tuple[int, ...]) -> bool:
        """Look at what a fault left; whether the command failed."""
        self.tried += 1
        self.torn += [f"{where}: {problem}" for problem in check_whole(folder)]
        if ended.status == 0:
            self.went_through += 1
            return False
        if ended.hung or NO_TRACE in ended.err or ended.status not in statuses:
            self.unclear.append(f"{where}: status {ended.status}: {ended.err[-1500:]}")
        elif not any(word in ended.last for word in words):
            self.unclear.append(f"{where}: {ended.last}")
        message = ended.last.replace(str(folder), ".")
        if message not in self.seen and len(self.seen) < 12:
            self.seen.append(message)
        return True


@dataclass(frozen=True)
class Place:
    """Where faults happen, and how often each is tried."""

    scratch: Path
    every: int

    def ready(self, job: Job) -> Path:
        """A folder with what a job works on."""
        folder = self.scratch / "ready"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for words in job.inputs:
            prog, *arguments = filled(words, self.scratch)
            if (made := command(prog, arguments, folder)).status:
                raise RuntimeError(made.err)
        return folder

    def whole(self, job: Job, ready: Path) -> tuple[dict[str, bytes], list[str], list[int]]:
        """What the job ends with where nothing happens, the changes that it makes, and the sizes of its files."""
        folder = self.scratch / "whole"
        ended, kinds = run(job, ready, folder, self.scratch, at=-1)
        if ended.status:
            raise RuntimeError(ended.err)
        sizes = sorted({path.stat().st_size for path in final_files(folder)})
        expected = stands_for(folder)
        shutil.rmtree(folder)
        return expected, kinds, sizes

    def go_on(self, job: Job, folder: Path, expected: dict[str, bytes]) -> list[str]:
        """Give the command once more; what is wrong then."""
        words, _ = next_words(job, folder, self.scratch)
        return compare(command(job.prog, words, folder), folder, expected)


NO_ROOM = ("No space left", "File too large", "file write failed", "cannot be written")
JOBS_THAT_WRITE = ("train", "train, image folder", "measure", "report", "export", "predict")


def full_disk(place: Place, outcome: Outcome) -> None:
    """A tmpfs of so many bytes beyond what is there."""
    for name in JOBS_THAT_WRITE:
        job = JOBS[name]
        ready = place.ready(job)
        expected, _, sizes = place.whole(job, ready)
        before = sum(path.stat().st_size for path in ready.rglob("*") if path.is_file())
        rooms = sorted({4096 * k for k in (1, 3, 9)} | {int(sum(sizes) * share / 10) for share in range(1, 14)})
        for room in rooms[:: place.every]:
            with mounted(place.scratch / "disk", before + room + 65536) as folder:
                shutil.copytree(ready, folder, dirs_exist_ok=True)
                filler = fill(folder, room)
                ended = command(job.prog, filled(job.words, place.scratch), folder)
                where = f"{name}, {room} bytes left"
                failed = outcome.judge(where, ended, folder, NO_ROOM, (1, 2))
                filler.unlink()
                remount(folder, 2**28)
                if failed:
                    outcome.lost += [f"{where}: {problem}" for problem in place.go_on(job, folder, expected)]


def fill(folder: Path, left: int) -> Path:
    """A hidden file that leaves so many bytes of a disk."""
    path = folder / ".filler"
    with open(path, "wb") as file:
        file.write(b"\0" * max(0, shutil.disk_usage(folder).free - left))
    return path


def limited_files(place: Place, outcome: Outcome) -> None:
    """No file may have more bytes than this."""
    for name in JOBS_THAT_WRITE:
        job = JOBS[name]
        ready = place.ready(job)
        expected, _, sizes = place.whole(job, ready)
        bounds = sorted({0, 10, 500, 4096} | {size - 1 for size in sizes} | {size // 2 for size in sizes})
        for bound in bounds[:: 2 * place.every]:
            folder = place.scratch / "limited"
            shutil.copytree(ready, folder)
            before = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (bound, bound))
            ended = command(job.prog, filled(job.words, place.scratch), folder, before=before, pipes=True)
            where = f"{name}, files of {bound} bytes"
            if outcome.judge(where, ended, folder, NO_ROOM, (1, 2)):
                outcome.lost += [f"{where}: {problem}" for problem in place.go_on(job, folder, expected)]
            shutil.rmtree(folder)


def in_the_middle(at: int, act: Callable[[], None]) -> None:
    """In the child: before change number `at` of the file system, do something to it."""
    counted, process = 0, os.getpid()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal counted
        if os.getpid() == process and changes(event, arguments):
            counted += 1
            if counted == at + 1:
                act()

    sys.addaudithook(hook)


def read_only_folder(place: Place, outcome: Outcome) -> None:
    """The run folder loses its write permission; then it has it again."""
    job = JOBS["train"]
    ready = place.ready(job)
    expected, kinds, _ = place.whole(job, ready)
    # What is imported at work may lie where only root can read.
    main_of("etf-train").main([*filled(job.words, place.scratch), "--output", str(place.scratch / "warm"), "--quiet"])

    def shut() -> None:
        if Path("run").is_dir():
            os.chmod("run", 0o500)

    for at in range(1, len(kinds), 2 * place.every):
        folder = place.scratch / "shut"
        shutil.copytree(ready, folder)
        if os.getuid() == 0:
            os.chown(folder, NOBODY, NOBODY)

        def before(at: int = at) -> None:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            in_the_middle(at, shut)

        ended = command(job.prog, filled(job.words, place.scratch), folder, before=before)
        where = f"before change {at} ({kinds[at]})"
        failed = outcome.judge(where, ended, folder, ("Permission denied", "cannot be written"), (1, 2))
        if (folder / "run").is_dir():
            (folder / "run").chmod(0o700)
        if failed:
            outcome.lost += [f"{where}: {problem}" for problem in place.go_on(job, folder, expected)]
        shutil.rmtree(folder)


def vanished_folder(place: Place, outcome: Outcome) -> None:
    """The run folder is moved away; then it is back, or stays away."""
    job = JOBS["train"]
    ready = place.ready(job)
    expected, kinds, _ = place.whole(job, ready)

    def take_away() -> None:
        if Path("run").is_dir():
            os.rename("run", "away")

    for at in range(1, len(kinds), 2 * place.every):
        folder = place.scratch / "vanished"
        shutil.copytree(ready, folder)
        before = functools.partial(in_the_middle, at, take_away)
        ended = command(job.prog, filled(job.words, place.scratch), folder, before=before)
        where = f"before change {at} ({kinds[at]})"
        failed = outcome.judge(where, ended, folder, ("No such file", "is missing"), (1, 2))
        if failed and (folder / "away").is_dir():
            shutil.rmtree(folder / "run", ignore_errors=True)
            (folder / "away").rename(folder / "run")
        if failed:
            outcome.lost += [f"{where}: {problem}" for problem in place.go_on(job, folder, expected)]
        shutil.rmtree(folder)


def worker_killed(place: Place, outcome: Outcome) -> None:
    """The process that reads images is killed before a change of the file system."""
    words = f"--data PHOTOS {PHOTOS} --epochs 3 --workers 2 --output run"
    job = Job("etf-train", words)
    ready = place.ready(job)
    expected, kinds, _ = place.whole(job, ready)

    def kill_children() -> None:
        for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
            if b"git" not in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]:
                os.kill(int(child), signal.SIGKILL)

    for at in range(1, len(kinds), 3 * place.every):
        folder = place.scratch / "workers"
        shutil.copytree(ready, folder)
        before = functools.partial(in_the_middle, at, kill_children)
        ended = command(job.prog, filled(job.words, place.scratch), folder, before=before)
        where = f"before change {at} ({kinds[at]})"
        if outcome.judge(where, ended, folder, ("worker process",), (1,)):
            outcome.lost += [f"{where}: {problem}" for problem in place.go_on(job, folder, expected)]
        shutil.rmtree(folder)


def rank_killed(place: Place, outcome: Outcome) -> None:
    """One of two processes under torchrun is killed after its first epoch; two others go on."""
    words = f"{ARRAYS} --epochs 60 --eval-interval 1 --output run".split()
    whole = place.scratch / "ranks"
    whole.mkdir()
    with two_ranks(words, whole) as running:
        if running.wait(timeout=4 * MINUTE):
            raise RuntimeError((whole / SAID).read_text(encoding="utf-8"))
    expected = stands_for(whole / "run")
    for rank in (0, 1)[:: place.every]:
        folder = place.scratch / f"ranks{rank}"
        folder.mkdir()
        with two_ranks(words, folder) as running:
            wait_until(functools.partial(has_rows, folder / "run", 2), 180)
            os.kill(process_of_rank(running.pid, rank), signal.SIGKILL)
            began = time.monotonic()
            status = running.wait(timeout=2 * MINUTE)
            took = time.monotonic() - began
        text = (folder / SAID).read_text(encoding="utf-8")
        left = [line for line in text.splitlines() if line.startswith("etf-train: ")]
        ended = Ended(status, "", "\n".join(left) if left else text, took)
        outcome.tried += 1
        outcome.torn += [f"rank {rank}: {problem}" for problem in check_whole(folder / "run")]
        if took > MINUTE or not status or ("Signal 9" not in text and "SIGKILL" not in text):
            outcome.unclear.append(f"rank {rank}: {status} after {took:.1f} s: {text[-1500:]}")
        outcome.seen.append(f"{took:.1f} s after rank {rank}: {ended.last}")
        with two_ranks([*words, "--resume"], folder) as running:
            status = running.wait(timeout=4 * MINUTE)
        again = Ended(status, "", (folder / SAID).read_text(encoding="utf-8"), 0.0)
        outcome.lost += [f"rank {rank}: {problem}" for problem in compare(again, folder / "run", expected)]


@contextmanager
def two_ranks(words: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`etf-train` in two processes under torchrun; what they print goes to a file."""
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program += ["-m", "nearest_etf.torchport.training.etf_train", *words]
    with open(folder / SAID, "wb") as said:
        running = subprocess.Popen(program, cwd=folder, stdout=said, stderr=said, start_new_session=True)
        try:
            yield running
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()


def has_rows(folder: Path, least: int) -> bool:
    path = folder / "metrics.jsonl"
    return path.is_file() and path.read_bytes().count(b"\n") >= least


def process_of_rank(parent: int, rank: int) -> int:
    """The process with that rank among the children of torchrun."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise RuntimeError(f"no process of rank {rank}")


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise RuntimeError("it did not begin in time")
        time.sleep(0.05)


def clock_set_back(place: Place, outcome: Outcome) -> None:
    """The time of day jumps; files of earlier commands lie in the future."""
    for name in ("train", "train, extended", "sweep", "measure", "report", "export"):
        job = JOBS[name]
        ready = place.ready(job)
        expected, _, _ = place.whole(job, ready)
        for path in ready.rglob("*"):
            os.utime(path, (time.time() + DAY, time.time() + DAY))
        folder = place.scratch / "clock"
        shutil.copytree(ready, folder)
        ended = command(job.prog, filled(job.words, place.scratch), folder, before=jumping_clock)
        outcome.tried += 1
        outcome.went_through += int(ended.status == 0)
        outcome.lost += [f"{name}: {problem}" for problem in compare(ended, folder, expected)]
        shutil.rmtree(folder)


def jumping_clock() -> None:
    """In the child: the time of day goes back by a day every third time that somebody asks."""
    true, asked = time.time, [0]

    def back() -> float:
        asked[0] += 1
        return true() - DAY * (asked[0] // 3)

    time.time = back


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[Path]:
    """A tmpfs of so many bytes."""
    folder.mkdir(exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True, capture_output=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True, capture_output=True)


def can_mount(scratch: Path) -> bool:
    """Whether this process may mount a tmpfs."""
    try:
        with mounted(scratch / "disk", 65536):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


FAULTS: dict[str, Callable[[Place, Outcome], None]] = {
    "full disk": full_disk,
    "limited files": limited_files,
    "read-only folder": read_only_folder,
    "vanished folder": vanished_folder,
    "worker killed": worker_killed,
    "rank killed": rank_killed,
    "clock set back": clock_set_back,
}


def main(arguments: list[str] | None = None) -> int:
    """Print a row for each fault, and write them as JSON; 1 if anything is to be mended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="+", metavar="FAULT", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--every", type=int, help="try every Nth place or size [by fault, see STRIDES]")
    parser.add_argument("--to", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    get_ready()
    outcomes = []
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        photos(Path(scratch) / "photos")
        for name in given.faults:
            place = Place(Path(scratch), given.every or STRIDES.get(name, 1))
            if name == "full disk" and not can_mount(place.scratch):
                print(f"{name}: no tmpfs can be mounted here", flush=True)
                continue
            began, outcome = time.monotonic(), Outcome(name, place.every)
            FAULTS[name](place, outcome)
            outcome.seconds = round(time.monotonic() - began, 1)
            outcomes.append(outcome)
            print(
                f"{name:18}{outcome.tried:4} tried {outcome.went_through:4} without effect {len(outcome.torn):3} torn "
                f"{len(outcome.lost):3} lost {len(outcome.unclear):3} unclear {outcome.seconds:7.1f} s",
                flush=True,
            )
            for problem in (*outcome.torn, *outcome.lost, *outcome.unclear)[:10]:
                print(f"    {problem}", flush=True)
    rows = {"cpu_seconds": cpu_seconds(), "faults": [asdict(outcome) for outcome in outcomes]}
    write_file(given.to, json.dumps(rows, indent=1) + "\n")
    return 0 if all(outcome.clean for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
