"""A batch of small problems: forward and backward of 1,000 nearest ETFs of (64, 10), float32, on the CPU.

    python benchmarks/batched.py --quick
    python benchmarks/batched.py --threads 1 --json batched.json

Contestants take turns in one process. Ratios are to the first one in the same turn: median, least and greatest. Errors
are relative, over the whole batch, against autograd through singular values in float64. Cases:

    proximal    `nearest_etf(H, U0)`, the paper's form, as in a training step: the polar factor of A (d, K)
    first       `nearest_etf(H, formulation="gauge-free")`: the polar factor of A (d, K−1)
    square      `polar(A)` of A (K, K), which RoMa solves directly

RoMa (github.com/naver/roma; its licence excludes commercial use) has a differentiable orthogonal Procrustes for batches
of square matrices, `roma.procrustes`; a QR decomposition reduces the other cases to it. It is measured if installed.
"LAPACK alone" is the batched eigendecomposition of the Gram matrices in float64, a floor for our method.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from nearest_etf.common.machine import provenance
from nearest_etf.torchport import nearest_etf, polar
from nearest_etf.torchport.simplex import centred, from_coordinates, to_coordinates

DELTA = 1e-3
CASES = ("proximal", "first", "square")
OURS, LOOP, LAPACK = "ours, batched", "ours, one by one", "LAPACK alone"
Function = Callable[[Tensor, Tensor], Tensor]  # class means H and frames U0 to U, for "square" A to U


@dataclass(frozen=True)
class Row:
    """One contestant in one case; milliseconds of forward and backward of all problems."""

    case: str
    contestant: str
    problems: int
    d: int
    K: int
    median_ms: float
    fastest_ms: float
    slowest_ms: float
    rounds: int
    ratio: float  # to ours, batched, in the same turn: median, least, greatest
    ratio_low: float
    ratio_high: float
    frame_error: float | None
    gradient_error: float | None


def linear_term(case: str, H: Tensor, U0: Tensor) -> Tensor:
    """The matrices A (n, d, m), whose polar factors solve the problems."""
    if case == "square":
        return H
    scale = 2.0 / math.sqrt(H.shape[-1] - 1)
    return scale * centred(H) + DELTA * U0 if case == "proximal" else scale * to_coordinates(H)[0]


def by_polar_factor(case: str, factor: Callable[[Tensor], Tensor]) -> Function:
    """A function to the frames, by another implementation of the polar factor."""

    def frames(H: Tensor, U0: Tensor) -> Tensor:
        X = factor(linear_term(case, H, U0))
        return from_coordinates(X) if case == "first" else X

    return frames


def singular_vectors(A: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(A, full_matrices=False)
    return left @ right


def ours(case: str) -> Function:
    if case == "square":
        return lambda A, _: polar(A)
    if case == "proximal":
        return lambda H, U0: nearest_etf(H, U0, DELTA)
    return lambda H, _: nearest_etf(H, formulation="gauge-free")


def contestants(case: str) -> Iterator[tuple[str, Function]]:
    together = ours(case)
    yield OURS, together
    yield LOOP, lambda H, U0: torch.stack([together(h, u) for h, u in zip(H, U0, strict=True)])
    yield "autograd through SVD, batched", by_polar_factor(case, singular_vectors)
    if importlib.util.find_spec("roma"):
        roma: Any = importlib.import_module("roma")

        def after_qr(A: Tensor) -> Tensor:
            Q, R = torch.linalg.qr(A)
            return Q @ roma.procrustes(R)

        if case == "square":
            yield "roma.procrustes, batched", by_polar_factor(case, roma.procrustes)
        else:
            yield "QR and roma.procrustes, batched", by_polar_factor(case, after_qr)


def milliseconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def solved(function: Function, H: Tensor, U0: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """Frames, and the gradient of H for the cotangents G."""
    H = H.detach().requires_grad_()
    U = function(H, U0)
    return U.detach(), torch.autograd.grad(U, H, G)[0]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def measure(case: str, problems: int, d: int, K: int, rounds: int) -> list[Row]:
    """Measure all contestants in turn; the first round is a warm-up."""
    d = K if case == "square" else d
    generator = torch.Generator().manual_seed(0)
    H, U0, G = torch.randn(3, problems, d, K, generator=generator)
    H, U0 = centred(H) if case != "square" else H, torch.linalg.qr(U0)[0]
    H = H / torch.linalg.vector_norm(H, dim=(-2, -1), keepdim=True)
    exact = by_polar_factor(case, singular_vectors)
    frames, gradient = solved(exact, *(x.double() for x in (H, U0, G)))
    A = linear_term(case, H, U0).double()
    gram = A.mT @ A

    functions = dict(contestants(case))
    steps: dict[str, Callable[[], object]] = {
        name: lambda function=function: solved(function, H, U0, G)  # type: ignore[misc]
        for name, function in functions.items()
    }
    steps[LAPACK] = lambda: torch.linalg.eigh(gram)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            elapsed = milliseconds(step)
            if turn > 0:
                times[name].append(elapsed)
    rows = []
    for name, values in times.items():
        ratios = [mine / first for mine, first in zip(values, times[OURS], strict=True)]
        spread = (median(values), min(values), max(values), rounds, median(ratios), min(ratios), max(ratios))
        errors: tuple[float | None, float | None] = (None, None)
        if name in functions:
            found = solved(functions[name], H, U0, G)
            errors = (relative(found[0], frames), relative(found[1], gradient))
        rows.append(Row(case, name, problems, d, K, *spread, *errors))
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--size", default="64x10", help="dxK [64x10]")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="100 problems, five rounds")
    parser.add_argument("--json", help="write all rows to this file")
    options = parser.parse_args(arguments)
    d, _, K = options.size.partition("x")
    if not (d.isdigit() and K.isdigit() and int(d) >= int(K) >= 2):
        parser.error(f"--size {options.size}: expected dxK with d ≥ K ≥ 2, such as 64x10")
    options.d, options.K = int(d), int(K)
    if options.quick:
        options.problems, options.rounds = 100, 5
    return options


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    print(f"{'case':10}{'contestant':34}{'ms':>9}{'least':>9}{'most':>9}{'ratio':>8}{'spread':>15}{'errors':>18}")
    for case in options.cases:
        for r in measure(case, options.problems, options.d, options.K, options.rounds):
            rows.append(r)
            errors = f"{r.frame_error:9.0e}{r.gradient_error:9.0e}" if r.frame_error is not None else ""
            spread = f"{r.ratio_low:.2f}–{r.ratio_high:.2f}"
            times = f"{r.median_ms:9.1f}{r.fastest_ms:9.1f}{r.slowest_ms:9.1f}{r.ratio:8.2f}{spread:>15}"
            print(f"{r.case:10}{r.contestant:34}{times}{errors}", flush=True)
            if r.contestant == LAPACK:
                print(f"{'':10}LAPACK takes {100 * r.ratio:.0f} % of our time")
    if options.json:
        report = {"provenance": provenance(), "rows": [asdict(r) for r in rows]}
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
