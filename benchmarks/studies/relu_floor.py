"""The lowest cross-entropy of a simplex ETF with signed and with non-negative free features.

    python benchmarks/studies/relu_floor.py --json benchmarks/results/relu-floor.json

There is one free feature of norm τ per class, since all samples of a class share the optimum. Compared are the
canonical ETF and a generally oriented one, with the head's bias `b = −W μ` and without it. Non-negative features are
normalised squares. The loss is the lowest result of L-BFGS from several starts; there is no training, and there are no
seeds. A generally oriented unit vector has half of its energy in its positive part, which leaves a margin of about
τ/√2.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

import torch
from fine_tune_tables import markdown  # type: ignore[import-not-found]
from paired import Results  # type: ignore[import-not-found]
from torch import Tensor
from torch.nn import functional as F

from nearest_etf import FixedETFHead

D, STARTS, ITERATIONS = 512, 3, 300
CLASSES, TEMPERATURES = (10, 100), (5.0, 10.0, 20.0, 40.0)
SMALLEST = 1e-8  # smallest reported loss
KEY = ("K", "temperature", "frame", "signed", "bias")


def loss_of(free: Tensor, weight: Tensor, temperature: float, signed: bool, bias: bool) -> Tensor:
    """Cross-entropy of one feature per class: rows of `free` (K, d), or their squares, at length τ."""
    h = temperature * F.normalize(free if signed else free.square(), dim=1)
    h = h - h.mean(0) if bias else h  # W (h − μ)
    return F.cross_entropy(h @ weight.T, torch.arange(len(weight)))


def lowest(K: int, temperature: float, frame: str, signed: bool, bias: bool, d: int = D) -> float:
    """The lowest loss from several starts near the rows of the classifier."""
    weight = FixedETFHead(d, K, 30.0, initial=frame).weight.double()
    start = weight if signed else weight.clamp_min(0).sqrt()
    found = []
    for seed in range(STARTS):
        noise = torch.randn(K, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        free = (start + 0.3 * seed / math.sqrt(d) * noise).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [free], max_iter=ITERATIONS, line_search_fn="strong_wolfe", tolerance_change=1e-12
        )

        def closure(free: Tensor = free, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(free, weight, temperature, signed, bias)
            loss.backward()
            return loss

        optimizer.step(closure)
        found.append(float(closure().detach()))
    return min(found)


def table(rows: list[dict[str, Any]]) -> str:
    """Canonical / generally oriented, by K, τ and sign, and the bounds for the margins of τ and τ/√2."""
    lines = [
        [
            "K",
            "τ",
            *(f"{s}, {b}" for s in ("non-negative", "signed") for b in ("b = −Wμ", "no bias")),
            "bound for τ; τ/√2",
        ]
    ]
    found = {tuple(row[name] for name in KEY): row["loss"] for row in rows}
    for K, tau in dict.fromkeys((row["K"], row["temperature"]) for row in rows):
        cells = []
        for signed, bias in itertools.product((False, True), (True, False)):
            pair = (found.get((K, tau, frame, signed, bias), math.nan) for frame in ("canonical", "random"))
            cells.append(" / ".join(figure(x) for x in pair))
        bounds = (math.log1p((K - 1) * math.exp(-t * K / (K - 1))) for t in (tau, tau / math.sqrt(2)))
        lines.append([str(K), f"{tau:g}", *cells, "; ".join(figure(x) for x in bounds)])
    return str(markdown(lines))


def figure(loss: float) -> str:
    """A loss with three digits; one below the optimiser's accuracy is only bounded.

    >>> figure(0.04523), figure(3e-13)
    ('0.0452', '< 1e-8')
    """
    return f"{loss:.3g}" if loss >= SMALLEST else f"< {SMALLEST:.0e}".replace("e-0", "e-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/relu-floor.json"))
    parser.add_argument("--summary", action="store_true", help="the table of the file, as Markdown")
    options = parser.parse_args()
    results = Results(options.json)
    if not options.summary:
        torch.set_num_threads(1)
        done = {tuple(row[name] for name in KEY) for row in results.rows}
        both = (False, True)
        for key in itertools.product(options.classes, TEMPERATURES, ("canonical", "random"), both, both):
            if key not in done:
                results.add({**dict(zip(KEY, key, strict=True)), "loss": float(f"{lowest(*key):.4g}")})
    print(table(results.rows))


if __name__ == "__main__":
    main()
