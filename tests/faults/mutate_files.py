"""Files from strangers, mutated: every reader gives an answer or refuses in one line, within memory and time.

    python -m tests.faults.mutate_files                    2,000 mutations of each kind, about ten minutes on one core
    python -m tests.faults.mutate_files --kinds png jpeg --count 500 --seed 7

Mutations are seeded: a flipped bit, a cut, an empty file, a piece spliced in, another kind of file, an absurd number,
and in JSON a value of another type. They are read in children that are forked from this process, which has imported all
that is needed, with at most 2 GB of address space beyond its own. Reported are exceptions that are not of this project,
children that were killed or took longer than 20 s, and, of kinds that a checksum protects, other contents than before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import select
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nearest_etf.common.errors import UserError
from nearest_etf.common.files import write_file
from tests.faults.children import cpu_seconds
from tests.faults.good_files import Folder, Kind, all_kinds

BEYOND_PARENT = 2 * 2**30  # bytes of address space
PATIENCE = 20.0  # seconds for one file
RESULTS = Path(__file__).parent / "results" / "mutate-files.json"


@dataclass
class Outcome:
    """What became of the mutations of one kind."""

    kind: str
    tries: int = 0
    refused: int = 0
    read: int = 0
    changed: int = 0  # other contents, though sealed
    foreign: list[str] = field(default_factory=list)  # exceptions that are not ours
    died: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    megabytes: float = 0.0  # the most that a child had beyond its parent
    seconds: float = 0.0  # the longest that one file took

    @property
    def clean(self) -> bool:
        """Whether nothing is to be mended."""
        return not (self.foreign or self.died or self.slow or self.changed)


def mutated(kind: Kind, others: list[bytes], rng: np.random.Generator) -> tuple[str, Folder]:
    """One good folder with its first file changed, and how."""
    folder = dict(kind.samples[rng.integers(len(kind.samples))])
    name = next(iter(folder))
    data = folder[name]
    ways = ["flip", "flip", "flips", "cut", "cut", "splice", "number", "repeat", "other kind", "empty"]
    if kind.is_json:
        ways += ["json"] * 20
    way = str(rng.choice(ways))
    folder[name] = changed(data, way, others, rng)
    return way, folder


def changed(data: bytes, way: str, others: list[bytes], rng: np.random.Generator) -> bytes:
    at, other = int(rng.integers(max(len(data), 1))), others[rng.integers(len(others))]
    if way == "empty":
        return data[: int(rng.integers(3))]
    if way == "cut":
        return data[:at]
    if way == "other kind":
        return other
    if way == "splice":
        start = int(rng.integers(len(other)))
        piece = other[start : start + int(rng.integers(1, 200))]
        return data[:at] + piece + data[at + (len(piece) if rng.random() < 0.5 else 0) :]
    if way == "repeat":
        return data[:at] + data[at : at + 50] * int(rng.integers(2, 200)) + data[at:]
    if way == "number":
        absurd = [
            b"\xff" * 4,
            b"\xff" * 8,
            b"\x7f\xff\xff\xff",
            b"\0" * 4,
            b"\0\0\xea\x60",
            struct.pack("<I", 2**31 - 1),
        ]
        number = absurd[rng.integers(len(absurd))]
        at = at if rng.random() < 0.5 else at % 64  # headers
        return data[:at] + number + data[at + len(number) :]
    if way == "json":
        return json_changed(data, rng)
    bits = np.frombuffer(data, np.uint8).copy()
    for _ in range(1 if way == "flip" else int(rng.integers(2, 60))):
        bits[rng.integers(len(bits) if rng.random() < 0.6 else min(len(bits), 96))] ^= 1 << rng.integers(8)
    return bits.tobytes()


def json_changed(data: bytes, rng: np.random.Generator) -> bytes:
    """A value somewhere replaced by one of another type, taken away, or the whole wrapped."""
    value = json.loads(data)
    places = list(json_places(value))
    holder, key = places[rng.integers(len(places))]
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    odd: list[Any] = [None, True, -1, 0, 1e308, float("nan"), 10**400, "", "x" * 10_000, [], {}, [[]], {"a": 1}, deep]
    odd += [[1, "2", None], "\ud800", [10**9] * 3, [2**40, 1, 1], ["a", "a"], float("inf"), "float32", "O", -(2**63)]
    if rng.random() < 0.1:
        del holder[key]
    else:
        holder[key] = odd[rng.integers(len(odd))]
    if rng.random() < 0.05:
        value = [odd[rng.integers(len(odd))], [value]][rng.integers(2)]
    text = json.dumps(value)
    return ("[" * 100_000 if rng.random() < 0.01 else text).encode("utf-8", "surrogatepass")


def json_places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from json_places(value[key])


def run(name: str, kind: Kind, others: list[bytes], count: int, seed: int) -> Outcome:
    """Read so many mutations of one kind, in children; one that dies or hangs is followed by another."""
    outcome, done = Outcome(name), 0
    good = set()
    with tempfile.TemporaryDirectory() as scratch:
        for number, sample in enumerate(kind.samples):
            good.add(hashlib.sha256(kind_read(kind, sample, Path(scratch) / f"good{number}")).hexdigest())
        while done < count:
            done = one_child(outcome, kind, others, done, count, seed, good, Path(scratch))
    return outcome


def one_child(
    outcome: Outcome, kind: Kind, others: list[bytes], start: int, count: int, seed: int, good: set[str], scratch: Path
) -> int:
    """Mutations from `start` on, in one child; returns where the next one has to go on."""
    inside, outside = os.pipe()
    parent_size = resident()
    child = os.fork()
    if child == 0:
        os.close(inside)
        with os.fdopen(outside, "w", buffering=1) as report:
            work(report, kind, others, range(start, count), seed, good, scratch, parent_size)
        os._exit(0)
    os.close(outside)
    done, began, way = start, time.monotonic(), "start"
    with os.fdopen(inside) as lines:
        buffer = ""
        while True:
            ready, _, _ = select.select([lines], [], [], PATIENCE)
            if not ready:
                os.kill(child, signal.SIGKILL)
                outcome.slow.append(f"{done}: {way}")
                done += 1
                break
            read = os.read(lines.fileno(), 65536).decode()
            if not read:
                break
            *whole, buffer = (buffer + read).split("\n")
            for line in whole:
                event, *details = json.loads(line)
                if event == "begins":
                    way, began = details[0], time.monotonic()
                else:
                    count_one(outcome, done, way, event, details, time.monotonic() - began)
                    done += 1
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and not (outcome.slow and outcome.slow[-1].startswith(f"{done - 1}:")):
        outcome.died.append(f"{done}: {way} (signal {os.WTERMSIG(status)})")
        done += 1
    outcome.tries = done
    return done


def count_one(outcome: Outcome, number: int, way: str, event: str, details: list[Any], seconds: float) -> None:
    outcome.megabytes = max(outcome.megabytes, details[0])
    outcome.seconds = max(outcome.seconds, round(seconds, 2))
    if event == "foreign":
        outcome.foreign.append(f"{number}: {way}: {details[1]}")
    elif event == "changed":
        outcome.changed += 1
        outcome.foreign.append(f"{number}: {way}: other contents")
    else:
        setattr(outcome, event, getattr(outcome, event) + 1)


def work(
    report: Any,
    kind: Kind,
    others: list[bytes],
    numbers: range,
    seed: int,
    good: set[str],
    scratch: Path,
    before: float,
) -> None:
    """In the child: read one mutation after the other; the parent had so many megabytes in memory before."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + BEYOND_PARENT,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libtiff says
    for number in numbers:
        way, folder = mutated(kind, others, np.random.default_rng([seed, number]))
        report.write(json.dumps(["begins", way]) + "\n")
        event, detail = "read", ""
        try:
            found = hashlib.sha256(kind_read(kind, folder, scratch / str(number))).hexdigest()
            if kind.sealed and found not in good:
                event = "changed"
        except UserError as error:
            event = "refused" if "\n" not in str(error) and len(str(error)) < 1000 else "foreign"
            detail = f"a message of {len(str(error))} characters"
        except BaseException as error:
            event, detail = "foreign", f"{type(error).__name__}: {error}"[:300]
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
        report.write(json.dumps([event, max(0.0, round(used, 1)), detail]) + "\n")


