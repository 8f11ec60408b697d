"""Polar factors of a matrix: by the SVD, by the trust region, and their completion if they are not unique.

A polar factor `X` of A (d, m) maximises `⟨X, A⟩` over St(d, m) (Schönemann 1966). It is unique exactly when A has
rank m. Otherwise A determines only `X right = left`, with orthonormal `left` (d, r) and `right` (m, r).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from scipy.linalg import qr, svd

from .riemannian import EPS, Iteration, Status, truncated_cg, trust_region
from .spectral import escape, exact_step, is_positive_definite
from .stiefel import Array, eigh, frobenius, retract_polar, sym

Subproblem = Literal["exact", "truncated-cg"]


@dataclass(frozen=True)
class LinearCost:
    """The cost `−⟨X, A⟩` of (P′) and (R), for `trust_region`."""

    A: Array

    def cost(self, X: Array) -> float:
        return -float(np.vdot(X, self.A))

    @cached_property
    def _gradient(self) -> Array:
        return -self.A

    def gradient(self, X: Array) -> Array:
        return self._gradient

    def hessian(self, X: Array, V: Array) -> float:
        return 0.0


class PolarFactor(NamedTuple):
    """A polar factor, its factors on the range of the matrix, and the history and status of the solve."""

    factor: Array  # X (d, m)
    left: Array  # (d, r)
    right: Array  # (m, r)
    history: tuple[Iteration, ...]
    status: Status


def polar_by_svd(B: Array) -> PolarFactor:
    """A polar factor of B (d, m), d ≥ m, by the SVD."""
    left, singular_values, right_t = svd(B, full_matrices=False, check_finite=False)
    rank = int(np.sum(singular_values > rank_tolerance(B.shape) * singular_values[0]))
    return PolarFactor(left @ right_t, left[:, :rank], right_t[:rank].T, (), Status.CONVERGED)


def polar_by_trust_region(
    B: Array,
    start: Array,
    subproblem: Subproblem = "exact",
    tolerance: float = 1e-13,
    max_iterations: int = 300,
) -> PolarFactor:
    """A polar factor of B (d, m), by the trust region from `start` in St(d, m); B has unit norm or is zero."""
    result = trust_region(
        LinearCost(B),
        start,
        subproblem=exact_step if subproblem == "exact" else truncated_cg,
        escape=escape,
        retraction=retract_polar,
        tolerance=tolerance * frobenius(B),
        max_iterations=max_iterations,
    )
    X, S = result.model.point, -sym(result.model.frame_gradient)
    d, m = X.shape
    error = X.T @ X - np.eye(m)
    if frobenius(error) > 4 * m * EPS:  # a Newton–Schulz step squares the rounding error of UᵀU − I
        X = X - 0.5 * X @ error
    tolerated = max(rank_tolerance(B.shape) * frobenius(S), 4 * result.gradient_norm)
    if is_positive_definite(S, tolerated) or not result.status.ok:
        return PolarFactor(X, X, np.eye(m), result.history, result.status)
    values, Y = eigh(S)
    if d == m and values[0] < -tolerated:  # the optimum of the wrong component: its reflection is optimal
        X = X - 2.0 * np.outer(X @ Y[:, 0], Y[:, 0])
        values = np.abs(values)
    kept = Y[:, values > tolerated]
    if kept.shape[1] == m:
        return PolarFactor(X, X, np.eye(m), result.history, result.status)
    return PolarFactor(X, X @ kept, kept, result.history, result.status)


def complete_frame(left: Array, right: Array, nearest_to: Array) -> Array:
    """The frame nearest to `nearest_to` (d, m) among those that map `right` (m, r) to `left` (d, r).

    Both have orthonormal columns. With orthonormal complements the frame is `left rightᵀ + left_⊥ Z right_⊥ᵀ`,
    and Z is the polar factor of `left_⊥ᵀ nearest_to right_⊥`. If this matrix is singular too, LAPACK's singular
    vectors determine Z; the choice is deterministic.
    """
    (d, r), m = left.shape, right.shape[0]
    if r == m:
        return left @ right.T
    right_rest = qr(right)[0][:, r:] if r else np.eye(m)  # (m, m−r)
    target = nearest_to @ right_rest
    # The complement of span(left) in R^d may be large; a subspace that holds the target and a completion suffices.
    span = qr(np.hstack([left, target, np.eye(d, m)]), mode="economic")[0]
    left_rest = span[:, r:]
    Z, _, Yt = svd(left_rest.T @ target, full_matrices=False)
    return left @ right.T + left_rest @ (Z @ Yt) @ right_rest.T


def rank_tolerance(shape: tuple[int, ...]) -> float:
    """The share of the largest singular value below which others are zero: as numpy's matrix_rank, at least 16 ε."""
    return max(*shape, 16) * EPS
