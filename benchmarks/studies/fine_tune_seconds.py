"""Seconds of a training step in study B by head: on a quiet machine, one process, one thread, heads in turns.

    NEAREST_ETF_DATA=data python benchmarks/studies/fine_tune_seconds.py    # about ten minutes; repeat for more rounds
    python benchmarks/studies/fine_tune_seconds.py --summary

The rows of the study do not show them, because two runs shared the machine. Here every head trains the 40 steps of the
centre with its choice from the result files, one head after the other, in several rounds. The start of a head (the pass
over the training images, the probe) is measured separately. The time to a target is the start plus the steps up to the
first named epoch at which the study's runs reach it (median).
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fine_tune  # type: ignore[import-not-found]
import torch
from fine_tune import CENTRE, HEADS, TARGETS, Backbone, Run, chosen, images_of  # type: ignore[import-not-found]
from fine_tune_tables import Rows, first, markdown, reported  # type: ignore[import-not-found]
from paired import Results  # type: ignore[import-not-found]

EPOCHS, STEPS_PER_EPOCH, SEED = 4, 10, 0


def table(rows: list[dict[str, Any]], study: Rows) -> str:
    """Milliseconds of a step, seconds of the start, and seconds to the targets, by head."""
    lines = [["head", "ms of a step: median (range)", "s of the start", *(f"s to {goal:.2f}" for goal in TARGETS)]]
    for head in dict.fromkeys(row["head"] for row in rows):
        own = [row["seconds"] for row in rows if row["head"] == head]
        steps = [1000 * seconds["train"] / (EPOCHS * STEPS_PER_EPOCH) for seconds in own]
        start, step = statistics.median(seconds["start"] for seconds in own), statistics.median(steps)
        line = [head, f"{step:.0f} ({min(steps):.0f}–{max(steps):.0f})", f"{start:.1f}"]
        of_study = [row for row in reported(study, "centre", EPOCHS) if row["head"] == head]
        for goal in TARGETS:
            epoch = statistics.median(first(row, goal) for row in of_study)
            took = start + epoch * STEPS_PER_EPOCH * step / 1000
            line.append("never" if math.isinf(took) else f"{took:.0f}")
        lines.append(line)
    return str(markdown(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results = Path("benchmarks/results")
    parser.add_argument("--study", type=Path, nargs="+", default=[results / f"fine-tune-{n}.json" for n in (1, 2)])
    parser.add_argument("--json", type=Path, default=results / "seconds-fine-tune.json")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--heads", nargs="+", choices=CENTRE[EPOCHS], default=list(fine_tune.EIGHT))
    parser.add_argument("--summary", action="store_true", help="the table of the file, as Markdown")
    options = parser.parse_args()
    study: Rows = [row for path in options.study for row in Results(path).rows]
    found = Results(options.json)
    if not options.summary:
        torch.set_num_threads(1)
        images = images_of("cifar10", 50, SEED, 50, False, None)
        for turn in range(options.rounds):
            for head in options.heads[turn % len(options.heads) :] + options.heads[: turn % len(options.heads)]:
                choice = chosen(study, HEADS[head].tuned_as or head, EPOCHS)
                if choice is None:
                    parser.exit(1, f"{head}: no trial of it in {', '.join(map(str, options.study))}\n")
                run = Run("report", "seconds", head, EPOCHS, SEED, **choice)
                backbone = Backbone().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                seconds = fine_tune.trained(run, images, backbone, 50)["seconds"]
                load = round(os.getloadavg()[0], 2)  # about 1 if nothing else runs
                found.add({**asdict(run), "round": turn, "seconds": seconds, "load": load})
                print(head, seconds, f"load {load}", flush=True)
    print(table(found.rows, study))


if __name__ == "__main__":
    main()
