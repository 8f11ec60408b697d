"""The layer against its peers: time, memory and error of forward + backward, alternating in one process.

    python benchmarks/layer.py --quick                     a minute: (512, 10) and (512, 100)
    python benchmarks/layer.py --json layer.json --plot layer.png
    python benchmarks/layer.py --device cuda --sizes 512x100 2048x1000 10000x10000

Contestants: ours by each method; autograd through torch.linalg.svd; SciPy's polar factor (forward only); and the
paper's own way, Pymanopt's trust region with the dense declarative backward of Gould et al. 2021 (proposition 4.5),
written here with every structure that it offers exploited but the constraints' Jacobian kept as a matrix. Errors are
relative, of the ETF `U M` and of the gradient, against singular values in float64. "successive" is a sequence of
problems as training makes them: each is the last one, moved by `--drift`, with the last solution as proximal point.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
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
from torch import Tensor

from nearest_etf.torchport.nearest_etf import solve
from nearest_etf.torchport.simplex import centred

DELTA = 1e-3
SIZES = ["512x10", "512x100", "512x200", "2048x200", "2048x1000", "4096x4096", "10000x10000"]
OURS = ("eigh", "svd", "matmul")
TRUST_REGION_UNKNOWNS = 51_200  # beyond, the dense Jacobian of the constraints outgrows this machine


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


Answer = tuple[Tensor, Tensor | None]  # the frame, and the class means' gradient where there is one


def ours(problem: Problem, method: str, basis: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The frame, the gradient, and the eigenbasis for the next problem."""
    H = problem.H.detach().requires_grad_()
    solution = solve(H, problem.U0, DELTA, method=method, basis=basis)
    return solution.frame, torch.autograd.grad(solution.frame, H, problem.G)[0], solution.polar.basis


def autograd_svd(problem: Problem) -> Answer:
    H = problem.H.detach().requires_grad_()
    left, _, right = torch.linalg.svd(linear_term(H, problem.U0), full_matrices=False)
    U = left @ right
    return U, torch.autograd.grad(U, H, problem.G)[0]


def scipy_polar(problem: Problem) -> Answer:
    return torch.from_numpy(scipy.linalg.polar(linear_term(problem.H, problem.U0).numpy())[0]), None


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

    # KKT: (I_d ⊗ P) Y + Jᵀλ = G, J Y = 0; the answer's class-means part is 2/√(K−1) Y M.
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
    """Those that can run at this size, by name."""
    run: dict[str, Callable[[Problem], Any]] = {f"ours: {method}": partial(ours, method=method) for method in OURS}
    run["autograd through SVD"] = autograd_svd
    if device == "cpu":
        run["SciPy polar (forward)"] = scipy_polar
        if slow and d * K <= TRUST_REGION_UNKNOWNS:
            run["trust region + dense backward"] = trust_region_dense
    return run


def truth(problem: Problem) -> tuple[Tensor, Tensor]:
    """`U M` and the gradient by singular values in float64 and the closed form."""
    H = problem.H.double().requires_grad_()
    U = solve(H, problem.U0.double(), DELTA, method="svd").frame
    return centred(U.detach()), torch.autograd.grad(U, H, problem.G.double())[0]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def errors(answer: Any, wanted: tuple[Tensor, Tensor]) -> tuple[float, float | None]:
    etf = relative(centred(answer[0].detach()), wanted[0])
    return etf, None if answer[1] is None else relative(answer[1], wanted[1])


