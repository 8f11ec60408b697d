"""The layer against its peers: time, memory and error of forward + backward, alternating in one process.

    python benchmarks/layer.py --quick                     a minute: (512, 10) and (512, 100)
    python benchmarks/layer.py --json layer.json --plot layer.png
    python benchmarks/layer.py --device cuda --sizes 512x100 2048x1000 10000x10000

Contestants:

- ours, by each method;
- autograd through torch.linalg.svd;
- SciPy's polar factor (forward only);
- the paper's method: Pymanopt's trust region with the dense declarative backward of Gould et al. 2021 (proposition
  4.5), implemented here with all its structure, except that the Jacobian of the constraints is a dense matrix.

Errors are relative, of the ETF `U M` and of the gradient, against singular values in float64. Ratios are to the first
contestant in the same turn: median, least and greatest. Phases:

    cold        one problem, without a warm start
    training    the problems of consecutive steps of a training run, after `--after` steps
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import scipy.linalg
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from nearest_etf.common.machine import provenance
from nearest_etf.torchport.methods.matmul import COEFFICIENTS
from nearest_etf.torchport.procrustes import solve
from nearest_etf.torchport.simplex import centred

DELTA = 1e-3
SIZES = ["512x10", "512x100", "512x200", "2048x200", "2048x1000", "4096x4096", "10000x10000"]
OURS = ("auto", "svd", "eigh", "matmul")
BLAS = ThreadpoolController()
TRUST_REGION_UNKNOWNS = 51_200  # largest d·K for the dense Jacobian of the constraints: 1 GB at (512, 100)


@dataclass(frozen=True)
class Problem:
    """Class means, proximal point and the cotangent of the frame, (d, K) each."""

    H: Tensor
    U0: Tensor
    G: Tensor


@dataclass(frozen=True)
class Row:
    """One contestant on one problem; milliseconds of forward + backward."""

    contestant: str
    d: int
    K: int
    condition: float
    phase: str
    median_ms: float
    fastest_ms: float
    slowest_ms: float
    runs: int
    ratio: float  # to the first contestant in the same turn: median, least, greatest
    ratio_low: float
    ratio_high: float
    etf_error: float
    gradient_error: float | None
    peak_bytes: int | None = None


def synthetic(d: int, K: int, condition: float, seed: int = 0) -> Problem:
    """Unit-norm class means whose K−1 singular values run from 1 to 1/condition on a logarithmic scale."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(d, K - 1, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(centred(torch.randn(K - 1, K, generator=generator, dtype=torch.float64)).mT)[0]
    H = (left * torch.logspace(0, -float(np.log10(condition)), K - 1, dtype=torch.float64)) @ right.mT
    U0 = torch.linalg.qr(torch.randn(d, K, generator=generator, dtype=torch.float64))[0]
    G = centred(torch.randn(d, K, generator=generator, dtype=torch.float64))
    return Problem(*(x.float() for x in (H / H.norm(), U0, G)))


def linear_term(H: Tensor, U0: Tensor) -> Tensor:
    return (2.0 / (H.shape[1] - 1) ** 0.5) * centred(H) + DELTA * U0


Answer = tuple[Tensor, Tensor | None]  # the frame, and the gradient of the class means if computed


