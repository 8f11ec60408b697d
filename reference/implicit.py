"""The derivative of the nearest ETF in closed form; `declarative` has the paper's dense form, an independent check.

Source: Gould, Hartley & Campbell 2021, *Deep Declarative Networks*, proposition 4.5; docs/mathematics.md derives the
closed form. Differentiating the polar decomposition `A = X P` under `XᵀX = I` gives

    dX = X Ω + (I − XXᵀ) dA P⁻¹,    P Ω + Ω P = XᵀdA − dAᵀX    (Ω skew),

and, for a cotangent `G = ∂ℓ/∂X`,

    P Φ + Φ P = XᵀG − GᵀX,    Ā = X Φ + (I − XXᵀ) G P⁻¹.

Both are the same self-adjoint linear map, the inverse of the Riemannian Hessian `V ↦ Proj(V P)`. It costs O(dK² + K³).

What A does not determine is determined by the initial frame C, also under differentiation. Let R (m, r) be an
orthonormal basis of A's row space and N one of its complement (classes that no batch has held, and in the paper's form
without proximal term the direction `U·1`). The solution is `F Rᵀ + Z Nᵀ`, with F the polar factor of `A R` and Z of

    B = (I − FFᵀ) C N,    dB = −(dF Fᵀ + F dFᵀ) C N,    F̄ = G R − (B̄ (C N)ᵀ + (C N) B̄ᵀ) F.

R is treated as constant, since data cannot change it: columns of absent classes stay zero, and the counts of a batch
determine the linear dependence of its means. So this is the derivative in every direction that data can take.
"""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import qr

from .checks import check_choice, matrix_like
from .declarative import dense_jvp, dense_vjp
from .procrustes import NearestETF
from .riemannian import EPS
from .simplex import centred, centred_basis
from .stiefel import Array, eigh, skew, sym

Form = Literal["closed", "dense"]
FORMS = ("closed", "dense")


class IllConditionedWarning(RuntimeWarning):
    """The derivative has few correct digits, or exists in some directions only: class means (nearly) coincide."""


def nearest_etf_vjp(solution: NearestETF, cotangent: ArrayLike, *, form: Form = "closed") -> tuple[Array, Array]:
    """The vector-Jacobian product: a cotangent of the frame, pulled back to the class means and the proximal point.

    Parameters
    ----------
    solution : NearestETF
    cotangent : (d, K)
        `G = ∂ℓ/∂U`, for `U = solution.frame`.
    form : {"closed", "dense"}
        The dense form is a check at small sizes: it builds matrices of dK × dK and K(K+1)/2 × dK.

    Returns
    -------
    class_means_bar : (d, K)
        `∂ℓ/∂H`.
    proximal_bar : (d, K)
        `∂ℓ/∂U₀`; zero if the solution has no proximal term.

    Raises
    ------
    ValueError
        If the cotangent has another shape than the frame or is not finite; for the dense form, if the problem is too
        large or has no unique minimiser.

    Warns
    -----
    IllConditionedWarning
        If rounding alone can change the third digit of the result, or if the minimiser is not unique. In the second
        case the result is the derivative along changes that keep the row space of the linear term. With absent classes,
        data allow no other changes. Coinciding class means can also separate; in such directions there is no
        derivative. Directions that the initial frame does not determine either are treated as constant.

    Examples
    --------
    >>> from nearest_etf.reference import nearest_etf
    >>> solution = nearest_etf(np.random.default_rng(0).standard_normal((6, 3)))
    >>> H_bar, U0_bar = nearest_etf_vjp(solution, np.ones((6, 3)))
    >>> H_bar.shape, bool(np.any(U0_bar))
    ((6, 3), False)
    """
    check_choice("form", form, FORMS)
    G = _like_frame(solution, "cotangent", cotangent)
    fixed, completed = _parts(solution, form)
    F_bar = fixed.coordinates(G)
    if completed is not None:
        F, D = fixed.factor, completed.start
        B_bar = _inverse_hessian(completed.factor, completed.matrix, completed.coordinates(G))
        F_bar = F_bar - B_bar @ (D.T @ F) - D @ (B_bar.T @ F)
    if form == "dense":
        return dense_vjp(solution, F_bar)
    A_bar = fixed.columns(_inverse_hessian(fixed.factor, fixed.matrix, F_bar))
    return (2.0 / np.sqrt(G.shape[1] - 1)) * centred(A_bar), solution.delta * A_bar


