"""The derivative of the nearest ETF through dense matrices, as in the paper: an independent check at small sizes.

Source: Gould, Hartley & Campbell, *Deep Declarative Networks* (2021), proposition 4.5: the Lagrangian's Hessian and
the constraints' Jacobian as explicit matrices of dK × dK and K(K+1)/2 × dK.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import lstsq, solve

from .procrustes import NearestETF
from .simplex import centred_basis, centring
from .stiefel import Array


def dense_vjp(solution: NearestETF, G: Array) -> tuple[Array, Array]:
    """`θ̄ = −(∂²L/∂X∂θ)ᵀ Y` for θ = H and U₀, where Y solves the bordered (KKT) system with right-hand side G (d, m)."""
    system, B_means, B_proximal = _blocks(solution)
    Y = _solve_bordered(system, G)
    d, K = solution.frame.shape
    return -(B_means.T @ Y).reshape(d, K), -(B_proximal.T @ Y).reshape(d, K)


def dense_jvp(solution: NearestETF, H_dot: Array, U0_dot: Array) -> Array:
    """The variable's tangent (d, m) for tangents of H and U₀."""
    system, B_means, B_proximal = _blocks(solution)
    right_side = -(B_means @ H_dot.ravel() + B_proximal @ U0_dot.ravel())
    return _solve_bordered(system, right_side).reshape(solution.variable.shape)


def _blocks(solution: NearestETF) -> tuple[Array, Array, Array]:
    """The bordered matrix `[[∂²L/∂X², Jᵀ], [J, 0]]` and the blocks `∂²L/∂X∂H`, `∂²L/∂X∂U₀`.

    `L = f − Σ λ_p h_p` is the Lagrangian of the paper's own objective
    `f = ‖H − X Eᵀ/√(K−1)‖² + (δ/2)‖X − U₀ E₀‖²` (E = E₀ = Q gauge-free, else E = M and E₀ = I), whose quadratic
    terms are kept, and `h_p = (XᵀX − I)_{ij}`, i ≤ j. Matrices are vectorised row by row.
    """
    X = solution.variable
    d, m = X.shape
    if d * m > 3000:
        raise ValueError(
            f"the dense form of a problem of {d} × {m} unknowns needs matrices of {d * m} × {d * m}; it is "
            'limited to 3000 unknowns. Use form="closed".'
        )
    if solution.row_space is not None:
        raise ValueError(
            f"the dense form needs a unique minimiser; the linear term here has rank {solution.row_space.shape[1]} of "
            f'{m}, and its bordered matrix is singular. Use form="closed".'
        )
    K, delta = solution.frame.shape[1], solution.delta
    E = centred_basis(K) if solution.gauge_free else centring(K)
    E0 = E if solution.gauge_free else np.eye(K)
    I_d = np.eye(d)

    upper = [(i, j) for i in range(m) for j in range(i, m)]
    J = np.zeros((len(upper), d, m))  # dh_p/dX
    bend = np.zeros((len(upper), m, m))  # d²h_p/dX² = I_d ⊗ bend_p
    for p, (i, j) in enumerate(upper):
        J[p, :, i] += X[:, j]
        J[p, :, j] += X[:, i]
        bend[p, i, j] += 1.0
        bend[p, j, i] += 1.0
    jacobian = J.reshape(len(upper), d * m)

    curvature = (2.0 / (K - 1)) * E.T @ E + delta * np.eye(m)  # d²f/dX² = I_d ⊗ curvature
    gradient = X @ curvature - solution.linear_term  # df/dX
    multipliers = lstsq(jacobian.T, gradient.ravel())[0]
    lagrangian = np.kron(I_d, curvature - np.tensordot(multipliers, bend, axes=1))
    system: Array = np.block([[lagrangian, jacobian.T], [jacobian, np.zeros((len(upper), len(upper)))]])
    B_means = np.kron(I_d, (-2.0 / np.sqrt(K - 1)) * E.T).astype(np.float64)
    B_proximal = np.kron(I_d, -delta * E0.T).astype(np.float64)
    return system, B_means, B_proximal


def _solve_bordered(system: Array, right_side: Array) -> Array:
    padded = np.zeros(len(system))
    padded[: right_side.size] = right_side.ravel()
    return solve(system, padded, assume_a="sym")[: right_side.size]
