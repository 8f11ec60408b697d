"""The claims of `etf-verify`, and the case on which each is measured: one problem with its solutions.

The modules `claims_problem`, `claims_solution`, `claims_gradient`, `claims_tight_frame` and `claims_metrics` define
the claims.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .polar import LinearCost
from .problems import NearestETFProblem
from .procrustes import NearestETF
from .simplex import centred_basis, centring
from .stiefel import Array, random_point, random_tangent


@dataclass(frozen=True)
class Claim:
    """A figure with an upper bound, or with `at_least` a lower bound, on every problem of the bank."""

    name: str
    bound: float
    measure: Callable[[Case], float | None]  # None: the claim does not apply to this problem
    at_least: bool = False


@dataclass(frozen=True)
class PaperObjective:
    """(P) or (R) with the quadratic terms of the paper: independent of A."""

    problem: NearestETFProblem
    E: Array  # (K, m): the variable X has the ETF X Eᵀ

    def cost(self, X: Array) -> float:
        H, U0, K = self.problem.class_means, self.problem.proximal, len(self.E)
        value = np.linalg.norm(H - X @ self.E.T / np.sqrt(K - 1)) ** 2
        if U0 is not None:
            apart = X - U0 if self.E.shape[1] == K else X @ self.E.T - U0 @ centring(K)
            value += 0.5 * self.problem.delta * np.linalg.norm(apart) ** 2
        return float(value)


class Case:
    """One problem of the bank with its solutions, each computed on first use."""

    def __init__(self, problem: NearestETFProblem) -> None:
        self.problem = problem
        self.rng = np.random.default_rng(0)

    @cached_property
    def solution(self) -> NearestETF:
        return self.problem.solve()

    @cached_property
    def by_svd(self) -> NearestETF:
        return self.problem.solve(method="svd")

    @cached_property
    def cost(self) -> LinearCost:
        return LinearCost(self.solution.linear_term)

    @cached_property
    def point(self) -> Array:
        """A random point of the manifold of the variable."""
        d, m = self.solution.variable.shape
        return random_point(d, m, self.rng)

    @cached_property
    def direction(self) -> Array:
        return random_tangent(self.point, self.rng)

    @cached_property
    def cotangent(self) -> Array:
        return self.rng.standard_normal(self.solution.frame.shape)

    @property
    def nuclear_norm(self) -> float:
        return float(self.solution.singular_values.sum())

    @cached_property
    def objective(self) -> PaperObjective:
        K = self.solution.frame.shape[1]
        return PaperObjective(self.problem, centred_basis(K) if self.solution.gauge_free else centring(K))


def relative(found: Array, expected: Array) -> float:
    """`‖found − expected‖ / ‖expected‖`."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
