"""The derivative of the nearest tight frame in closed form.

For K ≤ d+1 it is that of `reference.implicit`. For K > d+1 let `A = L Σ Rᵀ` have rank ρ; its polar factor on its range
is `W = L Rᵀ`. Along changes that keep the rank,

    dW = L Ω Rᵀ + (I − LLᵀ) dA R Σ⁻¹ Rᵀ + L Σ⁻¹ Lᵀ dA (I − RRᵀ),    Σ Ω + Ω Σ = Lᵀ dA R − Rᵀ dAᵀ L,

a self-adjoint linear map D_A. At full rank, ρ = d, the frame is W, the middle term vanishes, and with
`P = (AAᵀ)^{1/2}` the cotangent is `Ā = ΦF + P⁻¹ G (I − FᵀF)`, `PΦ + ΦP = GFᵀ − FGᵀ`.

At a lower rank (before d+1 classes are seen) the frame is `W + Z`, with Z the polar factor of

    B = (I − WWᵀ) C (I − WᵀW),    Ż = D_B[Ḃ],

C the initial frame. Row and column space of A may both change, whereas `implicit` keeps the row space fixed.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import svd, svdvals

from .checks import matrix_like
from .frames import transposed_back
from .implicit import IllConditionedWarning, nearest_etf_jvp, nearest_etf_vjp
from .riemannian import EPS
from .simplex import centred
from .stiefel import Array
from .tight_frame import NearestTightFrame


def tight_frame_vjp(solution: NearestTightFrame, cotangent: ArrayLike) -> tuple[Array, Array]:
    """The vector-Jacobian product: a cotangent of the frame, pulled back to the class means and the proximal point.

    Parameters
    ----------
    solution : NearestTightFrame
    cotangent : (d, K)
        `G = ∂ℓ/∂F`, for `F = solution.frame`.

    Returns
    -------
    class_means_bar : (d, K)
        `H̄ = (2/√r) Ā M`.
    proximal_bar : (d, K)
        `F̄₀ = δ Ā M`; zero if the solution has no proximal term.

    Raises
    ------
    ValueError
        If the cotangent has another shape than the frame or is not finite.

    Warns
    -----
    IllConditionedWarning
        If rounding alone can change the third digit of the result, or if the minimiser is not unique. In the second
        case the result is the derivative along changes that keep the rank of A (for K ≤ d+1 its row space, see
        `nearest_etf_vjp`).

    Examples
    --------
    >>> from nearest_etf.reference import nearest_tight_frame
    >>> solution = nearest_tight_frame(np.random.default_rng(0).standard_normal((3, 8)))
    >>> H_bar, F0_bar = tight_frame_vjp(solution, np.eye(3, 8))
    >>> H_bar.shape, bool(np.any(F0_bar))
    ((3, 8), False)
    """
    G = _like_frame(solution, "cotangent", cotangent)
    if solution.is_etf:
        return nearest_etf_vjp(solution.solved, G)
    fixed, rest = _parts(solution)
    W_bar = G
    if rest is not None:
        W, B_bar = fixed.factor, rest.polar.derivative(G)
        E = B_bar @ rest.start_outside_rows.T
        W_bar = G - (E + E.T) @ W
        W_bar -= (W @ B_bar.T) @ rest.start_outside_columns + (W @ rest.start_outside_columns.T) @ B_bar
    A_bar = centred(fixed.derivative(W_bar))
    return (2.0 / np.sqrt(solution.rank)) * A_bar, solution.delta * A_bar


def tight_frame_jvp(
    solution: NearestTightFrame, class_means_dot: ArrayLike, proximal_dot: ArrayLike | None = None
) -> Array:
    """The Jacobian-vector product: tangents of class means and proximal point, pushed forward to the frame.

    Parameters
    ----------
    solution : NearestTightFrame
    class_means_dot, proximal_dot : (d, K)
        `dH` and `dF₀` (None is zero).

    Returns
    -------
    frame_dot : (d, K)
        `dF`.

    Raises
    ------
    ValueError
        If a tangent has another shape than the frame or is not finite.

    Warns
    -----
    IllConditionedWarning
        As `tight_frame_vjp`.

    Examples
    --------
    >>> from nearest_etf.reference import nearest_tight_frame
    >>> solution = nearest_tight_frame(np.random.default_rng(0).standard_normal((3, 8)))
    >>> np.allclose(tight_frame_jvp(solution, solution.class_means), 0)  # scaling H does not change the frame
    True
    """
    H_dot = _like_frame(solution, "class_means_dot", class_means_dot)
    F0_dot = np.zeros_like(H_dot) if proximal_dot is None else _like_frame(solution, "proximal_dot", proximal_dot)
    if solution.is_etf:
        return nearest_etf_jvp(solution.solved, H_dot, F0_dot)
    fixed, rest = _parts(solution)
    W_dot = fixed.derivative(centred((2.0 / np.sqrt(solution.rank)) * H_dot + solution.delta * F0_dot))
    if rest is None:
        return W_dot
    W = fixed.factor
    turn = W_dot @ W.T
    B_dot = -(turn + turn.T) @ rest.start_outside_rows
    B_dot -= (rest.start_outside_columns @ W_dot.T) @ W + (rest.start_outside_columns @ W.T) @ W_dot
    return W_dot + rest.polar.derivative(B_dot)


class _Polar(NamedTuple):
    """The polar factor `L Rᵀ` of a matrix `L Σ Rᵀ` on its range."""

    left: Array  # L (d, ρ)
    sigma: Array  # (ρ,)
    right_t: Array  # Rᵀ (ρ, K)

    @property
    def factor(self) -> Array:
        return self.left @ self.right_t

    def derivative(self, V: Array) -> Array:
        """D_A[V], (d, K): the derivative of the factor along V, a self-adjoint map."""
        L, sigma, right_t = self
        VR, LV = V @ right_t.T, L.T @ V
        inner = LV @ right_t.T
        Omega = (inner - inner.T) / (sigma[:, None] + sigma[None, :])
        outside_columns, outside_rows = VR - L @ inner, LV - inner @ right_t
        return (L @ Omega + outside_columns / sigma) @ right_t + L @ (outside_rows / sigma[:, None])


class _Rest(NamedTuple):
    """The part of the frame that the initial frame C determines, not A."""

    start_outside_rows: Array  # C (I − WᵀW) (d, K)
    start_outside_columns: Array  # (I − WWᵀ) C (d, K)
    polar: _Polar  # of B


def _parts(solution: NearestTightFrame) -> tuple[_Polar, _Rest | None]:
    """The part of the frame that A determines, and the part that the initial frame determines."""
    d, R = solution.rank, solution.solved.row_space
    rank = d if R is None else R.shape[1]
    fixed = _polar(solution.linear_term, rank)
    if rank == d:
        if fixed.sigma[-1] * 1e-3 <= EPS * fixed.sigma[0]:
            _warn(
                f"the derivative of the nearest tight frame is ill-conditioned here (condition number "
                f"{fixed.sigma[0] / fixed.sigma[-1]:.1e}): the class means nearly lie in fewer than {d} dimensions."
            )
        return fixed, None
    _warn(
        f"the minimiser is not unique: the linear term has rank {rank} of {d}. The derivative is valid along changes "
        "that keep this rank, as with absent classes."
    )
    C = transposed_back(solution.solved.initial)
    outside_rows = C - (C @ fixed.right_t.T) @ fixed.right_t
    outside_columns = C - fixed.left @ (fixed.left.T @ C)
    B = outside_rows - fixed.left @ (fixed.left.T @ outside_rows)
    rank_of_B = int(np.sum(svdvals(B, check_finite=False) > 1e-8))  # C does not determine the rest
    return fixed, _Rest(outside_rows, outside_columns, _polar(B, rank_of_B))


def _polar(B: Array, rank: int) -> _Polar:
    left, sigma, right_t = svd(B, full_matrices=False, check_finite=False)
    return _Polar(left[:, :rank], sigma[:rank], right_t[:rank])


def _warn(cause: str) -> None:
    remedy = " Use a larger delta with a proximal point, or treat this solution as a constant."
    warnings.warn(cause + remedy, IllConditionedWarning, stacklevel=4)


def _like_frame(solution: NearestTightFrame, name: str, value: ArrayLike) -> Array:
    d, K = solution.frame.shape
    return matrix_like(name, value, (d, K), "the solution's frame")
