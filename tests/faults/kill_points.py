"""SIGKILL before every change of the file system that a command makes, one run per point.

    python -m tests.faults.kill_points                           every point, about fifteen minutes on one core
    python -m tests.faults.kill_points --jobs train sweep --every 10

An audit hook in the child counts what Python is about to change: a file opened for writing, renamed, removed, a folder
made or removed. At the chosen one the child's process group is killed. Then every file under a final name has to be
whole, and the same command, given once more as a user would (with --resume where there is a run to go on with, with
--overwrite where a file is in the way), has to end with the same state to the last bit, the times excepted.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nearest_etf.common.files import write_file
from nearest_etf.common.seals import Damage
from nearest_etf.torchport.training.run.checkpoint import CheckpointError, load_checkpoint
from tests.faults.children import NO_TRACE, Ended, command, cpu_seconds, get_ready
from tests.faults.whole_files import check_whole, stands_for

RESULTS = Path(__file__).parent / "results" / "kill-points.json"
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
ELSEWHERE = ("/dev/", "/proc/")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

ARRAYS = "digits --samples-per-class 10 --batch-size 50 --val-fraction 0.1 --device cpu --width 8 --num-features 16"
PHOTOS = (
    "--backbone small-cnn --num-features 8 --image-size 16 --batch-size 6 --device cpu --val-fraction 0.3 --lr 0.05"
)


@dataclass(frozen=True)
class Job:
    """A command to be killed.

    Attributes
    ----------
    prog, words : str
        The command; PHOTOS stands for a folder of images, which lies elsewhere.
    inputs : tuple of str
        Commands that make what it works on, once.
    keeps : str
        A run folder that --overwrite replaces: at every moment it, or the one set aside, holds a checkpoint.
    pair : bool
        Two files that belong together are replaced: between the two renames the reader refuses them, in one line.
    """

    prog: str
    words: str
    inputs: tuple[str, ...] = ()
    keeps: str = ""
    pair: bool = False


RUN = f"etf-train {ARRAYS} --epochs 2 --output run"
FREE = (
    "etf-train --data ufm --num-classes 3 --samples-per-class 2 --batch-size 6 --num-features 4 --epochs 2 --output run"
)
EXPORT = "etf-export run --to model.onnx --samples 3 --check-images 20"
JOBS = {
    "train": Job("etf-train", f"{ARRAYS} --epochs 2 --output run"),
    "train, extended": Job("etf-train", "--resume --epochs 4 --output run", (RUN,)),
    "train, overwriting": Job(
        "etf-train", f"{ARRAYS} --epochs 1 --seed 1 --output run --overwrite", (RUN,), keeps="run"
    ),
    "train, image folder": Job("etf-train", f"--data PHOTOS {PHOTOS} --epochs 2 --workers 0 --output run"),
    "train, image folder and a worker": Job("etf-train", f"--data PHOTOS {PHOTOS} --epochs 2 --workers 1 --output run"),
    "sweep": Job("etf-train", f"sweep {ARRAYS} --epochs 1 --heads fixed implicit --seeds 1 --output runs"),
    "measure": Job("etf-measure", "run --json figures.json --device cpu", (RUN,)),
    "report": Job("etf-report", "run --to page.html page.png --aggregate tables", (RUN, "etf-measure run")),
    "report, figures": Job("etf-report", "run --to page.html --figures figures", (FREE,)),
    "export": Job("etf-export", EXPORT.partition(" ")[2], (RUN,)),
    "export, overwriting": Job("etf-export", f"{EXPORT.partition(' ')[2]} --overwrite", (RUN, EXPORT), pair=True),
    "predict": Job("etf-predict", "model.onnx model-samples --output rows.csv", (RUN, EXPORT)),
    "verify": Job("etf-verify", "--sizes 8x4 --seeds 1 --json table.json --plot curve.png"),
}


@dataclass
class Outcome:
    """What became of one job."""

    job: str
    points: int = 0
    tried: int = 0
    killed_before: dict[str, int] = field(default_factory=dict)  # kinds of changes
    torn: list[str] = field(default_factory=list)  # files under a final name that are not whole
    lost: list[str] = field(default_factory=list)  # a second run that fails, or ends elsewhere
    went_on: dict[str, int] = field(default_factory=dict)  # how
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing is to be mended."""
        return not (self.torn or self.lost)


def watch(at: int, told: int) -> None:
    """In the child: count changes of the file system, write each to the file descriptor, and end before number `at`."""
    counted, process = 0, os.getpid()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal counted
        kind = changes(event, arguments)
        if kind and os.getpid() == process:
            if counted == at:
                os.write(told, f"!{kind}\n".encode())
                os.killpg(0, signal.SIGKILL)
            counted += 1
            os.write(told, f"{kind}\n".encode())

    sys.addaudithook(hook)


def changes(event: str, arguments: tuple[Any, ...]) -> str:
    """The kind of change that an audit event announces; empty where it is none."""
    if event not in CHANGES and event != "open":
        return ""
    path = arguments[0]
    name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
    if name.startswith(ELSEWHERE) or not name:
        return ""
    if event != "open":
        return event.removeprefix("os.")
    return "write" if (arguments[2] or 0) & WRITING else ""


