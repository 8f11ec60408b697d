"""A bank of nearest-ETF problems, for `etf-verify` and for the tests of every solver and every gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.linalg import svd

from .checks import check_choice
from .procrustes import Formulation, NearestETF, initial_frame, nearest_etf
from .simplex import centred_basis
from .stiefel import Array

SIZES = ((3, 2), (4, 4), (7, 3), (3, 4), (24, 6), (20, 20), (128, 10), (96, 32))
CONDITIONS = (1.0, 1e2, 1e4)
DELTAS = (0.0, 1e-3, 1.0)


@dataclass(frozen=True)
class NearestETFProblem:
    """Class means with a proximal point, and the name of the problem in tables."""

    name: str
    class_means: Array  # H (d, K), ‖H‖_F = 1
    proximal: Array | None  # U₀ (d, K)
    delta: float
    formulation: Formulation

    def solve(self, **options: object) -> NearestETF:
        """Solve this problem; `options` are keyword arguments of `nearest_etf`."""
        return nearest_etf(self.class_means, self.proximal, self.delta, formulation=self.formulation, **options)  # type: ignore[arg-type]


def class_means_of_condition(d: int, K: int, condition: float, rng: np.random.Generator) -> Array:
    """Random centred class means (d, K) of unit norm, with log-spaced nonzero singular values of this condition."""
    Q = centred_basis(K)
    left, _, right = svd(rng.standard_normal((d, K)) @ Q, full_matrices=False)
    H = (left * np.geomspace(1.0, 1.0 / condition, min(d, K - 1))) @ right @ Q.T
    return H / np.linalg.norm(H)


def problem_bank(
    sizes: Iterable[tuple[int, int]] = SIZES,
    seeds: int = 1,
    *,
    conditions: Iterable[float] = CONDITIONS,
    deltas: Iterable[float] = DELTAS,
    dtype: str = "float64",
) -> Iterator[NearestETFProblem]:
    """Problems over sizes × formulations × conditions × δ × seeds; δ = 0 is the first step, without proximal point.

    Two kinds of proximal point alternate: the polar factor of nearby class means, as in training, and a random frame.
    With `dtype="float32"` the class means are rounded to single precision first.

    Raises
    ------
    ValueError
        If the dtype is neither float32 nor float64.
    """
    check_choice("dtype", dtype, ("float32", "float64"))
    for d, K in sizes:
        formulations: tuple[Formulation, ...] = ("paper", "gauge-free") if d >= K else ("gauge-free",)
        for formulation in formulations:
            for seed, (turn, condition), delta in product(range(seeds), enumerate(conditions), deltas):
                rng = np.random.default_rng([seed, d, K])
                H = class_means_of_condition(d, K, condition, rng).astype(dtype).astype(np.float64)
                noise = rng.standard_normal((d, K))
                near = H + 0.1 * noise / np.linalg.norm(noise)
                U0 = None
                if delta > 0:
                    U0 = initial_frame("random" if (seed + turn) % 2 else "feature-polar", near, rng)
                name = f"({d}, {K}) {formulation}, κ={condition:.0e}, δ={delta:g}, seed {seed}"
                yield NearestETFProblem(name, H, U0, delta, formulation)
