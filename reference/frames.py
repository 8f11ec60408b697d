"""Tight frames whose vectors sum to zero: the canonical one, validation, and the transposed problem."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import ArrayLike

from ..common.arguments import whole_number
from .checks import frame_like, matrix_like
from .simplex import canonical_frame, centred, centred_basis
from .stiefel import Array


def canonical_tight_frame(num_features: int, num_classes: int) -> Array:
    """The default start of a solve, a tight frame (d, K).

    For K ≤ d+1 it is the ETF `U M` of the canonical frame `U = eye(d, K)` (`Qᵀ` for d = K−1). For K > d+1 it consists
    of the first d non-constant rows of the orthonormal DCT-II matrix, `F[j, k] = √(2/K) cos(π (j+1)(2k+1)/(2K))`.
    Source: Strang 1999, *The discrete cosine transform*.

    Parameters
    ----------
    num_features, num_classes : int
        d and K.

    Raises
    ------
    ValueError
        If d < 1 or K < 2.

    Examples
    --------
    >>> F = canonical_tight_frame(2, 5)
    >>> np.allclose(F @ F.T, np.eye(2)), np.allclose(F.sum(axis=1), 0)
    (True, True)
    """
    d, K = whole_number("num_features", num_features), whole_number("num_classes", num_classes)
    if d < 1 or K < 2:
        raise ValueError(
            f"num_features = {d}, num_classes = {K}; a tight frame needs at least 1 feature and 2 classes. The order "
            "of the arguments is num_features, num_classes."
        )
    if d >= K - 1:
        return centred(canonical_frame(d, K))
    rows, columns = np.arange(1, d + 1)[:, None], np.arange(K)[None, :]
    return cast(Array, np.sqrt(2.0 / K) * np.cos(np.pi / (2 * K) * (rows * (2 * columns + 1))))


def tight_frame_like(name: str, value: ArrayLike, shape: tuple[int, int]) -> Array:
    """A tight frame of this shape; its columns may share a common part, since only `F M` matters."""
    d, K = shape
    if d >= K - 1:
        return frame_like(name, value, shape)
    F = matrix_like(name, value, shape, "class_means")
    error = float(np.abs(centred(F) @ centred(F).T - np.eye(d)).max())
    if error > 1e-3:
        raise ValueError(
            f"{name} is not a tight frame: (F M)(F M)ᵀ differs from the identity by {error:.1e}. Pass the `frame` of a "
            "solution (not its classifier), or the polar factor of your centred matrix."
        )
    return F


def transposed(F: Array) -> Array:
    """`(F M Q_K)ᵀ Qᵀ` (K−1, d+1): a matrix (d, K) as one of the transposed problem, with Helmert's `Q` (d+1, d).

    Q_K (K, K−1) consists of the first columns of the reflection that exchanges `1/√K` and the last axis: an orthonormal
    basis of `1^⊥` whose product with F costs O(dK).
    """
    d, K = F.shape
    B = centred(F)
    return (B[:, :-1] + B[:, -1:] / (np.sqrt(K) - 1.0)).T @ centred_basis(d + 1).T


def transposed_back(Y: Array) -> Array:
    """`(Y Q)ᵀ Q_Kᵀ` (d, K), the adjoint of `transposed`, and its inverse on matrices of zero row sums."""
    B = (Y @ centred_basis(Y.shape[1])).T  # (d, K−1)
    root, total = np.sqrt(B.shape[1] + 1), B.sum(axis=1, keepdims=True)
    return np.hstack([B - total / (root * (root - 1.0)), total / root])