def ours(problem: Problem, method: str, basis: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The frame, the gradient, and the eigenbasis for the next problem."""
    H = problem.H.detach().requires_grad_()
    solution = solve(H, problem.U0, DELTA, method=method, basis=basis)
    return solution.frame, torch.autograd.grad(solution.frame, H, problem.G)[0], solution.basis


def autograd_svd(problem: Problem) -> Answer:
    H = problem.H.detach().requires_grad_()
    left, _, right = torch.linalg.svd(linear_term(H, problem.U0), full_matrices=False)
    U = left @ right
    return U, torch.autograd.grad(U, H, problem.G)[0]


def scipy_polar(problem: Problem) -> Answer:
    A = linear_term(problem.H, problem.U0).numpy()
    # On small problems a second thread makes OpenBLAS slower.
    with BLAS.limit(limits={"blas": 1} if A.size < 10**6 else None):
        return torch.from_numpy(scipy.linalg.polar(A)[0]), None


def trust_region_dense(problem: Problem) -> Answer:
    """Pymanopt's trust region in float64, then `J (I ⊗ P)⁻¹ Jᵀ` over all constraints UᵀU = I, i ≤ j."""
    import pymanopt

    A = linear_term(problem.H.double(), problem.U0.double()).numpy()
    d, K = A.shape
    scaled = A / np.linalg.norm(A)
    manifold = pymanopt.manifolds.Stiefel(d, K)
    task = pymanopt.Problem(
        manifold,
        cost=pymanopt.function.numpy(manifold)(lambda U: -float(np.vdot(U, scaled))),
        euclidean_gradient=pymanopt.function.numpy(manifold)(lambda U: -scaled),
        euclidean_hessian=pymanopt.function.numpy(manifold)(lambda U, V: np.zeros_like(V)),
    )
    solver = pymanopt.optimizers.TrustRegions(verbosity=0, min_gradient_norm=1e-8, max_time=600)
    U = solver.run(task, initial_point=problem.U0.double().numpy()).point

    # KKT: (I_d ⊗ P) Y + Jᵀλ = G, J Y = 0; the gradient of the class means is 2/√(K−1) Y M.
    P = 0.5 * (U.T @ A + A.T @ U)
    inverse = np.linalg.inv(P)
    i, j = np.triu_indices(K)
    J = np.zeros((len(i), d, K), dtype=np.float32)
    rows = np.arange(len(i))
    J[rows, :, i] += U.T[j]
    J[rows, :, j] += U.T[i]
    J_scaled = (J.reshape(-1, K) @ inverse.astype(np.float32)).reshape(len(i), d * K)
    G = problem.G.double().numpy()
    free = G @ inverse
    J_flat = J.reshape(len(i), d * K)
    multipliers = np.linalg.solve(J_scaled @ J_flat.T, J_flat @ free.ravel().astype(np.float32))
    Y = free - (multipliers @ J_scaled).reshape(d, K)
    return torch.from_numpy(U), torch.from_numpy((2.0 / np.sqrt(K - 1)) * (Y - Y.mean(1, keepdims=True)))


def contestants(d: int, K: int, device: str, slow: bool) -> dict[str, Callable[[Problem], Any]]:
    """The contestants that can run at this size, by name."""
    run: dict[str, Callable[[Problem], Any]] = {f"ours: {method}": partial(ours, method=method) for method in OURS}
    run["autograd through SVD"] = autograd_svd
    if device == "cpu":
        run["SciPy polar (forward)"] = scipy_polar
        if slow and d * K <= TRUST_REGION_UNKNOWNS:
            run["ours: trust-region"] = partial(ours, method="trust-region")
            run["trust region + dense backward"] = trust_region_dense
    return run


def truth(problem: Problem) -> tuple[Tensor, Tensor]:
    """`U M` and the gradient by singular values in float64 and the closed form."""
    H = problem.H.double().requires_grad_()
    U = solve(H, problem.U0.double(), DELTA, method="svd").frame
    return centred(U.detach()), torch.autograd.grad(U, H, problem.G.double())[0]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def products_floor(d: int, K: int, device: str) -> float:
    """Milliseconds for only the products of "matmul", at the rate of a large product on this device."""
    B = torch.randn(4096, 4096, device=device)
    rate = 2 * 4096**3 / min(timed(lambda: B @ B, device)[0] for _ in range(3))  # operations per millisecond
    steps = len(COEFFICIENTS[torch.float32])
    forward = steps * (4 * d * K**2 + 2 * K**3) + 2 * d * K**2  # X ← X p(XᵀX), and the check of the result
    backward = steps * 14 * K**3 + 8 * d * K**2 + 2 * K**3  # seven products per step; UᵀA, UᵀG, the normal part
    return (forward + backward) / rate


def errors(answer: Any, wanted: tuple[Tensor, Tensor]) -> tuple[float, float | None]:
    etf = relative(centred(answer[0].detach()), wanted[0])
    return etf, None if answer[1] is None else relative(answer[1], wanted[1])


def timed(function: Callable[[], Any], device: str, once: bool = False) -> tuple[float, Any]:
    """Milliseconds of a call, the median over at least 20 ms of calls after a warm-up, and its result."""
    time.sleep(0.1)  # the threads of another library's BLAS (SciPy's, after its turn) stop spinning
    result = None if once else function()
    calls: list[float] = []
    while not calls or (sum(calls) < 20 and not once):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        result = function()
        if device == "cuda":
            torch.cuda.synchronize()
        calls.append(1e3 * (time.perf_counter() - start))
    return median(calls), result


def training_problems(d: int, K: int, after: int, count: int) -> list[Problem]:
    """The problems of consecutive steps of a training run: K clusters of points, an MLP, batches of 256."""
    from nearest_etf.torchport import ImplicitETFHead

    torch.manual_seed(0)
    centres = torch.randn(K, 64)
    network = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, d), torch.nn.ReLU())
    head = ImplicitETFHead(d, K)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    problems = []
    for step in range(after + count):
        labels = torch.randint(K, (256,))
        proximal = head.frame.clone()
        logits = head(network(centres[labels] + 0.7 * torch.randn(256, 64)), labels)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        if step >= after:
            H = head.running.class_means
            problems.append(Problem(H / H.norm(), proximal, centred(torch.randn(d, K))))
    return problems


