"""Files of a run, mutated: each is read as it was written, or refused in one line, within memory and time.

    python -m tests.faults.mutations --tries 2000          of each kind, about ten minutes on one core
    python -m tests.faults.mutations --kinds checkpoint config.json --tries 100 --seed 7

How files are changed, and read in children of this process with at most 2 GB beyond its own, is in `mutate_files.py`.
What carries a seal (checkpoints, config.json, metrics, recalibration, measurements) has to be as it was, or a shorter
file of whole lines; of the rest (recipes, what somebody edited, checkpoints written anew with other values, which then
are resumed) only exceptions that are not ours count.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from nearest_etf.common.files import write_file
from tests.faults.children import cpu_seconds
from tests.faults.good_runs import example, run_kinds
from tests.faults.mutate_files import run

RESULTS = Path(__file__).parent / "results" / "mutations-run.json"


def main(arguments: list[str] | None = None) -> int:
    """Print a row for each kind, and write them as JSON; 1 if anything is to be mended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", metavar="KIND")
    parser.add_argument("--tries", type=int, default=2000, help="mutations of each kind [2000]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    kinds = run_kinds()
    files = [file for kind in kinds.values() for file in kind.samples[0].items()]
    rows, clean = [], True
    for name in given.kinds or kinds:
        kind, began = kinds[name], time.monotonic()
        own = {Path(file).suffix for file in kind.samples[0]}
        others = [data for file, data in files if Path(file).suffix not in own]
        found = run(name, kind, others, given.tries, given.seed)
        clean = clean and found.clean
        rows.append(
            {
                "fault": f"{name}: bits, cuts, splices, other files" + (", other JSON types" if kind.is_json else ""),
                "tries": found.tries,
                "refused": found.refused,
                "read as it was" if kind.sealed else "read": found.read,
                "other contents": found.changed,
                "not ours": found.foreign,
                "died": found.died,
                "slow": found.slow,
                "megabytes": found.megabytes,
                "seconds": found.seconds,
                "seen": example(kind),
            }
        )
        print(
            f"{name:21}{found.tries:6} tried {found.refused:6} refused {found.read:6} read {found.changed:4} other "
            f"{found.megabytes:7.1f} MB {found.seconds:6.2f} s at most {time.monotonic() - began:7.1f} s",
            flush=True,
        )
        for problem in (*found.foreign, *found.died, *found.slow)[:10]:
            print(f"    {problem}", flush=True)
    write_file(given.to, json.dumps({"seed": given.seed, "cpu_seconds": cpu_seconds(), "kinds": rows}, indent=1) + "\n")
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
