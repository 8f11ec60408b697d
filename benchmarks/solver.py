"""The trust region against its peers, on the successive problems of a training run.

    python benchmarks/solver.py                 all sizes, about five minutes on two cores
    python benchmarks/solver.py --quick         small sizes only, seconds
    python benchmarks/solver.py --threads 1     on a shared machine, where waiting threads would spin
    python benchmarks/solver.py --json solver.json

All solvers have the same problem (P), start U₀ (the previous step's solution) and tolerance on the Riemannian gradient.
They take turns in each round, and ratios are taken within a round. Peers:

- Pymanopt's TrustRegions: NumPy backend, polar retraction, exact derivatives of the same linear cost;
- geoopt's Riemannian Adam: torch, Stiefel manifold, at most ADAM_STEPS steps, not at K = 1000.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from nearest_etf.common.files import write_file
from nearest_etf.common.machine import available_cores, provenance
from nearest_etf.reference import NearestETF, nearest_etf
from nearest_etf.reference.stiefel import Array, project

SIZES = ((512, 10), (512, 100), (2048, 1000))
DELTA = 1e-3
TOLERANCE = 1e-6  # of the Riemannian gradient norm of (P′)
ADAM_STEPS = 500


def training_problem(d: int, K: int, seed: int) -> tuple[Array, Array]:
    """Class means H of a late training step (α = 1e-2), and the previous step's frame U₀, both (d, K)."""
    rng = np.random.default_rng(seed)
    running, batch = rng.standard_normal((2, d, K))
    before = running / np.linalg.norm(running)
    after = 0.99 * before + 0.01 * batch / np.linalg.norm(batch)
    frame = nearest_etf(before, np.eye(d, K), DELTA, method="svd").frame
    return after / np.linalg.norm(after), frame


def solvers(H: Array, U0: Array) -> dict[str, Callable[[], tuple[Array, int]]]:
    """Functions that solve the problem; each returns the frame and the number of outer iterations."""
    d, K = H.shape
    A = 2 / np.sqrt(K - 1) * (H - H.mean(axis=1, keepdims=True)) + DELTA * U0
    relative = TOLERANCE / float(np.linalg.norm(A))

    def ours(**options: Any) -> Callable[[], tuple[Array, int]]:
        def solve() -> tuple[Array, int]:
            solution: NearestETF = nearest_etf(H, U0, DELTA, tolerance=relative, **options)
            return solution.frame, solution.iterations

        return solve

    def pymanopt_trust_region() -> tuple[Array, int]:
        import pymanopt

        manifold = pymanopt.manifolds.Stiefel(d, K, retraction="polar")

        @pymanopt.function.numpy(manifold)
        def cost(U: Array) -> float:
            return -float(np.vdot(U, A))

        @pymanopt.function.numpy(manifold)
        def gradient(U: Array) -> Array:
            return -A

        @pymanopt.function.numpy(manifold)
        def hessian(U: Array, V: Array) -> Array:
            return np.zeros_like(V)

        problem = pymanopt.Problem(manifold, cost, euclidean_gradient=gradient, euclidean_hessian=hessian)
        optimizer = pymanopt.optimizers.TrustRegions(verbosity=0, min_gradient_norm=TOLERANCE)
        result = optimizer.run(problem, initial_point=U0)
        return result.point, result.iterations

    def geoopt_adam() -> tuple[Array, int]:
        import geoopt

        target = torch.tensor(A)
        U = geoopt.ManifoldParameter(torch.tensor(U0), manifold=geoopt.Stiefel())
        optimizer = geoopt.optim.RiemannianAdam([U], lr=1e-2)
        for step in range(1, ADAM_STEPS + 1):
            optimizer.zero_grad()
            (-(U * target).sum()).backward()
            optimizer.step()
            if step % 10 == 0:
                frame = U.detach().numpy()
                if np.linalg.norm(project(frame, A)) <= TOLERANCE:
                    break
        return U.detach().numpy(), step

    return {
        "exact step": ours(),
        "truncated CG": ours(subproblem="truncated-cg"),
        "polar factor (SVD)": ours(method="svd"),
        "pymanopt TrustRegions": pymanopt_trust_region,
        "geoopt RiemannianAdam": geoopt_adam,
    }


def measure(d: int, K: int, rounds: int) -> list[dict[str, Any]]:
    """Times of each solver over the rounds, its worst gap, and the ratio of Pymanopt's time to its own."""
    times: dict[str, list[float]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for turn in range(rounds):
        H, U0 = training_problem(d, K, seed=turn)
        oracle = nearest_etf(H, U0, DELTA, method="svd")
        A, best = oracle.linear_term, float(oracle.singular_values.sum())
        for name, solve in solvers(H, U0).items():
            if name.startswith("geoopt") and (turn >= 1 or K >= 1000):  # hundreds of steps, 1 s each at K = 1000
                continue
            time.sleep(0.1)  # the threads of another library's BLAS stop spinning
            repeats = 1 if K >= 1000 or name.startswith("geoopt") else 6
            stamps = [time.perf_counter()]
            for _ in range(repeats):
                frame, iterations = solve()
                stamps.append(time.perf_counter())
            laps = np.diff(stamps)[-5:]  # the first of six is a warm-up
            times.setdefault(name, []).append(float(np.median(laps)))
            gap = (best - float(np.vdot(frame, A))) / best
            worst = max(gap, facts.get(name, {}).get("gap", -1.0))
            facts[name] = {"gap": worst, "iterations": iterations}
    peer = times["pymanopt TrustRegions"]
    rows = []
    for name, seconds in times.items():
        ratios = [theirs / own for theirs, own in zip(peer, seconds, strict=False)]
        rows.append(
            {
                "d": d,
                "K": K,
                "solver": name,
                "median_ms": 1e3 * statistics.median(seconds),
                "min_ms": 1e3 * min(seconds),
                "max_ms": 1e3 * max(seconds),
                "rounds": len(seconds),
                **facts[name],
                "pymanopt_over_it": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave (2048, 1000) out")
    parser.add_argument("--threads", type=int, default=available_cores(), help="of BLAS and torch [all cores]")
    parser.add_argument("--rounds", type=int, default=7, help="problems per size [7]; 3 at the largest size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)  # for geoopt
    with threadpool_limits(options.threads):
        rows = table(options.quick, options.rounds)
    if options.json is not None:
        report = {"provenance": provenance(), "rows": rows}
        write_file(options.json, json.dumps(report, indent=1) + "\n")


def table(quick: bool, rounds: int) -> list[dict[str, Any]]:
    """Print one line per size and solver, and return the rows."""
    rows = []
    print(
        f"{'(d, K)':>12}  {'solver':22}  {'median ms':>10}  {'min … max':>21}  steps  {'gap/‖A‖_*':>9}  pymanopt / it"
    )
    for d, K in SIZES[:2] if quick else SIZES:
        for row in measure(d, K, min(rounds, 3) if K >= 1000 else rounds):
            rows.append(row)
            spread = f"{row['min_ms']:9.2f} … {row['max_ms']:9.2f}"
            ratio = f"{row['pymanopt_over_it']:7.1f}×  ({row['ratio_min']:.1f} … {row['ratio_max']:.1f})"
            print(
                f"({d:5d},{K:5d})  {row['solver']:22}  {row['median_ms']:10.2f}  {spread}  {row['iterations']:5d}"
                f"  {row['gap']:9.1e}  {ratio}",
                flush=True,
            )
    return rows


if __name__ == "__main__":
    main()
