"""The derivative of the nearest ETF: closed form, and the dense declarative form as an independent check.

Closed form (design, section 1). Differentiating the polar decomposition `A = X P` under `XᵀX = I` gives

    dX = X Ω + (I − XXᵀ) dA P⁻¹,    P Ω + Ω P = XᵀdA − dAᵀX    (Ω skew),

and, for a cotangent `G = ∂ℓ/∂X`,

    P Φ + Φ P = XᵀG − GᵀX,    Ā = X Φ + (I − XXᵀ) G P⁻¹.

Both are one linear map, symmetric in dA and G: the inverse of the Riemannian Hessian `V ↦ Proj(V P)`. It costs
O(dK² + K³). The dense form is the one that the paper used: Gould, Hartley & Campbell, *Deep Declarative Networks*
(2021), proposition 4.5, with the Lagrangian's Hessian and the constraints' Jacobian as explicit matrices.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh, lstsq, solve

from .checks import check_choice, matrix_like
from .procrustes import NearestETF
from .riemannian import EPS
from .simplex import centred, centred_basis, centring
from .stiefel import Array, skew, sym

Form = Literal["closed", "dense"]
FORMS = ("closed", "dense")


class IllConditionedWarning(RuntimeWarning):
    """The derivative has few correct digits, or does not exist: class means coincide or nearly do."""


def nearest_etf_vjp(solution: NearestETF, cotangent: ArrayLike, *, form: Form = "closed") -> tuple[Array, Array]:
    """Pull a cotangent of the solution's frame back to the class means and the proximal point.

    Parameters
    ----------
    solution : NearestETF
    cotangent : (d, K)
        `G = ∂ℓ/∂U`, for `U = solution.frame`.
    form : {"closed", "dense"}
        The dense form serves checks at small sizes: it builds matrices of dK × dK and K(K+1)/2 × dK.

    Returns
    -------
    class_means_bar : (d, K)
        `∂ℓ/∂H`.
    proximal_bar : (d, K)
        `∂ℓ/∂U₀`; zero where the solution has no proximal term.

    Raises
    ------
    ValueError
        If the cotangent has another shape than the frame or is not finite, or if the problem is too large for
        the dense form.

    Warns
    -----
    IllConditionedWarning
        If rounding alone can change the result in its third digit, or the minimiser is not unique. In the second
        case the derivative along the directions of nonzero curvature is returned.

    Examples
    --------
    >>> from nearest_etf.reference import nearest_etf
    >>> solution = nearest_etf(np.random.default_rng(0).standard_normal((6, 3)))
    >>> H_bar, U0_bar = nearest_etf_vjp(solution, np.ones((6, 3)))
    >>> H_bar.shape, bool(np.any(U0_bar))
    ((6, 3), False)
    """
    check_choice("form", form, FORMS)
    G = _pull_back_frame(solution, _like_frame(solution, "cotangent", cotangent))
    if form == "dense":
        return _dense_vjp(solution, G)
    A_bar = _inverse_hessian(solution, G)
    Q = centred_basis(solution.frame.shape[1]) if solution.gauge_free else None
    to_frame = A_bar if Q is None else A_bar @ Q.T
    K = solution.frame.shape[1]
    return (2.0 / np.sqrt(K - 1)) * centred(to_frame), solution.delta * to_frame


def nearest_etf_jvp(
    solution: NearestETF,
    class_means_dot: ArrayLike,
    proximal_dot: ArrayLike | None = None,
    *,
    form: Form = "closed",
) -> Array:
    """Push tangents of the class means and the proximal point forward to the solution's frame.

    Parameters
    ----------
    solution : NearestETF
    class_means_dot, proximal_dot : (d, K)
        `dH` and `dU₀` (None is zero).
    form : {"closed", "dense"}

    Returns
    -------
    frame_dot : (d, K)
        `dU`.

    Raises
    ------
    ValueError
        As `nearest_etf_vjp`.

    Warns
    -----
    IllConditionedWarning
        As `nearest_etf_vjp`.

    Examples
    --------
    >>> from nearest_etf.reference import nearest_etf
    >>> solution = nearest_etf(np.random.default_rng(0).standard_normal((6, 3)))
    >>> nearest_etf_jvp(solution, np.ones((6, 3))).shape
    (6, 3)
    """
    check_choice("form", form, FORMS)
    H_dot = _like_frame(solution, "class_means_dot", class_means_dot)
    U0_dot = np.zeros_like(H_dot) if proximal_dot is None else _like_frame(solution, "proximal_dot", proximal_dot)
    if form == "dense":
        return _push_forward_frame(solution, _dense_jvp(solution, H_dot, U0_dot))
    K = H_dot.shape[1]
    A_dot = (2.0 / np.sqrt(K - 1)) * centred(H_dot) + solution.delta * U0_dot
    if solution.gauge_free:
        A_dot = A_dot @ centred_basis(K)
    return _push_forward_frame(solution, _inverse_hessian(solution, A_dot))


def _inverse_hessian(solution: NearestETF, G: Array) -> Array:
    """`X Φ + (I − XXᵀ) G P⁻¹` with `P Φ + Φ P = XᵀG − GᵀX`, for G of X's shape: the map of the closed form."""
    X, A = solution.variable, solution.linear_term
    d, m = X.shape
    sigma, V = eigh(sym(X.T @ A))  # P = V diag(sigma) Vᵀ
    pairs = sigma[:, None] + sigma[None, :]
    # d = m leaves no normal directions, and only sums of two singular values occur.
    lowest = float(sigma[0]) if d > m or m == 1 else 0.5 * float(sigma[:2].sum())
    highest = float(np.abs(sigma).max())
    zero = max(d, m) * EPS * highest
    if lowest * 1e-3 <= EPS * highest:
        warnings.warn(
            f"the derivative of the nearest ETF is ill-conditioned here (condition number "
            f"{highest / lowest if lowest > zero else np.inf:.1e}, status {solution.status.value!r}): class means "
            "coincide or nearly do. Use a larger delta with a proximal point, or treat this solution as a constant.",
            IllConditionedWarning,
            stacklevel=3,
        )
        sigma = np.where(sigma > zero, sigma, np.inf)
        pairs = np.where(pairs > 2 * zero, pairs, np.inf)
    np.fill_diagonal(pairs, np.inf)  # a skew matrix has no diagonal, and its rounding must not be divided by 2σ
    Phi = V @ ((V.T @ (2.0 * skew(X.T @ G)) @ V) / pairs) @ V.T
    if d == m:
        return X @ Phi
    normal = G - X @ (X.T @ G)
    return X @ Phi + ((normal @ V) / sigma) @ V.T


