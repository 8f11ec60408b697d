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
from scipy.special import binom

Array = NDArray[np.float64]


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


def project(U: Array, Z: Array) -> Array:
    """The orthogonal projection of Z (d, K) onto the tangent space at U: `Z − U sym(UᵀZ)`."""
    return Z - U @ sym(U.T @ Z)


def retract_polar(U: Array, V: Array) -> Array:
    """The polar factor of U + V, (d, K): a second-order retraction, and the nearest point of the manifold.

    For a tangent V, `(U+V)ᵀ(U+V) = I + X` with `X = VᵀV`, so the inverse square root is well conditioned: by eigh,
    or for short steps by the binomial series of `(I + X)^{-1/2}`, with as many terms as the norm of X requires.
    """
    Y = U + V
    gram = Y.T @ Y
    identity = np.eye(len(gram))
    X = gram - identity
    size = frobenius(X)
    if size > 0.1:
        eigenvalues, Q = np.linalg.eigh(gram)
        return Y @ ((Q / np.sqrt(eigenvalues)) @ Q.T)
    terms = int(np.ceil(-12 / np.log10(max(size, 1e-12))))  # until sizeᵏ < 1e-12
    coefficients = binom(-0.5, np.arange(terms + 1))
    root = coefficients[-1] * identity
    for coefficient in coefficients[-2::-1]:
        root = X @ root + coefficient * identity
    return Y @ root


def retract_qr(U: Array, V: Array) -> Array:
    """The Q factor of U + V, (d, K), by Cholesky: a first-order retraction, cheaper than the polar one."""
    Y = U + V
    R = cholesky(Y.T @ Y, check_finite=False)
    return cast(Array, solve_triangular(R, Y.T, trans="T", check_finite=False).T)


def random_point(d: int, K: int, rng: np.random.Generator) -> Array:
    """A point drawn uniformly (Haar): QR of a Gaussian matrix, signs fixed by R's diagonal (Mezzadri 2007)."""
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
