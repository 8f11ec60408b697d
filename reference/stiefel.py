"""The Stiefel manifold St(d, K) = {U ∈ R^{d×K} : UᵀU = I} with the embedded metric ⟨V, W⟩ = tr(VᵀW).

Source: Absil, Mahony & Sepulchre, *Optimization Algorithms on Matrix Manifolds* (2008), chapters 3–5;
Boumal, *An Introduction to Optimization on Smooth Manifolds* (2023), section 7.3.

A tangent vector at U is `V = UΩ + N` with Ω skew and `UᵀN = 0`; equivalently, `UᵀV` is skew.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, qr, solve_triangular
from scipy.linalg import eigh as scipy_eigh
from scipy.special import binom

Array = NDArray[np.float64]

BINOMIAL = binom(-0.5, np.arange(15))  # the coefficients of (1 + x)^{-1/2}


def sym(B: Array) -> Array:
    """The symmetric part (B + Bᵀ)/2."""
    return 0.5 * (B + B.T)


def skew(B: Array) -> Array:
    """The skew part (B − Bᵀ)/2."""
    return 0.5 * (B - B.T)


def frobenius(B: Array) -> float:
    """The Frobenius norm ‖B‖_F, without the overhead of numpy.linalg.norm."""
    return float(np.vdot(B, B)) ** 0.5


def safe_frobenius(B: Array) -> float:
    """The Frobenius norm ‖B‖_F, safe from overflow and underflow of the squares."""
    squared = float(np.vdot(B, B))
    if 1e-250 < squared < 1e250:
        return squared**0.5
    largest = float(np.abs(B).max(initial=0.0))
    return largest * float(np.linalg.norm(B / largest)) if 0.0 < largest < np.inf else largest


def eigh(S: Array) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors of the symmetric S.

    By divide and conquer, the fastest method, or by QR iterations if it does not converge (three times in the 31,000
    problems of benchmarks/sweep.py). Both bases are orthonormal up to rounding; SciPy's default ("evr") loses up to two
    digits of orthonormality if eigenvalues cluster.
    """
    try:
        eigenvalues, Q = np.linalg.eigh(S)
    except np.linalg.LinAlgError:
        eigenvalues, Q = scipy_eigh(S, driver="ev", check_finite=False)
    return eigenvalues, Q


def project(U: Array, Z: Array) -> Array:
    """The orthogonal projection of Z (d, K) onto the tangent space at U: `Z − U sym(UᵀZ)`."""
    return Z - U @ sym(U.T @ Z)


def retract_polar(U: Array, V: Array) -> Array:
    """The polar factor of U + V, (d, K): the nearest point of the manifold, a second-order retraction.

    For a tangent V, `(U+V)ᵀ(U+V) = I + X` with `X = VᵀV`, so the inverse square root is well conditioned. `eigh` gives
    it, or for short steps the binomial series of `(I + X)^{-1/2}`, with as many terms as the norm of X requires and one
    product with X³ for every three of them.
    """
    Y = U + V
    X = Y.T @ Y
    diagonal = np.einsum("ii->i", X)
    diagonal -= 1.0
    size = frobenius(X)
    if size > 0.1:
        eigenvalues, Q = eigh(X)
        return Y @ ((Q / np.sqrt(1.0 + eigenvalues)) @ Q.T)
    threes = int(np.ceil(-5 / np.log10(max(size, 1e-15))))  # until size^(3·threes) < 1e-15
    X2 = X @ X
    root, X3 = _three_terms(X, X2, 3 * threes - 3), X @ X2 if threes > 1 else X2
    for first in range(3 * threes - 6, -1, -3):
        root = X3 @ root
        root += _three_terms(X, X2, first)
    return Y @ root


def _three_terms(X: Array, X2: Array, first: int) -> Array:
    """Three terms of the binomial series of `(I + X)^{-1/2}`, starting at X^first and divided by X^first."""
    a, b, c = BINOMIAL[first : first + 3]
    terms = c * X2
    terms += b * X
    np.einsum("ii->i", terms)[...] += a
    return terms


def retract_qr(U: Array, V: Array) -> Array:
    """The Q factor of U + V, (d, K), by Cholesky: a first-order retraction, cheaper than the polar one."""
    Y = U + V
    R = cholesky(Y.T @ Y, check_finite=False)
    return cast(Array, solve_triangular(R, Y.T, trans="T", check_finite=False).T)


def random_point(d: int, K: int, rng: np.random.Generator) -> Array:
    """A Haar-distributed point: QR of a Gaussian matrix, signs fixed by the diagonal of R (Mezzadri 2007)."""
    Q, R = qr(rng.standard_normal((d, K)), mode="economic")
    return np.multiply(Q, np.where(np.diag(R) < 0, -1.0, 1.0), dtype=np.float64)


def random_tangent(U: Array, rng: np.random.Generator) -> Array:
    """A Gaussian tangent vector at U, scaled to unit Frobenius norm."""
    V = project(U, rng.standard_normal(U.shape))
    return V / np.linalg.norm(V)


def check_point(U: Array, tolerance: float = 1e-12) -> tuple[bool, str]:
    """Whether U lies on the manifold, and the reason: `‖UᵀU − I‖_F ≤ tolerance · √K`."""
    d, K = U.shape
    if d < K:
        return False, f"shape ({d}, {K}) has more columns than rows, so the columns cannot be orthonormal"
    error = float(np.linalg.norm(U.T @ U - np.eye(K)))
    return error <= tolerance * np.sqrt(K), f"‖UᵀU − I‖_F = {error:.1e}"


def check_tangent(U: Array, V: Array, tolerance: float = 1e-12) -> tuple[bool, str]:
    """Whether V is tangent at U, and the reason: `‖sym(UᵀV)‖_F ≤ tolerance · max(1, ‖V‖_F)`."""
    error = float(np.linalg.norm(sym(U.T @ V)))
    return error <= tolerance * max(1.0, float(np.linalg.norm(V))), f"‖sym(UᵀV)‖_F = {error:.1e}"
