"""The simplex equiangular tight frame (ETF): K unit vectors at the largest possible equal angle.

Source: Strohmer & Heath 2003 (frames); Papyan, Han & Donoho 2020 (neural collapse); Markou, Ajanthan &
Gould 2024, arXiv 2411.01248, section 3 (this parametrisation). Symbols: `M = I − 11ᵀ/K` is the
centring projector, `Q` an orthonormal basis of its range, and every simplex ETF in R^d is `U M` up to scale.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import helmert

from ..common.arguments import whole_number
from .arrays import real_array
from .stiefel import Array


def centring(num_classes: int) -> Array:
    """The projector `M = I − 11ᵀ/K` onto the vectors that sum to zero, (K, K)."""
    _check_num_classes(num_classes)
    return np.eye(num_classes) - 1.0 / num_classes


def centred_basis(num_classes: int) -> Array:
    """An orthonormal basis `Q` of `1^⊥` (Helmert's), (K, K−1): `QᵀQ = I`, `QQᵀ = M`."""
    _check_num_classes(num_classes)
    return np.ascontiguousarray(helmert(num_classes).T)


def centred(H: Array) -> Array:
    """`H M` (d, K): the columns minus their mean."""
    return H - H.mean(axis=1, keepdims=True)


def simplex_etf(num_classes: int) -> Array:
    """The standard simplex ETF `√(K/(K−1)) · M`, (K, K), unit columns.

    Parameters
    ----------
    num_classes : int
        K, at least 2.

    Raises
    ------
    ValueError
        If there are fewer than two classes.

    Examples
    --------
    >>> E = simplex_etf(3)
    >>> np.allclose(E.T @ E, [[1, -0.5, -0.5], [-0.5, 1, -0.5], [-0.5, -0.5, 1]])
    True
    """
    M = centring(num_classes)
    return np.sqrt(num_classes / (num_classes - 1)) * M


def canonical_frame(num_features: int, num_classes: int) -> Array:
    """The canonical frame, (d, K): `eye(d, K)`, and for d = K−1 the partial isometry `eye(d, K−1) Qᵀ`.

    It is the start of the paper's solver, and the `U` of the fixed head.

    Raises
    ------
    ValueError
        If K < 2, or if d < K−1: the simplex ETF spans K−1 dimensions.
    """
    _check_num_classes(num_classes)
    if whole_number("num_features", num_features) < num_classes - 1:
        raise ValueError(
            f"num_features = {num_features} is too small for a simplex ETF of {num_classes} classes, which spans "
            f"{num_classes - 1} dimensions. Use at least {num_classes - 1} features; the order of the arguments is "
            "num_features, num_classes."
        )
    if num_features == num_classes - 1:
        return centred_basis(num_classes).T.copy()
    return np.eye(num_features, num_classes)


def canonical_etf(num_features: int, num_classes: int) -> Array:
    """The canonical simplex ETF in R^d, (d, K), unit columns.

    Parameters
    ----------
    num_features, num_classes : int
        d and K, d ≥ K−1.

    Raises
    ------
    ValueError
        If K < 2 or d < K−1.

    Examples
    --------
    >>> W = canonical_etf(5, 3).T  # rows are classes
    >>> bool(etf_error(W) < 1e-15)
    True
    """
    return canonical_frame(num_features, num_classes) @ simplex_etf(num_classes)


def etf_error(weight: ArrayLike) -> float:
    """The distance of the rows of W from a simplex ETF: NC2, `‖WWᵀ/‖WWᵀ‖_F − M/√(K−1)‖_F`.

    Zero exactly for a simplex ETF of any size and orientation; at most √2 + 1.

    Parameters
    ----------
    weight : (K, d)
        Rows are classes. Any number is valid, so a transposed matrix is not recognised.

    Raises
    ------
    ValueError
        If W is not a finite matrix of at least two rows, or is zero.

    Examples
    --------
    >>> round(etf_error(np.eye(3)), 4)
    0.6058
    """
    W = real_array("weight", weight)
    if W.ndim != 2:
        raise ValueError(f"weight has shape {W.shape}; expected a matrix (K, d) whose rows are classes.")
    scale = np.abs(W).max(initial=0.0)
    if not np.isfinite(scale) or scale == 0.0:
        raise ValueError(f"weight has largest entry {scale}; expected finite entries that are not all zero.")
    num_classes = W.shape[0]
    gram = (W / scale) @ (W / scale).T
    return float(np.linalg.norm(gram / np.linalg.norm(gram) - centring(num_classes) / np.sqrt(num_classes - 1)))


def _check_num_classes(num_classes: int) -> None:
    if whole_number("num_classes", num_classes) < 2:
        raise ValueError(f"num_classes = {num_classes}; a simplex ETF needs at least 2 classes.")