def nearest_etf_jvp(
    solution: NearestETF,
    class_means_dot: ArrayLike,
    proximal_dot: ArrayLike | None = None,
    *,
    form: Form = "closed",
) -> Array:
    """The Jacobian-vector product: tangents of class means and proximal point, pushed forward to the frame.

    Parameters
    ----------
    solution : NearestETF
    class_means_dot, proximal_dot : (d, K)
        `dH` and `dU₀` (None is zero). If the minimiser is not unique, their part that changes the row space of the
        linear term is ignored.
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
    fixed, completed = _parts(solution, form)
    if form == "dense":
        F_dot = dense_jvp(solution, H_dot, U0_dot)
    else:
        A_dot = (2.0 / np.sqrt(H_dot.shape[1] - 1)) * centred(H_dot) + solution.delta * U0_dot
        F_dot = _inverse_hessian(fixed.factor, fixed.matrix, fixed.coordinates(A_dot))
    U_dot = fixed.columns(F_dot)
    if completed is not None:
        F, D = fixed.factor, completed.start
        B_dot = -F_dot @ (F.T @ D) - F @ (F_dot.T @ D)
        U_dot = U_dot + completed.columns(_inverse_hessian(completed.factor, completed.matrix, B_dot))
    return U_dot


class _Part(NamedTuple):
    """A part `F Sᵀ` of the frame, with F the polar factor of a matrix B of full column rank."""

    basis: Array | None  # S (K, r), orthonormal; None for the identity
    factor: Array  # F (d, r)
    matrix: Array  # B (d, r)
    start: Array  # C S (d, r), with the initial frame C

    def coordinates(self, G: Array) -> Array:
        """`G S` (d, r)."""
        return G if self.basis is None else G @ self.basis

    def columns(self, G: Array) -> Array:
        """`G Sᵀ` (d, K)."""
        return G if self.basis is None else G @ self.basis.T


def _parts(solution: NearestETF, form: Form) -> tuple[_Part, _Part | None]:
    """The part of the frame that A determines, and the part that the initial frame determines."""
    U, X, A, R = solution.frame, solution.variable, solution.linear_term, solution.row_space
    (d, m), K = X.shape, U.shape[1]
    S = centred_basis(K) if solution.gauge_free else None
    if R is not None and not (d == m == R.shape[1] + 1):  # if d = m and r = m−1, P suffices: only a sign is open
        X, A, S = X @ R, A @ R, R if S is None else S @ R
    if R is not None and form == "closed":
        warnings.warn(
            f"the minimiser is not unique: the linear term has rank {R.shape[1]} of {m}. The derivative is valid if "
            "its row space stays fixed, as with absent classes, and does not exist if class means coincide. Use a "
            "larger delta with a proximal point, or treat this solution as a constant.",
            IllConditionedWarning,
            stacklevel=3,
        )
    fixed = _Part(S, X, A, X)
    taken = S if S is None or solution.formulation == "paper" else np.column_stack([S, np.ones(K)])
    if taken is None or taken.shape[1] == K:
        return fixed, None
    N = qr(taken)[0][:, taken.shape[1] :] if taken.size else np.eye(K)  # (K, s)
    Z, D = U @ N, solution.initial @ N
    B = D - X @ (X.T @ D)
    values, V = eigh(sym(Z.T @ B))
    V = V[:, values > 1e-8]  # the initial frame does not determine the rest
    return fixed, _Part(N @ V, Z @ V, B @ V, D @ V)


def _inverse_hessian(X: Array, A: Array, G: Array) -> Array:
    """`X Φ + (I − XXᵀ) G P⁻¹` with `P Φ + Φ P = XᵀG − GᵀX` and `P = XᵀA`, for G of X's shape."""
    d, m = X.shape
    if m == 0:
        return G
    sigma, V = eigh(sym(X.T @ A))  # P = V diag(sigma) Vᵀ
    pairs = sigma[:, None] + sigma[None, :]
    # d = m leaves no normal directions, and only sums of two singular values occur.
    lowest = float(sigma[0]) if d > m or m == 1 else 0.5 * float(sigma[:2].sum())
    highest = float(np.abs(sigma).max())
    zero = max(d, m) * EPS * highest
    if lowest * 1e-3 <= EPS * highest:
        warnings.warn(
            f"the derivative of the nearest ETF is ill-conditioned here (condition number "
            f"{highest / lowest if lowest > zero else np.inf:.1e}): class means nearly coincide. Use a larger delta "
            "with a proximal point, or treat this solution as a constant.",
            IllConditionedWarning,
            stacklevel=3,
        )
        sigma = np.where(sigma > zero, sigma, np.inf)
        pairs = np.where(pairs > 2 * zero, pairs, np.inf)
    np.fill_diagonal(pairs, np.inf)  # the diagonal of a skew matrix is zero: its rounding must not be divided by 2σ
    Phi = V @ ((V.T @ (2.0 * skew(X.T @ G)) @ V) / pairs) @ V.T
    if d == m:
        return X @ Phi
    normal = G - X @ (X.T @ G)
    return X @ Phi + ((normal @ V) / sigma) @ V.T


def _like_frame(solution: NearestETF, name: str, value: ArrayLike) -> Array:
    d, K = solution.frame.shape
    return matrix_like(name, value, (d, K), "the solution's frame")