def cold_rows(problem: Problem, condition: float, options: argparse.Namespace) -> Iterator[Row]:
    """Measure all contestants in turn on one problem."""
    problem = Problem(*(x.to(options.device) for x in vars(problem).values()))
    d, K = problem.H.shape
    wanted = truth(problem)
    field = contestants(d, K, options.device, slow=not options.quick and condition == min(options.conditions))
    times: dict[str, list[float]] = {name: [] for name in field}
    answers: dict[str, Any] = {}
    for _ in range(options.runs):
        for name, run in field.items():
            once = name.startswith("trust region") or d * K > 10**7
            if not (once and times[name]):
                elapsed, answers[name] = timed(partial(run, problem), options.device, once)
                times[name].append(elapsed)
    for name in field:
        peak = peak_bytes(name, d, K, condition, options) if options.memory else None
        yield row(name, problem, condition, "cold", times, errors(answers[name], wanted), peak)


def training_rows(problems: list[Problem]) -> Iterator[Row]:
    """Successive problems: ours with a warm start, as for a head in training, ours without, and autograd."""
    _, _, basis = ours(problems[0], "eigh")
    names = ("ours: warm start", "ours: eigh", "autograd through SVD")
    times: dict[str, list[float]] = {name: [] for name in names}
    for problem in problems[1:]:
        runs: dict[str, Callable[[], Any]] = {
            names[0]: partial(ours, problem, "eigh", basis),
            names[1]: partial(ours, problem, "eigh"),
            names[2]: partial(autograd_svd, problem),
        }
        answers = {}
        for name, run in runs.items():
            elapsed, answers[name] = timed(run, "cpu")
            times[name].append(elapsed)
        basis = answers[names[0]][2]
    wanted, condition = truth(problem), condition_number(problem)
    for name in names:
        yield row(name, problem, condition, "training", times, errors(answers[name], wanted), None)


def row(
    name: str,
    problem: Problem,
    condition: float,
    phase: str,
    times: dict[str, list[float]],
    error: tuple[float, float | None],
    peak: int | None,
) -> Row:
    mine, first = times[name], next(iter(times.values()))
    ratios = [m / f for m, f in zip(mine, first, strict=False)]
    d, K = problem.H.shape
    return Row(
        contestant=name,
        d=d,
        K=K,
        condition=condition,
        phase=phase,
        median_ms=median(mine),
        fastest_ms=min(mine),
        slowest_ms=max(mine),
        runs=len(mine),
        ratio=median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        etf_error=error[0],
        gradient_error=error[1],
        peak_bytes=peak,
    )


def peak_bytes(name: str, d: int, K: int, condition: float, options: argparse.Namespace) -> int:
    """The peak memory of one forward + backward beyond its inputs; on the CPU measured in a child process."""
    if options.device == "cuda":
        problem = Problem(*(x.cuda() for x in vars(synthetic(d, K, condition)).values()))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contestants(d, K, "cuda", slow=True)[name](problem)
        return torch.cuda.max_memory_allocated() - before
    probe = [sys.executable, __file__, "--probe", name, "--sizes", f"{d}x{K}", "--conditions", str(condition)]
    probe += ["--threads", str(options.threads)]
    # The allocator returns freed blocks at once, so that only memory in use counts.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return int(subprocess.run(probe, check=True, capture_output=True, text=True, env=environment).stdout)


def probe(name: str, d: int, K: int, condition: float) -> int:
    """In a child process: the rise of the high-water mark of resident memory by one run."""
    contestants(24, 8, "cpu", slow=True)[name](synthetic(24, 8, condition))  # loads the libraries
    problem = synthetic(d, K, condition)
    before = current_bytes()
    contestants(d, K, "cpu", slow=True)[name](problem)
    return status_bytes("VmHWM") - before


