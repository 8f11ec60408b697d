"""`etf-verify`: prove on this machine, in seconds, that solver and gradient are right."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import scipy

from .problems import SIZES, problem_bank
from .verify import Check, convergence, verify

EXAMPLES = """\
examples:
  etf-verify                                 the whole bank, some ten seconds
  etf-verify --sizes 512x10 100x100 --seeds 3
  etf-verify --dtype float32 --json checks.json
  etf-verify --sizes 64x10 --plot convergence.png

Exit status: 0 if every check passed, 1 if one failed, 2 for bad use.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run `etf-verify`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="etf-verify",
        description="Check the nearest-ETF solver, its certificate and its gradients on a bank of problems.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sizes", nargs="+", type=_size, default=SIZES, metavar="DxK", help="feature dimensions x classes"
    )
    parser.add_argument("--seeds", type=_positive, default=1, metavar="N", help="problems of each kind (default 1)")
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64", help="precision of the input")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON too")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw gap and gradient norm per iteration (needs matplotlib)"
    )
    options = parser.parse_args(arguments)
    for target in (options.json, options.plot):
        if target is not None and not target.parent.is_dir():
            parser.error(f"{target}: the folder {target.parent} does not exist")

    start = time.perf_counter()
    checks = verify(problem_bank(options.sizes, options.seeds, dtype=options.dtype))
    seconds = time.perf_counter() - start
    print(table(checks))
    failed = [check for check in checks if not check.passed]
    problems = max(check.problems for check in checks)
    print(f"\n{len(checks) - len(failed)} of {len(checks)} checks passed on {problems} problems in {seconds:.1f} s")
    for check in failed:
        print(f"FAILED  {check.name}: {check.figure:.3g} at {check.worst}")

    if options.json is not None:
        report = {
            "passed": not failed,
            "seconds": seconds,
            "sizes": options.sizes,
            "seeds": options.seeds,
            "dtype": options.dtype,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "machine": platform.machine(),
            "checks": [asdict(check) for check in checks],
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if options.plot is not None:
        try:
            plot_convergence(options.plot, *options.sizes[-1])
        except ImportError:
            print('etf-verify: --plot needs matplotlib: pip install "nearest-etf[train]"', file=sys.stderr)
            return 2
    return 1 if failed else 0


def table(checks: list[Check]) -> str:
    """The checks as lines of text: name, worst figure, bound, verdict, and where the worst was."""
    width = max(len(check.name) for check in checks)
    lines = [f"{'check':{width}}  {'worst':>9}    {'bound':>7}  result  worst at"]
    for check in checks:
        relation = "≥" if check.at_least else "≤"
        figure = f"{check.figure:9.2f}" if check.at_least else f"{check.figure:9.1e}"
        bound = f"{check.bound:7.1f}" if check.at_least else f"{check.bound:7.0e}"
        verdict = "pass" if check.passed else "FAIL"
        lines.append(f"{check.name:{width}}  {figure}  {relation} {bound}  {verdict:6}  {check.worst}")
    return "\n".join(lines)


def plot_convergence(path: Path, d: int, K: int) -> None:
    """Certificate gap and gradient norm per iteration from a random start, truncated CG against the exact step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    for (subproblem, curve), marker in zip(convergence(d, K).items(), ("o", "s"), strict=True):
        gaps, norms = np.array(curve).T
        axes[0].semilogy(np.maximum(gaps, 1e-17), marker=marker, label=subproblem)
        axes[1].semilogy(norms, marker=marker, label=subproblem)
    axes[0].set(xlabel="outer iteration", ylabel="certificate gap  ‖A‖_* − ⟨U, A⟩,  ‖A‖_F = 1")
    axes[1].set(xlabel="outer iteration", ylabel="Riemannian gradient norm")
    axes[1].legend(title="subproblem")
    figure.suptitle(f"Trust region from a random start, d = {d}, K = {K}, κ = 10")
    figure.savefig(path, dpi=150)


def _size(text: str) -> tuple[int, int]:
    try:
        d, K = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; expected DxK, as in 512x10") from None
    if K < 2 or d < K - 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected K ≥ 2 classes and at least K−1 features")
    return d, K


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
