"""The nearest simplex ETF to a set of class means, as a differentiable function.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 3. With `UᵀU = I` the paper's problem is linear on
the Stiefel manifold and every polar factor of A solves it:

    (P)   max_{U ∈ St(d,K)} ⟨U, A⟩,      A = (2/√(K−1)) H M + δ U₀
    (R)   max_{X ∈ St(d,K−1)} ⟨X, A⟩,    A = (2/√(K−1)) H Q + δ U₀Q,    U = X Qᵀ.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .polar import METHODS, polar
from .simplex import canonical_frame, centred, check_sizes, from_coordinates, to_coordinates

Formulation = Literal["paper", "gauge-free"]


class Solution(NamedTuple):
    """A solved problem: the frame is differentiable, the rest is for certificates."""

    frame: Tensor  # (d, K)
    linear_term: Tensor  # A (d, m)
    variable: Tensor  # X (d, m)
    sigma: Tensor  # the singular values of A, (m,), in no particular order


def nearest_etf(
    class_means: Tensor,
    proximal: Tensor | None = None,
    delta: float = 1e-3,
    *,
    method: str = "auto",
    formulation: Formulation = "paper",
    initial: Tensor | None = None,
) -> Tensor:
    """The frame U (d, K) whose ETF `U M/√(K−1)` is nearest to the class means H (d, K).

    Parameters
    ----------
    class_means : (d, K)
        `H`: columns are class means minus the global mean, as a rule divided by `‖H‖_F`.
    proximal : (d, K), optional
        `U₀`, a previous frame that the solution stays near. None, or delta = 0, leaves the proximal term out: among
        the minimisers the one nearest to `initial` is taken.
    delta : float
        `δ ≥ 0`.
    method : {"auto", "svd", "eigh"}
    formulation : {"paper", "gauge-free"}
        (P), which needs d ≥ K, or (R), which needs d ≥ K−1.
    initial : (d, K), optional
        What decides where the minimiser is not unique; default the canonical frame, or the proximal point.

    Returns
    -------
    U : (d, K)
        In the class means' dtype, differentiable in class means and proximal point.

    Raises
    ------
    ValueError
        If a shape, delta, an option or (on the CPU) a value is invalid.

    Examples
    --------
    >>> H = torch.eye(5, 3, requires_grad=True)
    >>> U = nearest_etf(H)
    >>> (U.T @ U).allclose(torch.eye(3), atol=1e-6)
    True
    >>> U[0, 0].backward()
    >>> H.grad.shape
    torch.Size([5, 3])
    """
    return solve(class_means, proximal, delta, method=method, formulation=formulation, initial=initial).frame


def solve(
    class_means: Tensor,
    proximal: Tensor | None = None,
    delta: float = 1e-3,
    *,
    method: str = "auto",
    formulation: Formulation = "paper",
    initial: Tensor | None = None,
) -> Solution:
    """`nearest_etf` with what a certificate needs."""
    _check(class_means, proximal, initial, delta, method, formulation)
    d, K = class_means.shape
    dtype = class_means.dtype
    with torch.autocast(class_means.device.type, enabled=False):
        H = class_means.to(torch.float64)
        pinned = proximal is not None and delta > 0
        start = proximal if initial is None else initial
        C = (
            canonical_frame(d, K, dtype=H.dtype, device=H.device)
            if start is None
            else start.detach().to(H.dtype)
        )
        scale = 2.0 / math.sqrt(K - 1)
        if pinned and formulation == "paper":
            assert proximal is not None
            A = scale * centred(H) + delta * proximal.to(H.dtype)
            U, _, sigma, _ = polar(A, C, method)
            return Solution(U.to(dtype), A, U, sigma)
        A = scale * to_coordinates(H)[0]
        if pinned:
            assert proximal is not None
            A = A + delta * to_coordinates(proximal.to(H.dtype))[0]
        start_coordinates, c = to_coordinates(C)
        if formulation == "gauge-free":
            X, _, sigma, _ = polar(A, start_coordinates, method)
            return Solution(from_coordinates(X).to(dtype), A, X, sigma)
        X, z, sigma, _ = polar(A, torch.cat([start_coordinates, c], 1), method)
        frame = from_coordinates(X, _with_tangent(z, X, c))
        return Solution(frame.to(dtype), A, X, sigma)


def _with_tangent(z: Tensor, X: Tensor, c: Tensor) -> Tensor:
    """z (d, 1), which is `w/‖w‖` for `w = c − XXᵀc`, with that derivative in X."""
    w = c - X @ (X.mT @ c)
    length = (z * w.detach()).sum(-2, keepdim=True)
    unit = w - z * (z * w).sum(-2, keepdim=True)  # zero, with the derivative of w/‖w‖ times ‖w‖
    return z + torch.where(length > 1e-8, (unit - unit.detach()) / length, 0.0)


def _check(
    class_means: Tensor,
    proximal: Tensor | None,
    initial: Tensor | None,
    delta: float,
    method: str,
    formulation: str,
) -> None:
    if method not in METHODS:
        raise ValueError(f"method = {method!r}; expected one of {', '.join(map(repr, METHODS))}.")
    if formulation not in ("paper", "gauge-free"):
        raise ValueError(f"formulation = {formulation!r}; expected 'paper' or 'gauge-free'.")
    if class_means.ndim != 2 or not class_means.is_floating_point():
        raise ValueError(
            f"class_means is {class_means.dtype} of shape {tuple(class_means.shape)}; expected a floating-point matrix "
            "(d, K) whose columns are classes."
        )
    check_sizes(*class_means.shape, formulation)
    for name, frame in (("proximal", proximal), ("initial", initial)):
        if frame is not None and frame.shape != class_means.shape:
            raise ValueError(
                f"{name} has shape {tuple(frame.shape)}; expected {tuple(class_means.shape)}, as class_means."
            )
    if not (math.isfinite(delta) and delta >= 0):
        raise ValueError(f"delta = {delta}; expected a finite number that is not negative.")
    if class_means.device.type == "cpu" and not torch.compiler.is_compiling():
        if not torch.isfinite(class_means).all():
            raise ValueError("class_means holds NaN or infinite entries.")
