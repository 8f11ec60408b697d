"""Odd command lines for all six commands: exit 0, 1 or 2, a few lines at most, no traceback, no end by the system.

    python -m tests.faults.command_lines                    800 of them, about ten minutes on one core
    python -m tests.faults.command_lines --commands etf-predict --count 50 --seed 7

Each starts from a line that works, and has one to three of its words replaced, or flags added, by values that nobody
should give: paths of 300 bytes, files where folders are wanted and folders where files are, files of other kinds,
empty, endless and huge numbers, devices that this build lacks, letters of other scripts, bytes that are no text. They
run in children with at most 3 GB of address space beyond their parent. One that is still at work after a while is
interrupted, as by Ctrl-C, and has to end then.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nearest_etf.common.files import write_file
from tests.faults.children import NO_TRACE, Ended, command, cpu_seconds, get_ready, main_of
from tests.faults.kill_points import ARRAYS, photos

RESULTS = Path(__file__).parent / "results" / "command-lines.json"
BEYOND_PARENT = 3 * 2**30  # bytes of address space
PATIENCE = 15.0  # seconds until Ctrl-C
WEIGHTS = {"etf-train": 6, "etf-export": 2, "etf-verify": 1}  # how many of the lines, against 2 of each other
MOST_LINES, LONGEST = 12, 1500  # of standard error: notes and progress come before an error; characters of a line

FREE = "--data ufm --num-classes 3 --samples-per-class 2 --batch-size 6 --num-features 4 --epochs 1 --device cpu"
SEEN = (
    "--data photos --backbone mlp --num-features 8 --image-size 16 --batch-size 6 --device cpu --epochs 1 --workers 0"
)
GOOD = {
    "etf-train": [
        f"{FREE} --output new",
        f"{ARRAYS} --epochs 1 --output new",
        f"sweep {FREE} --heads fixed implicit --seeds 1 --output several",
        f"{SEEN} --output new",
        "--resume --output run",
        "run/config.json --output new --device cpu",
        "--list",
        "--show digits",
    ],
    "etf-measure": [
        "run --device cpu",
        "run --checkpoint last --json figures.json --device cpu",
        "--model network.py:make --classifier 2 --data photos --image-size 8 --device cpu",
    ],
    "etf-report": ["run --to page.png", "run run2 --aggregate tables --at 1 2", "run run2 --labels ours"],
    "etf-export": [
        "run --to new.onnx --head-only --check-images 5",
        "check head.onnx --run run --check-images 5",
    ],
    "etf-predict": ["model.onnx photos", "model.onnx photos --top-k 2 --format csv --output rows.csv --score"],
    "etf-verify": ["--sizes 8x4", "--sizes 3x2 --seeds 1 --json table.json"],
}
FLAGS = {  # beyond those of the parsers that can be asked
    "etf-measure": "--checkpoint --json --data --data-dir --device --model --weights --classifier --layer --image-size "
    "--mean --std",
    "etf-report": "--to --figures --aggregate --at --labels",
    "etf-verify": "--sizes --seeds --dtype --json --plot",
}
LONG, DEEP = "x" * 300, "d/" * 3000
NUMBERS = """
0 -1 1 2 -0 1e308 -1e308 1e400 nan inf -inf 1e-400 0.5 1e10 100000000000000000000 99999999999 2147483648 65536 0x10
1_000 ٣ ½ 1,5 1e 10**9 1000000 4096
"""
PATHS = f"""
. .. / /dev/null /proc/self/mem /proc /dev/zero run photos empty notes.txt notes.txt/x nowhere nowhere/x run/x {LONG}
{DEEP} {LONG}.onnx {LONG}.json new.onnx loop loop/x locked.bin run/last.pt run/config.json other.json list.json
deep.json latin.json empty.json odd.toml huge.toml deep.toml latin.toml model.onnx model.json head.onnx zip.pt
photos/class0 photos/class0/0.png page.html picture.png table.csv ~nobody ~ new/ *.png - [ x.html x.pdf
"""
WORDS = """
cpu cuda cuda:99 meta hpu xpu mps vulkan xla privateuseone CPU cpu:0 cpu:-1 cuda:x last best none learned implict
implicit fixed tight-frame class-mean linear svd random paper digits digit cifar10 imagenet ufm mnist relu mse cosine
dot-regression int8 fp16 fp64 csv jsonl float16 bfloat16 timm:resnet18 torchvision:resnet18 network.py:make
network.py:none network.py:boom os:getcwd os.path:join a:b : :: x: :y 8x4 4x8 0x0 1x1 8x 99999999x99999999 2x3x4
CUDAExecutionProvider TensorrtExecutionProvider NoProvider neco nci True False --quiet --overwrite --resume
"""
OTHERS = [
    "",
    " ",
    "\n",
    "a\nb",
    "模型",
    "й",
    "\U0001f600",
    "e\u0301",
    "\udcff",
    "-",
    "--",
    "---",
    "-x",
    "%s%n",
    "$HOME",
    "'",
    '"',
]
ODD = [*NUMBERS.split(), *PATHS.split(), *WORDS.split(), *OTHERS]


@dataclass
class Outcome:
    """What became of the lines of one command."""

    prog: str
    tries: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    interrupted: int = 0  # at work after PATIENCE, and ended in order
    traces: list[str] = field(default_factory=list)
    wrong_ends: list[str] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing is to be mended."""
        return not (self.traces or self.wrong_ends or self.too_long)


def flags(prog: str) -> list[str]:
    """Flags of a command."""
    if prog in FLAGS:
        return FLAGS[prog].split()
    module: Any = main_of(prog)
    names = ("build_parser", "build_export_parser", "build_check_parser")
    parsers = [getattr(module, name)() for name in names if hasattr(module, name)]
    found = {flag for parser in parsers for action in parser._actions for flag in action.option_strings}
    return sorted(flag for flag in found if flag.startswith("--") and flag not in ("--help", "--version"))


def odd_line(prog: str, known: list[str], rng: np.random.Generator) -> list[str]:
    """A line that works, with words replaced and flags added."""
    words = str(rng.choice(GOOD[prog])).split()
    for _ in range(1 + int(rng.integers(10) > 5) + int(rng.integers(10) > 8)):
        kind = ODD if rng.random() < 0.6 else NUMBERS.split()  # most flags are for numbers
        odd = kind[rng.integers(len(kind))]
        if rng.random() < 0.45:
            words += [known[rng.integers(len(known))], odd]
        elif rng.random() < 0.7 and len(words) > 1:
            words[rng.integers(len(words))] = odd
        elif rng.random() < 0.5:
            words.append(odd)
        else:
            del words[rng.integers(len(words))]
            words = words or [odd]
    return [word for word in words if "\0" not in word]


def bounded() -> None:
    """In the child: no more memory than this."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + BEYOND_PARENT,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**28,) * 2)  # the disk, too
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def prepare(folder: Path) -> None:
    """Files and folders of all kinds."""
    photos(folder / "photos", classes=3, count=6)
    for line in (
        f"etf-train {ARRAYS} --epochs 1 --output run",
        f"etf-train {ARRAYS} --epochs 1 --output run2 --seed 1",
        f"etf-train {SEEN} --output seen",
        "etf-export run --to head.onnx --head-only --check-images 5",
        "etf-export seen --to model.onnx --check-images 5",
    ):
        prog, *words = line.split()
        if (ended := command(prog, words, folder)).status:
            raise RuntimeError(ended.err)
    (folder / "empty").mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    deep = "[" * 5000 + "]" * 5000
    contents: dict[str, str | bytes] = {
        "notes.txt": "notes\n",
        "locked.bin": os.urandom(2000),
        "other.json": json.dumps({"architectures": ["ResNet"], "settings": {"lr": [1]}, "format": "x"}),
        "list.json": "[1, 2]",
        "deep.json": deep,
        "latin.json": '{"é": 1}'.encode("latin-1"),
        "empty.json": "",
        "odd.toml": 'data = 3\nlr = "fast"\n',
        "huge.toml": f"data = 'digits'\nepochs = {10**4000}\n",
        "deep.toml": f"data = {deep}",
        "latin.toml": "data = 'é'".encode("latin-1"),
        "zip.pt": b"PK\x05\x06" + b"\0" * 18,
        "page.html": "<html></html>\n",
        "table.csv": "a,b\n",
        "picture.png": b"\x89PNG",
        "network.py": "import torch\n\n\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), "
        "torch.nn.LazyLinear(4), torch.nn.Linear(4, 3))\n\n\ndef none():\n    return None\n\n\n"
        "def boom():\n    return torch.nn.Linear(3, 4)\n",
    }
    for name, text in contents.items():
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


def judge(outcome: Outcome, number: int, words: list[str], ended: Ended) -> None:
    """Note what is wrong with the end of a command."""
    line = f"{number}: {outcome.prog} {shown(words)}"
    outcome.tries += 1
    outcome.interrupted += int(ended.interrupted)
    status = "interrupted" if ended.interrupted else str(ended.status)
    outcome.statuses[status] = outcome.statuses.get(status, 0) + 1
    lines = ended.err.strip().splitlines()
    if NO_TRACE in ended.err:
        outcome.traces.append(f"{line}: {ended.last[:300]}")
    elif ended.hung or ended.status not in ((0, 130) if ended.interrupted else (0, 1, 2)):
        outcome.wrong_ends.append(f"{line}: {ended.status} {ended.last[:300]}")
    elif ended.status in (1, 2) and not re.match(r"etf-\w+( sweep| check)?: ", ended.last):
        outcome.wrong_ends.append(f"{line}: {ended.status} without a reason: {ended.last[:300]}")
    elif (ended.status == 2 and len(lines) > MOST_LINES) or any(len(text) > LONGEST for text in lines):
        outcome.too_long.append(f"{line}: {len(lines)} lines, the longest of {max(map(len, lines))} characters")


def shown(words: list[str]) -> str:
    """Words as one would type them, cut where they are long."""
    return " ".join(shlex.quote(word if len(word) < 60 else f"{word[:20]}…") for word in words)


def main(arguments: list[str] | None = None) -> int:
    """Print a row for each command, and write them as JSON; 1 if anything is to be mended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="+", metavar="COMMAND", choices=GOOD, default=list(GOOD))
    parser.add_argument("--count", type=int, default=800, help="lines of all commands together [800]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    get_ready()
    weights = {prog: WEIGHTS.get(prog, 2) for prog in given.commands}
    shares = {prog: -(-given.count * weight // sum(weights.values())) for prog, weight in weights.items()}
    outcomes = []
    with tempfile.TemporaryDirectory() as place:
        ready, folder = Path(place) / "ready", Path(place) / "work"
        ready.mkdir()
        prepare(ready)
        for prog in given.commands:
            began, outcome, known = time.monotonic(), Outcome(prog), flags(prog)
            for number in range(shares[prog]):
                words = odd_line(prog, known, np.random.default_rng([given.seed, list(GOOD).index(prog), number]))
                if number < len(GOOD[prog]):
                    words = GOOD[prog][number].split()  # as it is: it has to work
                shutil.copytree(ready, folder, symlinks=True)
                ended = command(prog, words, folder, before=bounded, patience=PATIENCE, gentle=True)
                shutil.rmtree(folder)
                judge(outcome, number, words, ended)
                if number < len(GOOD[prog]) and ended.status:
                    outcome.wrong_ends.append(f"{number}: {prog} {shown(words)}: {ended.last[:300]}")
            outcome.seconds = round(time.monotonic() - began, 1)
            outcomes.append(outcome)
            print(f"{prog:12}{outcome.tries:5} tried {outcome.statuses} {outcome.seconds:7.1f} s", flush=True)
            for problem in (*outcome.traces, *outcome.wrong_ends, *outcome.too_long)[:25]:
                print(f"    {problem}", flush=True)
    rows = {"seed": given.seed, "cpu_seconds": cpu_seconds(), "commands": [asdict(outcome) for outcome in outcomes]}
    write_file(given.to, json.dumps(rows, indent=1) + "\n")
    return 0 if all(outcome.clean for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