def kind_read(kind: Kind, files: Folder, folder: Path) -> bytes:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    try:
        return kind.read(folder)
    finally:
        for name in files:
            (folder / name).unlink()
        folder.rmdir()


def resident() -> float:
    """Megabytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", metavar="KIND")
    parser.add_argument("--count", type=int, default=2000, help="mutations of each kind [2000]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    kinds = all_kinds()
    others = [data for kind in kinds.values() for data in next(iter(kind.samples)).values()]
    # A PostScript file is run by another program, an SVG may name other files, a pickle runs anything.
    others += [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x80\x04N.", b"{}", b"<svg/>"]
    outcomes = []
    for name in given.kinds or kinds:
        began = time.monotonic()
        outcome = run(name, kinds[name], others, given.count, given.seed)
        outcomes.append(outcome)
        print(
            f"{name:14}{outcome.tries:6} tried {outcome.refused:6} refused {outcome.read:6} read "
            f"{outcome.megabytes:8.1f} MB {outcome.seconds:6.2f} s at most {time.monotonic() - began:7.1f} s"
        )
        for problem in (*outcome.foreign, *outcome.died, *outcome.slow)[:10]:
            print(f"    {problem}")
    rows = {
        "seed": given.seed,
        "count": given.count,
        "cpu_seconds": cpu_seconds(),
        "kinds": [asdict(outcome) for outcome in outcomes],
    }
    write_file(given.to, json.dumps(rows, indent=1) + "\n")
    return 0 if all(outcome.clean for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