def current_bytes() -> int:
    """Resident memory, after the allocator has returned free memory and the high-water mark has been reset."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def status_bytes(field: str) -> int:
    """A field of /proc/self/status, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def all_rows(options: argparse.Namespace) -> Iterator[Row]:
    for d, K in options.sizes:
        for condition in options.conditions:
            yield from cold_rows(synthetic(d, K, condition), condition, options)
        if options.device == "cpu" and options.after and d * K <= 10**7:
            yield from training_rows(training_problems(d, K, options.after, options.runs + 1))


def condition_number(problem: Problem) -> float:
    """κ of A (synthetic problems are labelled by κ of H instead)."""
    sigma = torch.linalg.svdvals(linear_term(problem.H.double(), problem.U0.double()))
    return float(sigma[0] / sigma[-1])


def plot(rows: list[Row], path: str) -> None:
    """Plot time and peak memory against K: one colour per contestant, one line style per number of features."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    mildest = min(r.condition for r in rows if r.phase == "cold")
    chosen = [r for r in rows if r.phase == "cold" and r.condition == mildest]
    chosen += [r for r in rows if r.contestant == "ours: warm start"]
    names, features = (list(dict.fromkeys(getattr(r, key) for r in chosen)) for key in ("contestant", "d"))
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.5), layout="constrained")
    for axis, value, label in (
        (axes[0], lambda r: r.median_ms, "forward + backward [ms]"),
        (axes[1], lambda r: r.peak_bytes / 2**20 if r.peak_bytes else None, "peak memory beyond the inputs [MiB]"),
    ):
        for index, name in enumerate(names):
            for d, style in zip(features, ("o-", "s--", "^:", "v-.") * len(features), strict=False):
                points = sorted((r.K, value(r)) for r in chosen if (r.contestant, r.d) == (name, d) and value(r))
                if points:
                    axis.loglog(*zip(*points, strict=True), style, color=f"C{index}")
        axis.set(xlabel="number of classes K", ylabel=label)
        axis.grid(alpha=0.3)
    for index, name in enumerate(names):
        axes[0].plot([], [], color=f"C{index}", label=name + (" (training)" if name == "ours: warm start" else ""))
    for d, style in zip(features, ("o-", "s--", "^:", "v-.") * len(features), strict=False):
        axes[0].plot([], [], style, color="grey", label=f"d = {d}")
    figure.legend(loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=110)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES[:5], help=f"dxK, default {' '.join(SIZES[:5])}")
    parser.add_argument("--conditions", nargs="+", type=float, default=[10.0, 1e3, 1e6], help="κ of the class means")
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each contestant")
    parser.add_argument(
        "--after", type=int, default=700, help="steps before the measured ones of phase training; 0: no such phase"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="two small sizes, one condition number, no slow peer")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    parser.add_argument("--json", help="write all rows to this file")
    parser.add_argument("--plot", help="write a picture to this file")
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.sizes, options.conditions, options.memory, options.after = SIZES[:2], [10.0], False, 200
    try:
        options.sizes = [tuple(int(n) for n in size.split("x")) for size in options.sizes]
    except ValueError:
        parser.error(f"--sizes {' '.join(options.sizes)}: expected dxK, such as 512x100")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    return options


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if options.probe:
        (d, K), condition = options.sizes[0], options.conditions[0]
        print(probe(options.probe, d, K, condition))
        return
    rows: list[Row] = []
    heading = f"{'contestant':31}{'d':>6}{'K':>6}{'κ':>8} {'phase':11}{'ms':>10}{'ratio':>9} {'(spread)':17}"
    print(f"{heading}{'U M':>7}{'grad.':>7}{'MiB':>8}")
    for r in all_rows(options):
        rows.append(r)
        gradient = "—" if r.gradient_error is None else f"{r.gradient_error:.0e}"
        memory = "—" if r.peak_bytes is None else f"{r.peak_bytes / 2**20:.1f}"
        spread = f"({r.ratio_low:.4g}–{r.ratio_high:.4g})"
        line = f"{r.contestant:31}{r.d:6}{r.K:6}{r.condition:8.0e} {r.phase:11}{r.median_ms:10.2f}{r.ratio:9.4g} "
        print(f"{line}{spread:17}{r.etf_error:7.0e}{gradient:>7}{memory:>8}", flush=True)
    floors = {f"{d}x{K}": products_floor(d, K, options.device) for d, K in options.sizes}
    print("floor of ours: matmul, its products alone:", ", ".join(f"({k}) {ms:.3g} ms" for k, ms in floors.items()))
    if options.json:
        report = {
            "provenance": provenance(options.device),
            "floors_ms": floors,
            "rows": [asdict(r) for r in rows],
        }
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
