"""Cost of the metrics of neural collapse: the streaming meter, and accumulation sample by sample in dictionaries.

    python benchmarks/metrics.py                     # 50,000 × 512 features, K = 100: a minute on two cores
    python benchmarks/metrics.py --samples 5000 --repeats 5

The peer is the common implementation since Zhu et al. 2021, arXiv 2105.02375, written here from its description: a
dictionary of class sums, filled sample by sample, then an outer product per sample for Σ_W. (The paper's own scripts
fill the same dictionary, but store all features to compute Σ_W class by class.) Both compute NC1, NC2 of the class
means and NC3, from the same batches, in the same process; their results must agree.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nearest_etf.common.machine import provenance
from nearest_etf.torchport import NeuralCollapseMeter

Batches = list[tuple[Tensor, Tensor]]
Figures = tuple[float, float, float]  # NC1, NC2 of the means, NC3


def make_data(samples: int, num_features: int, num_classes: int, batch_size: int) -> tuple[Batches, Tensor]:
    """Batches of clustered float32 features with labels, and a classifier W (K, d)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes, (samples,), generator=generator)
    centres = torch.randn(num_classes, num_features, generator=generator)
    features = centres[labels] + 0.3 * torch.randn(samples, num_features, generator=generator)
    return list(zip(features.split(batch_size), labels.split(batch_size), strict=True)), centres


def one_pass(batches: Batches, weight: Tensor) -> NeuralCollapseMeter:
    """The meter after its first pass, for the size of W (K, d)."""
    K, d = weight.shape
    meter = NeuralCollapseMeter(num_features=d, num_classes=K)
    for features, labels in batches:
        meter.update(features, labels)
    return meter


def with_meter(batches: Batches, weight: Tensor) -> Figures:
    """Ours: one pass."""
    measured = one_pass(batches, weight).compute(weight)
    return measured.nc1, measured.nc2_means, measured.nc3


def with_both_passes(batches: Batches, weight: Tensor) -> Figures:
    """Ours, with the second pass for NC4 and the cosine margins, which the peer does not compute."""
    second = one_pass(batches, weight).second_pass(weight)
    for features, labels in batches:
        second.update(features, labels)
    measured = second.compute()
    return measured.nc1, measured.nc2_means, measured.nc3


def with_dictionaries(batches: Batches, weight: Tensor) -> Figures:
    """The peer: two passes, sample by sample."""
    K, d = weight.shape
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}
    for features, labels in batches:
        for b in range(len(labels)):
            y = int(labels[b])
            sums[y] = sums[y] + features[b] if y in sums else features[b].clone()
            counts[y] = counts.get(y, 0) + 1
    means = {y: sums[y] / counts[y] for y in sums}
    sigma_w = torch.zeros(d, d)
    for features, labels in batches:
        for b in range(len(labels)):
            y = int(labels[b])
            sigma_w += (features[b] - means[y]).unsqueeze(1) @ (features[b] - means[y]).unsqueeze(0)
    sigma_w /= sum(counts.values())
    stacked = torch.stack([means[y] for y in sorted(means)])
    H = stacked - stacked.mean(0)
    sigma_b = H.double().T @ H.double() / K  # in float32 the pseudo-inverse can make NC1 negative
    nc1 = torch.trace(sigma_w.double() @ torch.linalg.pinv(sigma_b, rtol=1e-8, hermitian=True)) / K
    return float(nc1), _error(H @ H.T), _error(weight @ H.T)


def _error(gram: Tensor) -> float:
    K = len(gram)
    return float(torch.linalg.norm(gram / gram.norm() - (torch.eye(K) - 1 / K) / (K - 1) ** 0.5))


def timed(method: Callable[[Batches, Tensor], Figures], data: tuple[Batches, Tensor], repeats: int) -> list[float]:
    """Seconds of each repetition."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        method(*data)
        seconds.append(time.perf_counter() - began)
    return seconds


def peak_memory(method: Callable[[Batches, Tensor], Figures], data: tuple[Batches, Tensor]) -> float:
    """Largest rise of resident memory during a call, in bytes (Linux; after a warm-up call)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    method(*data)
    return _status("VmHWM") - before


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line.split()[1] for line in lines if line.startswith(name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=512, help="d")
    parser.add_argument("--classes", type=int, default=100, help="K")
    parser.add_argument("--batch-size", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    K, d = options.classes, options.features
    data = make_data(options.samples, d, K, options.batch_size)
    print(f"{options.samples} × {d} float32 features, K = {K}, batches of {options.batch_size}")
    where = provenance()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {where['device']}, commit {where['commit']}\n"
    )

    expected = with_dictionaries(*data)
    for found, figure in zip(with_meter(*data), expected, strict=True):
        assert abs(found - figure) <= 1e-3 * figure, f"the two disagree: {found} and {figure}"

    print(f"{'':34}{'median s':>9}  {'min–max s':>15}  {'speed-up':>8}")
    peer = timed(with_dictionaries, data, options.repeats)
    for name, seconds in (
        ("dictionaries, NC1–NC3", peer),
        ("meter, one pass, all its figures", timed(with_meter, data, 2 * options.repeats + 1)),
        ("meter, both passes", timed(with_both_passes, data, 2 * options.repeats + 1)),
    ):
        median = statistics.median(seconds)
        spread = f"{min(seconds):.3f}–{max(seconds):.3f}"
        print(f"{name:34}{median:9.3f}  {spread:>15}  {statistics.median(peer) / median:7.1f}×")

    bound = 4 * (K * d + d * d) * 8
    print(f"\nmemory beyond the features: {peak_memory(with_meter, data) / 2**20:.1f} MiB (one pass),", end=" ")
    print(
        f"{peak_memory(with_both_passes, data) / 2**20:.1f} MiB (both); 4(Kd + d²) numbers are {bound / 2**20:.1f} MiB"
    )


if __name__ == "__main__":
    main()