def timed(function: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Milliseconds and the result."""
    time.sleep(0.1)  # until the threads of another library's BLAS (SciPy's, after its turn) have stopped spinning
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start), result


def from_run(run: str) -> Problem:
    """The problem that the next step of a training run would solve: running means and last solution of its head."""
    from nearest_etf.torchport import ImplicitETFHead
    from nearest_etf.torchport.training.checkpoint import load_model

    head = load_model(run, "last")[0].head
    if not isinstance(head, ImplicitETFHead):
        raise SystemExit(f"--trained {run}: its head is {head.kind!r}; expected a run with the implicit head.")
    H = head.means.means
    generator = torch.Generator().manual_seed(0)
    return Problem(H / H.norm(), head.frame, centred(torch.randn(H.shape, generator=generator)))


def cold_rows(problem: Problem, condition: float, phase: str, options: argparse.Namespace) -> Iterator[Row]:
    """All contestants on one problem, in turn."""
    problem = Problem(*(x.to(options.device) for x in vars(problem).values()))
    d, K = problem.H.shape
    wanted = truth(problem)
    field = contestants(d, K, options.device, slow=not options.quick and condition == 10)
    times: dict[str, list[float]] = {name: [] for name in field}
    answers: dict[str, Any] = {}
    for turn in range(options.runs + 1):
        for name, run in field.items():
            once = name.startswith("trust region") or d * K > 10**7
            if turn > 0 and once and times[name]:
                continue
            elapsed, answers[name] = timed(partial(run, problem), options.device)
            if turn > 0 or once:  # the first turn warms caches and threads up
                times[name].append(elapsed)
    for name in field:
        peak = peak_bytes(name, d, K, condition, options) if options.memory and phase == "cold" else None
        yield row(name, problem, condition, phase, times[name], errors(answers[name], wanted), peak)


def successive_rows(d: int, K: int, condition: float, options: argparse.Namespace) -> Iterator[Row]:
    """A sequence of slowly moving problems: ours with a warm start, ours without, and autograd through SVD."""
    first = synthetic(d, K, condition)
    frame, _, basis = ours(first, "eigh")
    H, names = first.H, ("ours: warm start", "ours: eigh", "autograd through SVD")
    times: dict[str, list[float]] = {name: [] for name in names}
    for step in range(options.runs + 1):
        moved = synthetic(d, K, condition, seed=step + 1).H
        H = (1 - options.drift) * H + options.drift * moved
        problem = Problem(H / H.norm(), frame.detach(), first.G)
        runs: dict[str, Callable[[], Any]] = {
            names[0]: partial(ours, problem, "eigh", basis),
            names[1]: partial(ours, problem, "eigh"),
            names[2]: partial(autograd_svd, problem),
        }
        answers = {}
        for name, run in runs.items():
            elapsed, answers[name] = timed(run, "cpu")
            if step > 0:
                times[name].append(elapsed)
        frame, _, basis = answers[names[0]]
    wanted = truth(problem)
    for name in names:
        yield row(name, problem, condition, "successive", times[name], errors(answers[name], wanted), None)


def row(
    name: str,
    problem: Problem,
    condition: float,
    phase: str,
    times: list[float],
    error: tuple[float, float | None],
    peak: int | None,
) -> Row:
    d, K = problem.H.shape
    return Row(name, d, K, condition, phase, median(times), min(times), max(times), len(times), *error, peak)


def peak_bytes(name: str, d: int, K: int, condition: float, options: argparse.Namespace) -> int:
    """The most memory that one forward + backward takes beyond its inputs: on the CPU in a process of its own."""
    if options.device == "cuda":
        problem = Problem(*(x.cuda() for x in vars(synthetic(d, K, condition)).values()))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contestants(d, K, "cuda", slow=True)[name](problem)
        return torch.cuda.max_memory_allocated() - before
    probe = [sys.executable, __file__, "--probe", name, "--sizes", f"{d}x{K}", "--conditions", str(condition)]
    probe += ["--threads", str(options.threads)]
    # Freed blocks go back to the system at once, so that what is counted is memory in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    return int(subprocess.run(probe, check=True, capture_output=True, text=True, env=environment).stdout)


def probe(name: str, d: int, K: int, condition: float) -> int:
    """In a fresh process: how far one run raises the high-water mark of resident memory."""
    contestants(24, 8, "cpu", slow=True)[name](synthetic(24, 8, condition))  # libraries load now, not later
    problem = synthetic(d, K, condition)
    before = current_bytes()
    contestants(d, K, "cpu", slow=True)[name](problem)
    return status_bytes("VmHWM") - before


def current_bytes() -> int:
    """Resident memory, after the allocator has given back what it can and the high-water mark was reset to it."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def status_bytes(field: str) -> int:
    """What Linux knows about this process' memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def all_rows(options: argparse.Namespace) -> Iterator[Row]:
    for d, K in options.sizes:
        for condition in options.conditions:
            yield from cold_rows(synthetic(d, K, condition), condition, "cold", options)
            if options.device == "cpu" and condition <= 1e3:
                yield from successive_rows(d, K, condition, options)
    for run in options.trained:
        problem = from_run(run)
        sigma = torch.linalg.svdvals(linear_term(problem.H.double(), problem.U0.double()))
        yield from cold_rows(problem, float(sigma[0] / sigma[-1]), "trained", options)


def plot(rows: list[Row], path: str) -> None:
    """Time and peak memory against K, one line per contestant and number of features."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    chosen = [r for r in rows if r.phase == "cold" and r.condition == min(x.condition for x in rows)]
    for axis, value, label in (
        (axes[0], lambda r: r.median_ms, "forward + backward [ms]"),
        (axes[1], lambda r: r.peak_bytes / 2**20 if r.peak_bytes else None, "peak memory beyond the inputs [MiB]"),
    ):
        for name in dict.fromkeys(r.contestant for r in chosen):
            points = sorted((r.K, value(r)) for r in chosen if r.contestant == name and value(r))
            axis.loglog(*zip(*points, strict=True), "o-", label=name) if points else None
        axis.set(xlabel="number of classes K", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def provenance(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    return {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__, "delta": DELTA}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES[:5], help=f"dxK, default {' '.join(SIZES[:5])}")
    parser.add_argument("--conditions", nargs="+", type=float, default=[10.0, 1e3, 1e6], help="κ of the class means")
    parser.add_argument(
        "--trained", nargs="+", default=[], help="run folders of training runs whose means to solve for"
    )
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each contestant")
    parser.add_argument("--drift", type=float, default=1e-3, help="α_t of the successive problems")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="two small sizes, one condition number, no slow peer")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave peak memory out")
    parser.add_argument("--json", help="write all rows here")
    parser.add_argument("--plot", help="write a picture here")
    parser.add_argument("--probe", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.sizes, options.conditions, options.memory = SIZES[:2], [10.0], False
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
    print(f"{'contestant':32}{'d':>6}{'K':>6}{'κ':>8}  {'phase':11}{'ms':>10}{'UM error':>10}{'grad.':>9}{'MiB':>8}")
    for r in all_rows(options):
        rows.append(r)
        gradient = "—" if r.gradient_error is None else f"{r.gradient_error:.0e}"
        memory = "—" if r.peak_bytes is None else f"{r.peak_bytes / 2**20:.1f}"
        line = f"{r.contestant:32}{r.d:6}{r.K:6}{r.condition:8.0e}  {r.phase:11}{r.median_ms:10.2f}"
        print(f"{line}{r.etf_error:10.0e}{gradient:>9}{memory:>8}", flush=True)
    if options.json:
        report = {"provenance": provenance(options), "rows": [asdict(r) for r in rows]}
        Path(options.json).write_text(json.dumps(report, indent=1))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
