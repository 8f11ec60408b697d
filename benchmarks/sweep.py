"""Random problems of every kind, solved by every solver; orthonormality, gap, ETF and gradient are checked.

    python benchmarks/sweep.py                        31,000 problems, about ten minutes on one core
    python benchmarks/sweep.py --problems 1000        the first thousand of them
    python benchmarks/sweep.py --only 17              one of them, with all its figures

- Shapes: up to d = 300, K = 60.
- Kinds: full rank with condition numbers up to 1e10, rank-deficient, batches without some classes, equal class means,
  antipodal proximal points U₀ = −U*.
- Scales: 1, 1e±150 in float64, 1e±15 in float32.
- Solvers: the reference's trust region and singular values, and the methods of torchport.

Seed and index determine a problem.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.linalg import null_space, svdvals
from tqdm import tqdm

from nearest_etf.common.files import write_file
from nearest_etf.common.machine import provenance
from nearest_etf.reference import NearestETF, initial_frame, nearest_etf, nearest_etf_vjp
from nearest_etf.reference.problems import class_means_of_condition
from nearest_etf.reference.simplex import centred, centred_basis, centring
from nearest_etf.reference.stiefel import Array, safe_frobenius
from nearest_etf.torchport import solve

KINDS = ("full rank", "rank-deficient", "absent classes", "equal means", "antipodal")
METHODS = ("svd", "eigh", "matmul", "auto")
EPS = {"float64": float(np.finfo(np.float64).eps), "float32": float(np.finfo(np.float32).eps)}
LARGEST_SCALE = {"float64": 150, "float32": 15}
CHECKS = ("orthonormality", "gap", "ETF", "gradient")


@dataclass(frozen=True)
class Problem:
    """(P) or (R) for class means H and, with δ > 0, a proximal point U₀; both have entries of `dtype`."""

    index: int
    kind: str
    class_means: Array  # H (d, K)
    proximal: Array | None  # U₀ (d, K)
    delta: float
    formulation: Literal["paper", "gauge-free"]
    dtype: str
    scale: int  # power of ten
    cotangent: Array  # (d, K)

    @property
    def name(self) -> str:
        d, K = self.class_means.shape
        start = "no U₀" if self.proximal is None else f"δ={self.delta:.1e}"
        return f"#{self.index} {self.kind}, ({d}, {K}), {self.formulation}, {start}, {self.dtype}, 1e{self.scale:+d}"

    def by_reference(self, method: Literal["trust-region", "svd"]) -> NearestETF:
        return nearest_etf(self.class_means, self.proximal, self.delta, method=method, formulation=self.formulation)


def draw(seed: int, index: int) -> Problem:
    """The problem with this seed and index."""
    rng = np.random.default_rng([seed, index])
    K = int(np.exp(rng.uniform(np.log(2), np.log(61))))
    formulation: Literal["paper", "gauge-free"] = "paper" if rng.random() < 0.5 else "gauge-free"
    smallest = K if formulation == "paper" else max(K - 1, 1)
    d = smallest if rng.random() < 0.15 else int(np.exp(rng.uniform(np.log(smallest), np.log(301))))
    kind = str(rng.choice(KINDS))
    dtype = "float64" if rng.random() < 0.7 else "float32"
    scale = int(rng.choice([-1, 1])) * LARGEST_SCALE[dtype] if rng.random() < 0.3 else 0

    H = class_means_of_condition(d, K, 10 ** rng.uniform(0, 10 if dtype == "float64" else 4), rng)
    if kind == "rank-deficient":
        rank = int(rng.integers(0, K - 1))
        H = centred(rng.standard_normal((d, rank)) @ rng.standard_normal((rank, K)))
    elif kind == "absent classes":
        counts = rng.multinomial(K, np.full(K, 1 / K))
        H = rng.standard_normal((d, K)) * (counts > 0)
        H = (H - H @ counts[:, None] / K) * (counts > 0)
    elif kind == "equal means":
        H[:, :-1][:, rng.random(K - 1) < 0.3] = H[:, :1]
        H = centred(H)
        if rng.random() < 0.3:  # all means; at scale 1, since at others their rounding exceeds a proximal term
            H, scale = np.tile(H[:, :1], K), 0
    U0, delta = None, 10 ** rng.uniform(-4, 1)
    if kind == "antipodal":  # A = U*(P − δ I) is singular only if δ is an eigenvalue of P
        U0 = -nearest_etf(H, method="svd", formulation=formulation).frame
    elif kind != "absent classes" and rng.random() < 0.6:
        near = H + 0.1 * rng.standard_normal((d, K)) / math.sqrt(d * K)
        U0 = initial_frame("random" if rng.random() < 0.5 else "feature-polar", near, rng)
    H = (H * 10.0**scale).astype(dtype).astype(np.float64)
    U0 = None if U0 is None else U0.astype(dtype).astype(np.float64)
    return Problem(index, kind, H, U0, delta, formulation, dtype, scale, rng.standard_normal((d, K)))


@dataclass(frozen=True)
class Truth:
    """The solution in float64 by singular values, and its condition."""

    solution: NearestETF
    etf: Array  # U M (d, K)
    row_space: Array  # (K, r) of A, as columns of the frame; gradients are compared only there
    condition: float  # error of the frame over the relative errors of H and U₀
    class_means_bar: Array | None  # H̄ (d, K); None if it is too ill-conditioned for a comparison
    length: float  # norm of H̄; at least a hundredth of the norm of its formula's terms, which can cancel

    @classmethod
    def of(cls, problem: Problem) -> Truth:
        solution = problem.by_reference("svd")
        K, R = solution.frame.shape[1], solution.row_space
        E = centred_basis(K) if solution.gauge_free else np.eye(K)
        S = E if R is None else E @ R
        sigma = float(solution.singular_values[S.shape[1] - 1])
        if S.shape[1]:
            terms = 2 / math.sqrt(K - 1) * safe_frobenius(problem.class_means) + solution.delta * math.sqrt(K)
            condition = terms / sigma
        else:  # all frames are solutions; the start decides, or rounding if H is not exactly zero
            condition = math.inf if problem.class_means.any() else 1.0
        taken = S if problem.formulation == "paper" else np.column_stack([S, np.ones(K)])
        if taken.shape[1] < K:  # the null space of A is completed from the initial frame, with this condition
            N = null_space(taken.T)
            open_part = solution.initial @ N - solution.frame @ S @ (S.T @ (solution.frame.T @ (solution.initial @ N)))
            condition /= max(float(svdvals(open_part)[-1]), 1e-300)
        bar, length = None, 1.0
        # If A with a proximal point is singular, torchport takes the completion of the frame as constant.
        if problem.dtype == "float64" and condition < 1e5 and (R is None or problem.proximal is None):
            bar = nearest_etf_vjp(solution, problem.cotangent)[0] @ S @ S.T
            if S.shape[1]:
                terms = 2 / math.sqrt(K - 1) * safe_frobenius(problem.cotangent) / sigma
                length = max(safe_frobenius(bar), 0.01 * terms)
        return cls(solution, centred(solution.frame), S, condition, bar, length)

    def figures(self, problem: Problem, frame: Array, gradient: Array | None = None) -> dict[str, tuple[float, float]]:
        """The figure and the bound of each check; a figure that is not finite fails."""
        # The reference solves in float64 for every dtype. Its trust region stops at a gradient of 1e-13 ‖A‖_F.
        eps = EPS[problem.dtype if gradient is not None else "float64"]
        K, A = frame.shape[1], self.solution.linear_term
        gram = np.eye(K) if problem.formulation == "paper" else centring(K)
        X = frame @ centred_basis(K) if self.solution.gauge_free else frame
        best = float(self.solution.singular_values.sum())
        found = {
            # Rounding the entries gives eps √K; the rest allows for the rounding of products.
            "orthonormality": (float(np.linalg.norm(frame.T @ frame - gram)), max(1e-12, 20 * eps * math.sqrt(K))),
            # Linear in the frame, so there is no factor for its rounding.
            "gap": (abs(best - float(np.vdot(X, A))) / best if best > 0 else 0.0, max(1e-12, 20 * eps)),
        }
        bound = max(1e-12, 20 * eps) * self.condition
        if bound < 0.1:
            found["ETF"] = (float(np.linalg.norm(centred(frame) - self.etf)), bound)
        if gradient is not None:
            found["gradient"] = (0.0 if np.isfinite(gradient).all() else np.nan, 1.0)
            if self.class_means_bar is not None:
                error = safe_frobenius(gradient @ self.row_space @ self.row_space.T - self.class_means_bar)
                found["gradient"] = (error / self.length, 1e-10 * self.condition)
        return found


def by_torch(problem: Problem, method: str) -> tuple[Array, Array, int]:
    """Frame, gradient of the class means, and number of fallbacks of a method of torchport."""
    dtype = getattr(torch, problem.dtype)
    H = torch.tensor(problem.class_means, dtype=dtype, requires_grad=True)
    U0 = None if problem.proximal is None else torch.tensor(problem.proximal, dtype=dtype, requires_grad=True)
    solution = solve(H, U0, problem.delta, method=method, formulation=problem.formulation)
    solution.frame.backward(torch.tensor(problem.cotangent, dtype=dtype))
    assert H.grad is not None
    gradient = H.grad.double().numpy()
    if U0 is not None and not (U0.grad is not None and bool(U0.grad.isfinite().all())):
        gradient = np.full_like(gradient, np.nan)
    return solution.frame.detach().double().numpy(), gradient, int(solution.fallbacks)


def answers(problem: Problem) -> Iterator[tuple[str, Callable[[], tuple[Array, Array | None, int]]]]:
    """The name of every solver, and a function to its frame, gradient and fallbacks for the problem."""

    def reference(method: Literal["trust-region", "svd"]) -> Callable[[], tuple[Array, None, int]]:
        def answer() -> tuple[Array, None, int]:
            solution = problem.by_reference(method)
            if not solution.status.ok:
                raise RuntimeError(f"status {solution.status.value!r}")
            return solution.frame, None, 0

        return answer

    yield "NumPy trust-region", reference("trust-region")
    yield "NumPy svd", reference("svd")
    for method in METHODS:
        yield f"torch {method}", partial(by_torch, problem, method)


@dataclass
class Tally:
    """The worst figures of one solver in one dtype."""

    problems: int = 0
    fallbacks: int = 0
    failures: int = 0
    worst: dict[str, float] = field(default_factory=dict)
    of_bound: dict[str, float] = field(default_factory=dict)
    compared: Counter[str] = field(default_factory=Counter)

    def add(self, figures: dict[str, tuple[float, float]], fallbacks: int) -> list[str]:
        """Count one answer; returns a line for each failed check."""
        self.problems += 1
        self.fallbacks += fallbacks
        wrong = []
        for check, (figure, bound) in figures.items():
            self.compared[check] += 1
            if not figure <= bound:
                wrong.append(f"{check} {figure:.1e}, bound {bound:.1e}")
            else:
                self.worst[check] = max(self.worst.get(check, 0.0), figure)
            self.of_bound[check] = max(self.of_bound.get(check, 0.0), figure / bound if figure == figure else math.inf)
        self.failures += bool(wrong)
        return wrong


@dataclass
class Sweep:
    """The results of a sweep."""

    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)  # by solver and dtype
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def check(self, problem: Problem) -> None:
        """Solve a problem by every solver, and count the results."""
        truth = Truth.of(problem)
        self.kinds[problem.kind] += 1
        for solver, answer in answers(problem):
            tally = self.tallies.setdefault((solver, problem.dtype), Tally())
            try:
                frame, gradient, fallbacks = answer()
            except Exception as error:  # every problem is solvable, so any error is a failure of the solver
                tally.problems += 1
                tally.failures += 1
                wrong = [f"{type(error).__name__}: {error}"]
            else:
                wrong = tally.add(truth.figures(problem, frame, gradient), fallbacks)
            self.failures += [f"{problem.name}: {solver}: {line}" for line in wrong]

    def table(self) -> str:
        """The worst figures that pass, and the largest ratios to the bounds."""
        lines = [f"{'solver':18}  {'dtype':7}  {'problems':>8}  {'stepped in':>10}  {'failed':>6}"]
        lines[0] += "".join(f"  {check + ' (of bound)':>25}" for check in CHECKS)
        for (solver, dtype), tally in sorted(self.tallies.items()):
            line = f"{solver:18}  {dtype:7}  {tally.problems:8,}  {tally.fallbacks:10,}  {tally.failures:6,}"
            for check in CHECKS:
                known = check in tally.compared
                figure = f"{tally.worst.get(check, math.nan):.1e} ({tally.of_bound[check]:.2g})" if known else "–"
                line += f"  {figure:>25}"
            lines.append(line)
        return "\n".join([*lines, ", ".join(f"{kind}: {n:,}" for kind, n in sorted(self.kinds.items()))])


def sweep(problems: int, seed: int = 0, *, first: int = 0, progress: bool = False) -> Sweep:
    """Check `problems` problems, from the index `first` on."""
    found = Sweep()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ill-conditioned problems and of fallbacks, which are intended here
        bar = tqdm(range(first, first + problems), unit="problem", disable=not progress)
        for index in bar:
            found.check(draw(seed, index))
            bar.set_postfix(failures=len(found.failures), refresh=False)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=31_000, help="number of problems [31000]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="INDEX", help="only this problem")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)  # small problems
    if options.only is not None:
        found = sweep(1, options.seed, first=options.only)
        print(draw(options.seed, options.only).name)
    else:
        found = sweep(options.problems, options.seed, progress=True)
    print(found.table())
    print(f"{len(found.failures)} failures", *found.failures[:40], sep="\n  ")
    if options.json is not None:
        rows: list[dict[str, Any]] = [{"solver": s, "dtype": t, **vars(y)} for (s, t), y in found.tallies.items()]
        report = {"provenance": provenance(), "kinds": found.kinds, "rows": rows, "failures": found.failures}
        write_file(options.json, json.dumps(report, indent=1) + "\n")
    return int(bool(found.failures))


if __name__ == "__main__":
    sys.exit(main())
