"""The exact trust-region step for a cost that is linear on the Stiefel manifold, f(U) = −⟨U, A⟩.

With `S = sym(UᵀA)` the Riemannian Hessian is `V ↦ Proj_U(V S)`. Write a tangent vector as `V = UΩ + N`
(Ω skew, UᵀN = 0) and let `S = QΛQᵀ`. In the coordinates `QᵀΩQ` and `NQ` the Hessian is diagonal: it multiplies
entry (i, j) of `QᵀΩQ` by `(λᵢ+λⱼ)/2` and column j of `NQ` by `λⱼ`. So an eigendecomposition of a K×K matrix and the
scalar secular equation `‖V(μ)‖ = Δ` give the global minimiser of the model in the ball
(Conn, Gould & Toint, *Trust-Region Methods* (2000), section 7.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .riemannian import EPS, LocalModel, Step
from .stiefel import Array, eigh, frobenius, skew, sym


@dataclass(frozen=True)
class Spectrum:
    """The Hessian's eigenvalues at a point, and the basis that diagonalises it."""

    eigenvalues: Array  # λ (K,), ascending
    basis: Array  # Q (K, K)
    pair_curvature: Array  # (λᵢ+λⱼ)/2 (K, K), for the entries of QᵀΩQ; +∞ on the diagonal, where Ω is zero
    has_normal: bool  # d > K: there are normal directions N, with curvature λⱼ

    @property
    def lowest(self) -> float:
        """The Hessian's lowest eigenvalue."""
        candidates = [0.5 * float(self.eigenvalues[:2].sum())] if len(self.eigenvalues) > 1 else []
        if self.has_normal:
            candidates.append(float(self.eigenvalues[0]))
        return min(candidates, default=0.0)


def hessian_spectrum(model: LocalModel) -> Spectrum:
    """The eigendecomposition of the Hessian at `model.point`, from that of `sym(UᵀA)`."""
    d, K = model.point.shape
    eigenvalues, Q = eigh(-sym(model.frame_gradient))
    pairs = 0.5 * (eigenvalues[:, None] + eigenvalues[None, :])
    np.fill_diagonal(pairs, np.inf)
    return Spectrum(eigenvalues, Q, pairs, d > K)


def exact_step(model: LocalModel, radius: float) -> Step:
    """The global minimiser of the model in the ball ‖V‖ ≤ radius."""
    U, g = model.point, model.gradient
    d, K = U.shape
    spectrum = hessian_spectrum(model)
    values, Q, pairs = spectrum.eigenvalues, spectrum.basis, spectrum.pair_curvature

    # g = U frame_part + normal. The normal part is divided by singular values below, so it must be orthogonal to U up
    # to the rounding of g, not of A: a remainder along U would become a rotation in stiff directions.
    frame_part = U.T @ g
    frame_rotated = Q.T @ frame_part @ Q
    omega_rotated = skew(frame_rotated)
    if spectrum.lowest > 1e-6 * values[-1]:  # convex: Newton's step, if it lies in the ball
        if spectrum.has_normal:
            V = U @ (Q @ (frame_rotated / values - omega_rotated / pairs) @ Q.T)
            V -= g @ ((Q / values) @ Q.T)
        else:
            V = U @ (Q @ (-omega_rotated / pairs) @ Q.T)
        if frobenius(V) <= radius:
            return Step(V, -0.5 * float(np.vdot(g, V)), False, 1)
    normal_rotated = (g - U @ frame_part) @ Q if spectrum.has_normal else np.zeros_like(g)
    weights = np.concatenate([np.square(omega_rotated).ravel(), np.einsum("dk,dk->k", normal_rotated, normal_rotated)])
    curvatures = np.concatenate([pairs.ravel(), values if spectrum.has_normal else np.full_like(values, np.inf)])

    # The rounding error of zero. No step is taken along directions whose curvature and gradient are both below it.
    noise = (d + K) * EPS * (float(np.abs(values).max()) + frobenius(g))
    curvatures[(np.abs(curvatures) <= 4 * noise) & (weights <= noise**2)] = np.inf
    shift, squared_norm = _solve_secular(weights, curvatures, max(0.0, noise - spectrum.lowest), radius)
    divisors = curvatures + shift
    lengths = weights / np.square(divisors)
    decrease = float(lengths @ (np.where(np.isinf(curvatures), 0.0, 0.5 * curvatures) + shift))
    rotated = U @ (Q @ (omega_rotated / divisors[: K * K].reshape(K, K))) + normal_rotated / divisors[K * K :]
    V = -rotated @ Q.T

    on_boundary = squared_norm >= (0.999 * radius) ** 2
    if spectrum.lowest < -noise and not on_boundary:
        # The hard case: the gradient has no part along the lowest curvature, so the step there extends to the boundary.
        direction = _lowest_direction(U, spectrum)
        direction = direction if np.vdot(g, direction) <= 0 else -direction
        rest = np.sqrt(max(radius**2 - squared_norm, 0.0))
        V = V + rest * direction
        decrease -= rest * float(np.vdot(g, direction)) + 0.5 * spectrum.lowest * rest**2
        on_boundary = True
    return Step(V, decrease, bool(on_boundary), 1)


def escape(model: LocalModel) -> tuple[Array, float] | None:
    """A unit direction of negative curvature and that curvature, or None at a minimiser.

    A Cholesky factorisation of `sym(UᵀA)` proves a minimiser at a fraction of the cost of an eigendecomposition.
    """
    S = -sym(model.frame_gradient)
    threshold = 1e-13 * frobenius(S)
    if is_positive_definite(S, threshold):
        return None
    spectrum = hessian_spectrum(model)
    if spectrum.lowest >= -threshold:
        return None
    return _lowest_direction(model.point, spectrum), spectrum.lowest


def is_positive_definite(S: Array, margin: float = 0.0) -> bool:
    """Whether every eigenvalue of the symmetric S exceeds the margin."""
    try:
        np.linalg.cholesky(S - margin * np.eye(len(S)))
    except np.linalg.LinAlgError:
        return False
    return True


def _solve_secular(weights: Array, curvatures: Array, shift: float, radius: float) -> tuple[float, float]:
    """The least μ ≥ shift with `‖V(μ)‖ ≤ radius`, and `‖V(μ)‖²`, for `‖V(μ)‖² = Σ wᵢ/(hᵢ+μ)²`.

    By Newton's iteration on `1/‖V(μ)‖`, which is concave and nearly linear: from the left it does not overshoot.
    """
    for _ in range(100):
        terms = weights / np.square(curvatures + shift)
        squared_norm = float(terms.sum())
        norm = np.sqrt(squared_norm)
        if norm <= radius * (1 + 1e-10):
            break
        slope = float((terms / (curvatures + shift)).sum())
        shift += (squared_norm / slope) * (norm - radius) / radius
    return shift, squared_norm


def _lowest_direction(U: Array, spectrum: Spectrum) -> Array:
    """A unit tangent vector along which the Hessian takes its lowest value."""
    Q, values = spectrum.basis, spectrum.eigenvalues
    if spectrum.has_normal and (len(values) == 1 or values[0] <= values[1]):
        nearest_axis = int(np.argmin(np.einsum("dk,dk->d", U, U)))  # the axis furthest from span(U)
        normal = -U @ U[nearest_axis]
        normal[nearest_axis] += 1.0
        normal -= U @ (U.T @ normal)
        return np.outer(normal / np.linalg.norm(normal), Q[:, 0])
    rotation = np.outer(Q[:, 0], Q[:, 1])
    return U @ (rotation - rotation.T) / np.sqrt(2.0)
