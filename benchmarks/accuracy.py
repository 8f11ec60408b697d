"""Errors of the layer in float32 by condition number and method, against singular values in float64.

    python benchmarks/accuracy.py                                        the table, (512, 100)
    python benchmarks/accuracy.py --sizes 512x100 64x64 --markdown accuracy.md

The singular values of A are evenly spaced on a logarithmic scale over [1/κ, 1]. Each cell has two relative errors: of
the polar factor, and of the gradient for a random cotangent.

- "rounding of A" is a floor for every method: the errors of the exact solution for A with random relative changes of
  its entries by up to half a unit in the last place.
- "stale" is "eigh", started from the eigenbasis of a problem at distance 1e-4, as in successive training steps; "anew"
  means that this basis was rejected.
- A star marks a fallback to singular values.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nearest_etf.torchport.methods.autograd import Found, polar

CONDITIONS = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6]
METHODS = ("svd", "eigh", "matmul", "trust-region")
EPS = torch.finfo(torch.float32).eps


def conditioned(d: int, m: int, condition: float, generator: torch.Generator) -> Tensor:
    """A (d, m) in float64, with entries that are exact in float32."""
    left = torch.linalg.qr(torch.randn(d, m, dtype=torch.float64, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(m, m, dtype=torch.float64, generator=generator))[0]
    sigma = torch.logspace(0, -float(np.log10(condition)), m, dtype=torch.float64)
    return ((left * sigma) @ right).float().double()


def solved(A: Tensor, G: Tensor, method: str, basis: Tensor | None = None) -> tuple[Found, Tensor]:
    """The decomposition, and the gradient for the cotangent G of its frame."""
    A = A.detach().requires_grad_()
    found = polar(A, torch.eye(*A.shape, dtype=A.dtype), method, basis)
    return found, torch.autograd.grad(found.frame, A, G)[0]


def autograd_svd(A: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    A = A.detach().requires_grad_()
    left, _, right = torch.linalg.svd(A, full_matrices=False)
    return left @ right, torch.autograd.grad(left @ right, A, G)[0]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach().double() - wanted).norm() / wanted.norm())


def line(d: int, m: int, condition: float) -> list[str]:
    """A row of the table."""
    generator = torch.Generator().manual_seed(0)
    exact = conditioned(d, m, condition, generator)
    G = torch.randn(d, m, dtype=torch.float64, generator=generator)
    wanted, gradient = solved(exact, G, "svd")
    frame = wanted.frame.detach()

    def cell(found: Tensor, found_gradient: Tensor, fallbacks: int = 0) -> str:
        return f"{relative(found, frame):.0e} {relative(found_gradient, gradient):.0e}{' *' if fallbacks else ''}"

    rounded = exact * (1 + EPS * (torch.rand(d, m, dtype=torch.float64, generator=generator) - 0.5))
    moved = exact + 1e-4 * exact.norm() / (d * m) ** 0.5 * torch.randn(d, m, dtype=torch.float64, generator=generator)
    other, other_gradient = solved(rounded, G, "svd")
    cells = [f"{condition:.0e}", cell(other.frame, other_gradient)]
    A, cotangent = exact.float(), G.float()
    for method in METHODS:
        found, found_gradient = solved(A, cotangent, method)
        cells.append(cell(found.frame, found_gradient, int(found.fallbacks)))
    basis = solved(moved, G, "svd")[0].basis
    assert basis is not None
    basis = basis.float()
    found, found_gradient = solved(A, cotangent, "eigh", basis)
    used = found.basis is not None and torch.equal(found.basis, basis)
    return [*cells, cell(found.frame, found_gradient) if used else "anew", cell(*autograd_svd(A, cotangent))]


def table(d: int, m: int, conditions: list[float]) -> str:
    """Markdown: one row per condition number; each cell has the errors of the factor and of the gradient."""
    heading = ["κ", "rounding of A", *METHODS, "stale", "autograd through SVD"]
    rows = [heading, ["---"] * len(heading), *(line(d, m, condition) for condition in conditions)]
    return f"({d}, {m})\n\n" + "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--sizes", nargs="+", default=["512x100"], help="dxm [512x100]")
    parser.add_argument("--conditions", nargs="+", type=float, default=CONDITIONS, help="κ of A")
    parser.add_argument("--markdown", help="also write the tables to this file")
    options = parser.parse_args()
    tables = []
    for size in options.sizes:
        d, _, m = size.partition("x")
        if not (d.isdigit() and m.isdigit()):
            parser.error(f"--sizes {size}: expected dxm, such as 512x100")
        tables.append(table(int(d), int(m), options.conditions))
        print(tables[-1], flush=True)
    if options.markdown:
        Path(options.markdown).write_text("\n".join(tables), encoding="utf-8")


if __name__ == "__main__":
    main()