def try_job(name: str, job: Job, every: int, first: int, scratch: Path, log: Callable[[str], None]) -> Outcome:
    """Kill a job at every `every`th point, beginning with `first`."""
    began, outcome = time.monotonic(), Outcome(name)
    ready = scratch / "ready"
    ready.mkdir()
    for words in job.inputs:
        prog, *arguments = filled(words, scratch)
        made = command(prog, arguments, ready)
        if made.status:
            raise RuntimeError(f"{words}: {made.err}")
    whole = scratch / "whole"
    ended, kinds = run(job, ready, whole, scratch, at=-1)
    if ended.status:
        raise RuntimeError(f"{job}: {ended.err}")
    outcome.points = len(kinds)
    expected = stands_for(whole)
    befores, ways = Counter[str](), Counter[str]()
    for at in range(first, len(kinds), every):
        folder = scratch / "killed"
        ended, reached = run(job, ready, folder, scratch, at=at)
        where = f"{at} ({reached[-1].removeprefix('!') if reached else 'none'})"
        if ended.status != -signal.SIGKILL:
            outcome.lost.append(f"{where}: not killed: {ended.status} {ended.last}")
        outcome.tried += 1
        befores[kinds[at]] += 1
        outcome.torn += [f"{where}: {problem}" for problem in check_whole(folder, job.pair)]
        if job.keeps and not any(has_checkpoint(folder / run) for run in (job.keeps, f"{job.keeps}.replaced")):
            outcome.lost.append(f"{where}: neither the earlier run nor a later one has a checkpoint")
        arguments, way = next_words(job, folder, scratch)
        again = command(job.prog, arguments, folder)
        ways[way] += 1
        outcome.lost += [f"{where}: {problem}" for problem in compare(again, folder, expected)]
        shutil.rmtree(folder)
    outcome.killed_before, outcome.went_on = dict(befores), dict(ways)
    outcome.seconds = round(time.monotonic() - began, 1)
    shutil.rmtree(ready)
    shutil.rmtree(whole)
    log(
        f"{name:34}{outcome.points:4} points {outcome.tried:4} tried {len(outcome.torn):3} torn "
        f"{len(outcome.lost):3} lost {outcome.seconds:7.1f} s  {outcome.went_on}"
    )
    for problem in (*outcome.torn, *outcome.lost)[:8]:
        log(f"    {problem}")
    return outcome


def run(job: Job, ready: Path, folder: Path, scratch: Path, at: int) -> tuple[Ended, list[str]]:
    """The job in a copy of what it works on, and the changes up to its end."""
    shutil.copytree(ready, folder)  # with the times: measurements have to be newer than what they measured
    inside, outside = os.pipe2(0)
    os.set_blocking(outside, True)
    with open(inside, encoding="utf-8") as told:
        try:
            ended = command(job.prog, filled(job.words, scratch), folder, before=functools.partial(watch, at, outside))
        finally:
            os.close(outside)
        kinds = told.read().splitlines()
    return ended, kinds


def filled(words: str, scratch: Path) -> list[str]:
    """Words of a command line, with PHOTOS in place."""
    return [str(scratch / "photos") if word == "PHOTOS" else word for word in words.split()]


def next_words(job: Job, folder: Path, scratch: Path) -> tuple[list[str], str]:
    """What a user types after the kill, and what it is called."""
    words = filled(job.words, scratch)
    if job.prog == "etf-train" and "sweep" not in words:
        if (folder / "run" / "config.json").is_file() and "--resume" not in words and not job.keeps:
            return [*words, "--resume"], "--resume"
    elif job.prog in ("etf-export", "etf-predict") and "--overwrite" not in words:
        outputs = ("model.onnx", "model.json", "model-samples", "rows.csv")
        if any(is_new(job, folder / name) for name in outputs):
            return [*words, "--overwrite"], "--overwrite"
    return words, "the same"


def is_new(job: Job, path: Path) -> bool:
    """Whether a file came from the job itself."""
    made_before = EXPORT in job.inputs and path.name.startswith("model")
    return path.exists() and not made_before


def has_checkpoint(folder: Path) -> bool:
    try:
        load_checkpoint(folder / "last.pt", resuming=True)
    except (CheckpointError, Damage):
        return False
    return True


def compare(again: Ended, folder: Path, expected: dict[str, bytes]) -> list[str]:
    """What a second run lacks."""
    if again.status or NO_TRACE in again.err:
        return [f"the second run ends with {again.status}: {again.last}"]
    problems = check_whole(folder)
    found = stands_for(folder)
    problems += [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is left over" for name in found.keys() - expected.keys()]
    problems += [f"{name} differs" for name in expected.keys() & found.keys() if expected[name] != found[name]]
    problems += [f"{path.name} is left over" for path in folder.rglob("*") if path.suffix == ".tmp"]
    return problems


def photos(folder: Path, classes: int = 3, count: int = 8, size: int = 20) -> None:
    """A folder of small images."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        place = folder / f"class{label}"
        place.mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 128, (size, size, 3), np.uint8) + np.uint8(60 * label)
            Image.fromarray(pixels).save(place / f"{number}.png")


def main(arguments: list[str] | None = None) -> int:
    """Print a row for each job, and write them as JSON; 1 if anything is to be mended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", metavar="JOB", choices=JOBS, default=list(JOBS))
    parser.add_argument("--every", type=int, default=1, help="try every Nth point [1]")
    parser.add_argument("--first", type=int, default=0, help="the first point [0]")
    parser.add_argument("--to", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    get_ready()
    outcomes = []
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        photos(scratch / "photos")
        (scratch / "tmp").mkdir()
        for name in given.jobs:
            outcomes.append(
                try_job(name, JOBS[name], given.every, given.first, scratch, functools.partial(print, flush=True))
            )
            done = [asdict(outcome) for outcome in outcomes]  # written after each, since all together take long
            rows = {"every": given.every, "cpu_seconds": cpu_seconds(), "jobs": done}
            write_file(given.to, json.dumps(rows, indent=1) + "\n")
    return 0 if all(outcome.clean for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
