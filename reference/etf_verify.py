"""`etf-verify`: a numerical check of solver, certificate and gradients, in seconds."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..common.command import Parser, integer, printer, run_command
from ..common.files import write_file
from ..common.machine import provenance

PROG = "etf-verify"
DESCRIPTION = "Check the nearest-ETF solver, its certificate and its gradients on a bank of problems."
EXAMPLES = """\
etf-verify                                 the whole bank, about ten seconds
etf-verify --sizes 512x10 100x100 --seeds 3
etf-verify --dtype float32 --json checks.json
etf-verify --sizes 64x10 --plot convergence.png
etf-verify --quiet                         exit status only: 0 all checks passed, 1 a check failed, 2 usage error
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `etf-verify`; returns the exit status."""
    parser = Parser(PROG, DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "--sizes", nargs="+", type=_size, metavar="DxK", help="feature dimensions x classes (default: 3x2 to 128x10)"
    )
    parser.add_argument("--seeds", type=_positive, default=1, metavar="N", help="problems of each kind (default 1)")
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64", help="precision of the input")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw gap and gradient norm per iteration (needs matplotlib)"
    )
    options = parser.parse_args(arguments)
    for target in (options.json, options.plot):
        if target is not None and not target.parent.is_dir():
            parser.error(f"{target}: the folder {target.parent} does not exist")
    return run_command(PROG, lambda: run(options))


def run(options: argparse.Namespace) -> int:
    """Measure every claim, print the table, write the files of `--json` and `--plot`; 1 if a check failed, else 0."""
    from .convergence import picture_format, plot_convergence
    from .problems import SIZES, problem_bank
    from .verify import table, verify

    show = printer(options.quiet)
    sizes = SIZES if options.sizes is None else options.sizes
    if options.plot is not None:
        picture_format(options.plot)  # before the checks: matplotlib may be missing, or the suffix unknown

    start = time.perf_counter()
    checks = verify(problem_bank(sizes, options.seeds, dtype=options.dtype))
    seconds = time.perf_counter() - start
    show(table(checks))
    failed = [check for check in checks if not check.passed]
    problems = max(check.problems for check in checks)
    show(f"\n{len(checks) - len(failed)} of {len(checks)} checks passed on {problems} problems in {seconds:.1f} s")
    for check in failed:
        show(f"FAILED  {check.name}: {check.figure:.3g} at {check.worst}")

    if options.json is not None:
        report = {
            "passed": not failed,
            "seconds": seconds,
            "sizes": sizes,
            "seeds": options.seeds,
            "dtype": options.dtype,
            "provenance": provenance(),
            "checks": [asdict(check) for check in checks],
        }
        write_file(options.json, json.dumps(report, indent=1) + "\n")
    if options.plot is not None:
        plot_convergence(options.plot, *sizes[-1])
    return 1 if failed else 0


def _size(text: str) -> tuple[int, int]:
    try:
        d, K = (integer(number) for number in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; expected DxK, as in 512x10") from None
    if K < 2 or d < K - 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected K ≥ 2 classes and at least K−1 features")
    return d, K


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return integer(text)


if __name__ == "__main__":
    sys.exit(main())
