"""The polar factor by matrix products alone, without synchronising on an accelerator.

Forward, `X ← X (aI + b XᵀX + c (XᵀX)²)` drives all singular values to one (Amsel, Persson, Musco & Gower 2025, arXiv
2505.16932, *The Polar Express*: a minimax polynomial for each step). Backward, the same polynomials compute a
matrix sign that solves the Lyapunov equation (Roberts 1980; Higham, *Functions of Matrices* (2008), chapter 5).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .factor import Polar


class Products(NamedTuple):
    """Whether products could solve the problem; the adjoint needs only U and A."""

    solved: Tensor  # () bool, or for a batch (…)

    def adjoint(self, A: Tensor, U: Tensor, G: Tensor) -> Tensor:
        """`Ā = U Φ + (G − U UᵀG) P⁻¹` with `P = sym(UᵀA)`; zero where there is no solution."""
        top = A.abs().amax((-2, -1), keepdim=True)  # so that no square overflows; Ā scales inversely
        P = U.mT @ (A / top)
        P = 0.5 * (P + P.mT)
        T = U.mT @ G
        normal = torch.cholesky_solve((G - U @ T).mT, torch.linalg.cholesky_ex(P)[0]).mT
        S = T - T.mT
        Phi = lyapunov_by_sign(P, S)
        if P.dtype == torch.float64:  # the steep polynomials lose up to four digits: one refinement
            Phi = Phi + lyapunov_by_sign(P, S - (P @ Phi + Phi @ P))
        found = (U @ Phi + normal) / top
        return torch.where(self.solved[..., None, None], found, 0.0)


def by_matmul(A: Tensor) -> Polar | None:
    """The polar decomposition of A (…, d, m).

    If a result is not orthonormal enough, because A is nearly rank-deficient: None on the CPU; elsewhere this result is
    NaN.
    """
    X, solved = orthonormalised(A)
    if A.device.type == "cpu":
        return Polar(X, Products(solved)) if bool(solved.all()) else None
    return Polar(torch.where(solved[..., None, None], X, torch.nan), Products(solved), fallbacks=(~solved).long())


def orthonormalised(A: Tensor) -> tuple[Tensor, Tensor]:
    """The polar factor of A (…, d, m), and whether (…) it is orthonormal enough."""
    X = A / A.abs().amax((-2, -1), keepdim=True)  # first, so that no square underflows
    X = X / _frobenius(X)
    for a, b, c in COEFFICIENTS[A.dtype]:
        B = X.mT @ X
        X = a * X + X @ (b * B + c * (B @ B))
    residual = _frobenius(X.mT @ X - torch.eye(X.shape[-1], dtype=A.dtype, device=A.device))[..., 0, 0]
    return X, residual <= 1e3 * torch.finfo(A.dtype).eps * X.shape[-1] ** 0.5


def _frobenius(B: Tensor) -> Tensor:
    """‖B‖_F, (…, 1, 1); a scale, which need not be as exact as `linalg.frobenius`."""
    return torch.linalg.vector_norm(B, dim=(-2, -1), keepdim=True)


def lyapunov_by_sign(P: Tensor, S: Tensor) -> Tensor:
    """Φ with `P Φ + Φ P = S` for P > 0 and S skew, (…, m, m) each.

    `sign [[P, S], [0, −P]] = [[I, 2Φ], [0, −I]]`, and the polynomials of `by_matmul` find the sign. Only the upper
    blocks `[B C]` are kept: B stays symmetric and C skew.
    """
    scale = _frobenius(P)
    B, C = P / scale, S / scale
    for a, b, c in COEFFICIENTS[P.dtype]:
        B2, BC = B @ B, B @ C
        C2 = BC + BC.mT
        B2C2 = B2 @ C2
        Q = b * B2 + c * (B2 @ B2)
        R = b * C2 + c * (B2C2 + B2C2.mT)
        B, C = a * B + B @ Q, a * C + C @ Q + B @ R
    return 0.25 * (C - C.mT)


def _minimax_coefficients(eps: float) -> tuple[tuple[float, float, float], ...]:
    """Odd quintics `ax + bx³ + cx⁵` whose composition maps [8 eps, 1] to 1 ± eps, each the best for its interval.

    On [l, 1] the error of the best one alternates at l, two inner extrema, and 1 (Remez' algorithm). Two departures
    keep full accuracy. For l < 0.1 the polynomial for l = 0.1 is used, which costs little speed: the best one would
    reduce large singular values to l, and lose their digits. And all but the last contract their argument by 1 %
    first, since beyond 1 they fall so steeply that rounding would be amplified.
    """
    steps: list[tuple[float, float, float]] = []
    lower, margin = 8 * eps, 1.01
    while True:
        left = max(lower, 0.1)
        points = np.array([left, 0.5 * (left + 1), 0.75, 1.0])
        for _ in range(50):
            # p(x_i) + (−1)^i e = 1
            system = np.column_stack([points, points**3, points**5, [1.0, -1.0, 1.0, -1.0]])
            a, b, c, error = np.linalg.solve(system, np.ones(4))
            root = np.sqrt(max(9 * b * b - 20 * a * c, 0.0))
            inner = np.sqrt(np.array([-3 * b - root, -3 * b + root]) / (10 * c))  # p'(x) = 0
            if np.allclose(inner, points[1:3], rtol=1e-12):
                break
            points[1:3] = inner
        if abs(error) < 1e-3:  # from here on Newton–Schulz' own quintic converges cubically, without cancellation
            last = (float(a), float(b), float(c))
            return (*steps, last, (1.875, -1.25, 0.375), (1.875, -1.25, 0.375))
        scale = 1.0 / (1.0 + abs(error))
        a, b, c = (float(k * scale / margin**n) for k, n in ((a, 1), (b, 3), (c, 5)))
        steps.append((a, b, c))
        lower = min(a * lower + b * lower**3 + c * lower**5, (1.0 - abs(error)) * scale)


COEFFICIENTS = {t: _minimax_coefficients(torch.finfo(t).eps) for t in (torch.float32, torch.float64)}
