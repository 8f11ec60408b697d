"""The nearest simplex ETF to a set of class means, as a differentiable function.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 3. With `UᵀU = I` the paper's problem is linear on
the Stiefel manifold and every polar factor of A solves it:

    (P)   max_{U ∈ St(d,K)} ⟨U, A⟩,      A = (2/√(K−1)) H M + δ U₀
    (R)   max_{X ∈ St(d,K−1)} ⟨X, A⟩,    A = (2/√(K−1)) H Q + δ U₀Q,    U = X Qᵀ.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .implicit import polar
from .polar import METHODS, Polar
from .simplex import canonical_frame, centred, check_sizes, from_coordinates, to_coordinates

Formulation = Literal["paper", "gauge-free"]


class Solution(NamedTuple):
    """A solved problem: the frame is differentiable, the rest is for certificates and for the next warm start."""

    frame: Tensor  # (d, K), in the class means' dtype
    linear_term: Tensor  # A (d, m)
    polar: Polar  # of A; polar.frame is X (d, m)


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
        `δ ≥ 0`, the weight of the proximal term.
    method : {"auto", "svd", "eigh", "matmul", "trust-region"}
        How the polar factor is found, see `polar.py`; all are exact.
    formulation : {"paper", "gauge-free"}
        (P), which needs d ≥ K, or (R), which needs d ≥ K−1.
    initial : (d, K), optional
        What decides where the minimiser is not unique; default the canonical frame, or the proximal point.

    Returns
    -------
    U : (d, K)
        In the class means' dtype, differentiable in class means and proximal point, in reverse and forward mode, to
        any order. Half-precision input is solved in float32, also under autocast; nothing is ever solved in less.

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
    basis: Tensor | None = None,
) -> Solution:
    """`nearest_etf` with all that it found; `basis` is the last solution's `polar.basis`, for a warm start."""
    check_problem(class_means, proximal, initial, delta, method, formulation)
    d, K = class_means.shape
    device = class_means.device
    dtype = torch.promote_types(class_means.dtype, torch.float32)
    scale = 2.0 / math.sqrt(K - 1)
    pinned = proximal is not None and delta > 0
    start = proximal if initial is None else initial
    with without_autocast(device):
        H = class_means.to(dtype)
        U0 = proximal.to(dtype) if proximal is not None and pinned else None
        C = canonical_frame(d, K, dtype=dtype, device=device) if start is None else start.detach().to(dtype)

        if formulation == "paper" and U0 is not None:
            A = torch.add(scale * centred(H), U0, alpha=delta)
            found = polar(A, C, method, basis)
            return Solution(found.frame.to(class_means.dtype), A, found)

        A = scale * to_coordinates(H)[0]
        if U0 is not None:
            A = torch.add(A, to_coordinates(U0)[0], alpha=delta)
        start_coordinates, gauge = to_coordinates(C)
        if formulation == "gauge-free":
            found = polar(A, start_coordinates, method, basis)
            frame = from_coordinates(found.frame)
        else:  # nothing pins the direction U·1, which is taken from the start
            found = polar(A, torch.cat([start_coordinates, gauge], 1), method, basis)
            frame = from_coordinates(found.frame, _with_tangent(found.gauge, found.frame, gauge))
        return Solution(frame.to(class_means.dtype), A, found)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which products keep their operands' precision."""
    available = torch.amp.autocast_mode.is_autocast_available(device.type)
    active = available and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if active else nullcontext()


def _with_tangent(z: Tensor, X: Tensor, c: Tensor) -> Tensor:
    """z (d, 1), which is `w/‖w‖` for `w = c − XXᵀc`, with that derivative in X."""
    w = c - X @ (X.mT @ c)
    length = (z * w.detach()).sum(-2, keepdim=True)
    unit = w - z * (z * w).sum(-2, keepdim=True)  # zero, with the derivative of w/‖w‖ times ‖w‖
    return z + torch.where(length > 1e-8, (unit - unit.detach()) / length, 0.0)


def check_problem(
    class_means: Tensor,
    proximal: Tensor | None,
    initial: Tensor | None,
    delta: float,
    method: str,
    formulation: str,
) -> None:
    """Refuse what has no solution or only a wrong one; values are looked at where the polar factor is found."""
    if method not in METHODS:
        raise ValueError(f"method = {method!r}; expected one of {', '.join(map(repr, METHODS))}.")
    if formulation not in ("paper", "gauge-free"):
        raise ValueError(f"formulation = {formulation!r}; expected 'paper' or 'gauge-free'.")
    if class_means.ndim != 2 or not class_means.is_floating_point():
        raise ValueError(
            f"class_means is {class_means.dtype} of shape {tuple(class_means.shape)}; expected a floating-point matrix "
            "(d, K) whose columns are classes."
        )
    d, K = class_means.shape
    check_sizes(d, K, formulation)
    for name, frame in (("proximal", proximal), ("initial", initial)):
        if frame is not None and frame.shape != class_means.shape:
            raise ValueError(
                f"{name} has shape {tuple(frame.shape)}; expected {tuple(class_means.shape)}, as class_means."
            )
    if not (math.isfinite(delta) and delta >= 0):
        raise ValueError(f"delta = {delta}; expected a finite number that is not negative.")
