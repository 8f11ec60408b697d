"""Validation of the solver's arrays and options; errors name the argument, the value, what is expected and a remedy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .arrays import real_array
from .simplex import centred
from .stiefel import Array

METHODS = ("trust-region", "svd")
TORCH_METHODS = ("auto", "eigh", "matmul")


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise an error unless the value is one of the known ones."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} = {value!r}; expected one of {', '.join(map(repr, known))}.")


def check_method(method: object) -> None:
    """Raise an error for an unknown method; for a method of torchport, the error points there."""
    if isinstance(method, str) and method in TORCH_METHODS:
        raise ValueError(
            f"method = {method!r} is a method of torchport; the NumPy reference has 'trust-region' and 'svd'. "
            "Use one of these, or nearest_etf.torchport.nearest_etf."
        )
    check_choice("method", method, METHODS)


def finite_matrix(name: str, value: ArrayLike) -> Array:
    """The value as a float64 matrix (d, K) of finite entries."""
    B = real_array(name, value)
    if B.ndim != 2:
        raise ValueError(f"{name} has shape {B.shape}; expected a matrix (d, K) whose columns are classes.")
    if not np.isfinite(B).all():
        raise ValueError(f"{name} contains NaN or infinite entries: {int(np.sum(~np.isfinite(B)))} of {B.size}.")
    return B


def class_means_matrix(value: ArrayLike, formulation: str = "gauge-free") -> Array:
    """Class means (d, K) of a size that the formulation can solve; this refuses most transposed matrices."""
    H = finite_matrix("class_means", value)
    d, K = H.shape
    if K < 2:
        raise ValueError(
            f"class_means has shape ({d}, {K}); expected (d, K) with at least 2 classes. Columns are classes; pass "
            "class_means.T if your rows are classes."
        )
    if d < K - 1:
        raise ValueError(
            f"class_means has shape ({d}, {K}); expected (d, K) with d ≥ K−1. It looks like a transposed matrix: "
            "columns are classes; pass class_means.T if your rows are classes. A simplex ETF of "
            f"{K} classes spans {K - 1} dimensions: use at least {K - 1} features if your columns are classes."
        )
    if d < K and formulation == "paper":
        raise ValueError(
            f"class_means has shape ({d}, {K}); the paper's formulation expects d ≥ K. Columns are classes; pass "
            'class_means.T if your rows are classes, or formulation="gauge-free", which takes d = K−1.'
        )
    return H


def matrix_like(name: str, value: ArrayLike, shape: tuple[int, int], owner: str) -> Array:
    """A finite matrix of the given shape, which is that of `owner`."""
    B = real_array(name, value)
    if B.shape != shape:
        remedy = f" Pass {name}.T: columns are classes." if B.shape == shape[::-1] else ""
        raise ValueError(f"{name} has shape {B.shape}; expected {shape}, as {owner}.{remedy}")
    return finite_matrix(name, B)


def frame_like(name: str, value: ArrayLike, shape: tuple[int, int]) -> Array:
    """A frame of either formulation, (d, K): the Gram matrix of its ETF `U M` is M."""
    U = matrix_like(name, value, shape, "class_means")
    error = float(np.abs(centred(centred(U.T @ U - np.eye(shape[1])).T)).max())
    if error > 1e-3:
        raise ValueError(
            f"{name} is not a frame: (U M)ᵀ(U M) differs from M by {error:.1e}. Pass the `frame` of a solution "
            "(not its classifier), or the polar factor of your matrix."
        )
    return U
