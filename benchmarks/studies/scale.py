"""Study E: how do time and memory of a training step of the implicit head grow with the number of classes?

    python benchmarks/studies/scale.py --dry-run
    python benchmarks/studies/scale.py                       # on a quiet machine; repeat until none is left
    python benchmarks/studies/scale.py --scale full --device cuda
    python benchmarks/studies/scale.py --summary > tables.md

docs/protocol.md has the rules. A step is forward and backward of the head with the exact gradient, on 256 features in
float32 around K directions, which are the class means before the first step. Each size runs in its own process. Its
memory is the peak resident memory beyond that before the creation of the head (Linux). A process that runs out of
memory leaves a row with its exit status. UFM-1000, trained to the end, is among the rows of study A, which the summary
reads.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import Results  # type: ignore[import-not-found]
from scratch_tables import collapse, comparison, groups, markdown  # type: ignore[import-not-found]
from torch.nn import functional as F

from nearest_etf import ImplicitETFHead

CLASSES = (100, 200, 500, 1000, 2000, 5000, 10_000)
THREADS, BATCH, NOISE = {"small": (1, 2), "full": (1,)}, 256, 0.5
FITTED_FROM = 500  # least number of classes in the fit of the exponents
SECONDS_AT_1000 = 1.0  # of a step on one thread, for the estimate; 1.5 were measured on a busy machine


def steps_of(K: int) -> int:
    return 20 if K < 5000 else 3


def seconds_of(K: int) -> float:
    """The estimated seconds of all steps and the start, which takes about as long as two steps."""
    return 5 + (steps_of(K) + 2) * SECONDS_AT_1000 * (K / 1000) ** 3


def measured(K: int, threads: int, device: str) -> dict[str, Any]:
    """Milliseconds of forward and backward, step by step, and their peak memory in bytes."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    d, cuda = max(512, K), device.startswith("cuda")
    directions = F.normalize(torch.randn(K, d), dim=1).to(device)
    before = torch.cuda.memory_allocated() if cuda else trimmed_resident()
    head = ImplicitETFHead(d, K).to(device)
    head.set_means(head.temperature * directions)
    milliseconds = []
    for _ in range(steps_of(K) + 1):
        labels = torch.randint(K, (BATCH,), device=device)
        noise = torch.randn(BATCH, d, device=device) / math.sqrt(d)
        features = (directions[labels] + NOISE * noise).requires_grad_()
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        F.cross_entropy(head(features, labels), labels).backward()
        if cuda:
            torch.cuda.synchronize()
        milliseconds.append(round(1e3 * (time.perf_counter() - began), 3))
    used = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")
    return {"d": d, "milliseconds": milliseconds[1:], "bytes": used - before, "fallbacks": int(head.fallbacks)}


def resident(field: str) -> int:
    """Resident bytes of this process (Linux): "VmRSS" now, "VmHWM" at the peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def trimmed_resident() -> int:
    """Resident bytes, after the allocator has returned free memory and the peak has been reset."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return resident("VmRSS")


def exponents(rows: list[dict[str, Any]], threads: int) -> str:
    """The exponents of a least-squares fit to the logarithms of medians, from FITTED_FROM classes on."""
    own = [row for row in rows if row["threads"] == threads and row["K"] >= FITTED_FROM and "milliseconds" in row]
    if len(own) < 2:
        return "–"
    K = np.log([row["K"] for row in own])
    times = np.polyfit(K, np.log([statistics.median(row["milliseconds"]) for row in own]), 1)[0]
    memory = np.polyfit(K, np.log([row["bytes"] for row in own]), 1)[0]
    return f"time K^{times:.2f}, memory K^{memory:.2f}"


def tables(rows: list[dict[str, Any]], trained: list[dict[str, Any]]) -> str:
    lines = [["K", "d", "threads", "milliseconds of a step", "MiB beside the features", "fallbacks"]]
    for row in sorted(rows, key=lambda row: (row["threads"], row["K"])):
        if "milliseconds" not in row:
            lines.append([str(row["K"]), "–", str(row["threads"]), f"ended with {row['failed']}", "–", "–"])
            continue
        ms = row["milliseconds"]
        told = f"{statistics.median(ms):.3g} ({min(ms):.3g}–{max(ms):.3g})"
        mebibytes = f"{row['bytes'] / 2**20:.0f}"
        lines.append([str(row["K"]), str(row["d"]), str(row["threads"]), told, mebibytes, str(row["fallbacks"])])
    parts = [markdown(lines)]
    for threads in sorted({row["threads"] for row in rows}):
        parts.append(f"Growth from {FITTED_FROM} classes on, {threads} thread(s): {exponents(rows, threads)}")
    by_head = groups(trained, lambda row: row["head"], data="ufm-1000")
    if by_head:
        parts += ["**UFM-1000**", comparison(by_head, "learned"), collapse(by_head, "learned")]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=("small", "full"), default="small", help="CPU, or a GPU [small]")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no size that would end later")
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/scale.json"))
    parser.add_argument("--trained", type=Path, nargs="+", default=[Path("benchmarks/results/from-scratch.json")])
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--summary", action="store_true", help="tables, as Markdown")
    parser.add_argument("--probe", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        K, threads = options.probe
        print(json.dumps(measured(K, threads, options.device)))
        return
    results, ends = Results(options.json), time.monotonic() + 60 * options.minutes
    if options.summary:
        print(tables(results.rows, [row for path in options.trained for row in Results(path).rows]))
        return
    done = {(row["K"], row["threads"]) for row in results.rows}
    left = [key for key in itertools.product(options.classes, THREADS[options.scale]) if key not in done]
    for K, threads in left:
        if options.dry_run:
            print(f"{seconds_of(K):6.0f} s  K = {K}, {threads} thread(s), {steps_of(K)} steps")
        elif time.monotonic() + seconds_of(K) < ends:
            command = [sys.executable, __file__, "--probe", str(K), str(threads), "--device", options.device]
            probe = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            found = {"failed": probe.returncode} if probe.returncode else json.loads(probe.stdout)
            results.add({"K": K, "threads": threads, "device": options.device, **found})
            print(f"K = {K}, {threads} thread(s): {found}", flush=True)
    done = {(row["K"], row["threads"]) for row in results.rows}
    left = [key for key in left if key not in done]
    print(f"{len(left)} sizes left, {sum(seconds_of(K) for K, _ in left) / 3600:.2f} hours; {len(done)} are done")


if __name__ == "__main__":
    main()