def _pull_back_frame(solution: NearestETF, G: Array) -> Array:
    """From the frame's cotangent to the variable's: the identity, or back through `U = X Qᵀ + z 1ᵀ/√K`.

    In the paper's form without proximal term, z is the unit vector orthogonal to X nearest to the start's own
    `c`: `z = w/‖w‖`, `w = c − XXᵀc`.
    """
    if not solution.gauge_free:
        return G
    K = G.shape[1]
    pulled = G @ centred_basis(K)
    if solution.gauge_start is None:
        return pulled
    X, c = solution.variable, solution.gauge_start
    w_bar = _unit_derivative(solution, G.sum(axis=1) / np.sqrt(K))
    return pulled - np.outer(w_bar, X.T @ c) - np.outer(c, X.T @ w_bar)


def _push_forward_frame(solution: NearestETF, X_dot: Array) -> Array:
    """From the variable's tangent to the frame's: the transpose of `_pull_back_frame`."""
    if not solution.gauge_free:
        return X_dot
    K = solution.frame.shape[1]
    pushed = X_dot @ centred_basis(K).T
    if solution.gauge_start is None:
        return pushed
    X, c = solution.variable, solution.gauge_start
    z_dot = _unit_derivative(solution, -X_dot @ (X.T @ c) - X @ (X_dot.T @ c))
    return pushed + np.outer(z_dot, np.full(K, K**-0.5))


def _unit_derivative(solution: NearestETF, v: Array) -> Array:
    """`(I − zzᵀ) v / ‖w‖`, the derivative of `w ↦ w/‖w‖` at w = c − XXᵀc, which is symmetric."""
    X, c = solution.variable, solution.gauge_start
    K = solution.frame.shape[1]
    assert c is not None
    z = solution.frame.sum(axis=1) / np.sqrt(K)
    length = float(z @ (c - X @ (X.T @ c)))
    if length < 1e-8:  # the start does not determine z: `complete_frame` chose it, and it is taken as constant
        return np.zeros_like(v)
    return (v - z * (z @ v)) / length


def _dense_vjp(solution: NearestETF, G: Array) -> tuple[Array, Array]:
    """`θ̄ = −(∂²L/∂X∂θ)ᵀ Y` where Y solves the bordered (KKT) system with right-hand side G."""
    system, B_means, B_proximal = _declarative_blocks(solution)
    Y = _solve_bordered(system, G)
    d, K = solution.frame.shape
    return -(B_means.T @ Y).reshape(d, K), -(B_proximal.T @ Y).reshape(d, K)


def _dense_jvp(solution: NearestETF, H_dot: Array, U0_dot: Array) -> Array:
    system, B_means, B_proximal = _declarative_blocks(solution)
    right_side = -(B_means @ H_dot.ravel() + B_proximal @ U0_dot.ravel())
    return _solve_bordered(system, right_side).reshape(solution.variable.shape)


def _declarative_blocks(solution: NearestETF) -> tuple[Array, Array, Array]:
    """The bordered matrix `[[∂²L/∂X², Jᵀ], [J, 0]]` and the blocks `∂²L/∂X∂H`, `∂²L/∂X∂U₀`.

    `L = f − Σ λ_p h_p` is the Lagrangian of the paper's own objective
    `f = ‖H − X Eᵀ/√(K−1)‖² + (δ/2)‖X − U₀ E₀‖²` (E = E₀ = Q gauge-free, else E = M and E₀ = I), whose quadratic
    terms are kept, and `h_p = (XᵀX − I)_{ij}`, i ≤ j. Matrices are vectorised row by row.
    """
    X = solution.variable
    d, m = X.shape
    if d * m > 3000:
        raise ValueError(
            f"the dense form of a problem of {d} × {m} unknowns needs matrices of {d * m} × {d * m}; it serves "
            'as a check up to 3000 unknowns. Use form="closed".'
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


def _like_frame(solution: NearestETF, name: str, value: ArrayLike) -> Array:
    d, K = solution.frame.shape
    return matrix_like(name, value, (d, K), "the solution's frame")
