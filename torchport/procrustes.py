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

import numpy as np
import torch
from torch import Tensor

from ..common.arguments import real_number
from ..reference.procrustes import initial_frame
from .arguments import check_finite, check_floats, sees_values
from .methods.autograd import Found, nearest_frame, polar
from .methods.completion import completed
from .methods.decompose import METHODS
from .methods.linalg import frobenius
from .simplex import (
    canonical_frame,
    check_class_means_shape,
    check_frame,
    classifier_from_frame,
    from_coordinates,
    to_coordinates,
)

Formulation = Literal["paper", "gauge-free"]
_NOTHING: AbstractContextManager[Any] = nullcontext()
INITIAL = ("canonical", "random", "feature-polar")


class Solution(NamedTuple):
    """A solution of (P) or (R): the differentiable frame, its certificate, and a basis for the next warm start.

    Attributes
    ----------
    frame : (d, K)
        `U`, in the class means' dtype; the only part with a gradient.
    variable : (d, m)
        `X`, m = K, or K−1 if solved as (R), in the precision of the solve.
    linear_term : (d, m)
        `A`.
    fallbacks : int, or () int64 tensor
        1 if another method replaced the chosen one, or if on an accelerator the frame is NaN; else 0.
    basis : (m, m) or None
        The eigenbasis of `(AᵀA)^{1/2}`, for a warm start of the next, similar problem.

    Examples
    --------
    >>> solution = solve(torch.eye(5, 3, dtype=torch.float64))
    >>> abs(solution.optimality_gap) < 1e-14, round(solution.condition_number, 6)
    (True, 1.0)
    """

    frame: Tensor
    variable: Tensor
    linear_term: Tensor
    fallbacks: Tensor | int
    basis: Tensor | None

    @property
    def classifier(self) -> Tensor:
        """`W = √(K/(K−1)) M Uᵀ`, (K, d) with unit rows, with the frame's gradient."""
        return classifier_from_frame(self.frame)

    @property
    def singular_values(self) -> Tensor:
        """The singular values of A, descending, (m,) in float64."""
        return torch.linalg.svdvals(self.linear_term.double())

    @property
    def value(self) -> float:
        """`⟨X, A⟩`, which the solution maximises; at most `‖A‖_*`."""
        return float((self.linear_term * self.variable).double().sum())

    @property
    def optimality_gap(self) -> float:
        """The certificate `‖A‖_* − ⟨X, A⟩`: zero, up to rounding, exactly at a global optimum."""
        return float(self.singular_values.sum()) - self.value

    @property
    def condition_number(self) -> float:
        """κ = σ₁/σ_m of A, infinite if A is rank-deficient; derivatives lose about log₁₀ κ digits."""
        sigma = self.singular_values
        return float(sigma[0] / sigma[-1])

    @property
    def gradient_norm(self) -> float:
        """`‖A − X sym(XᵀA)‖_F`, the norm of the Riemannian gradient."""
        X, A = self.variable.double(), self.linear_term.double()
        S = X.mT @ A
        return float(torch.linalg.vector_norm(A - X @ (0.5 * (S + S.mT))))

    @property
    def orthogonality(self) -> float:
        """`‖XᵀX − I‖_F`."""
        X = self.variable.double()
        return float(torch.linalg.vector_norm(X.mT @ X - torch.eye(X.shape[1], dtype=X.dtype, device=X.device)))


def nearest_etf(
    class_means: Tensor,
    proximal: Tensor | None = None,
    delta: float = 1e-3,
    *,
    method: str = "auto",
    formulation: Formulation = "paper",
    initial: Tensor | str | None = None,
) -> Tensor:
    """The frame U (d, K) whose ETF `U M/√(K−1)` is nearest to the class means H (d, K), or those of a batch.

    Parameters
    ----------
    class_means : (…, d, K)
        `H`: columns are class means minus the global mean, usually divided by `‖H‖_F`. The problems of a batch are
        solved all at once; those with coinciding or missing classes, whose minimiser is not unique, one by one.
    proximal : (…, d, K), optional
        `U₀`, usually the frame of the previous solution. None, or delta = 0, omits the proximal term: of the
        minimisers, the one nearest to `initial` is returned.
    delta : float
        `δ ≥ 0`, the weight of the proximal term.
    method : {"auto", "svd", "eigh", "matmul", "trust-region"}
        The algorithm for the polar factor, see `methods/`; all are exact.
    formulation : {"paper", "gauge-free"}
        (P), which needs d ≥ K, or (R), which needs d ≥ K−1.
    initial : (…, d, K) or {"canonical", "random", "feature-polar"}, optional
        The start of the trust region. If the minimiser is not unique, the one nearest to it is returned. Default: the
        proximal point, or without one the canonical (identity) frame. "random" is one fixed Haar frame, "feature-polar"
        the polar factor of the class means; both are those of the reference. Derivatives treat it as constant.

    Returns
    -------
    U : (…, d, K)
        Leading dimensions of the arguments are broadcast. In the class means' dtype, differentiable in class means and
        proximal point, in reverse and forward mode, to any order. Half precision is solved in float32, and autocast has
        no effect.

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
    >>> nearest_etf(torch.randn(1000, 5, 3), proximal=U.detach()).shape
    torch.Size([1000, 5, 3])
    """
    return _solved(class_means, proximal, delta, method, formulation, initial, None)[0]


def solve(
    class_means: Tensor,
    proximal: Tensor | None = None,
    delta: float = 1e-3,
    *,
    method: str = "auto",
    formulation: Formulation = "paper",
    initial: Tensor | str | None = None,
    basis: Tensor | None = None,
) -> Solution:
    """`nearest_etf` of one problem, with its certificate and diagnostics.

    Parameters
    ----------
    basis : (m, m), optional
        `basis` of an earlier solution of a similar problem, for a warm start.
    others
        As in `nearest_etf`, without a batch.

    Returns
    -------
    Solution

    Raises
    ------
    ValueError
        As `nearest_etf`, or if an argument is a batch.

    Examples
    --------
    >>> first = solve(torch.eye(5, 3))
    >>> later = solve(torch.eye(5, 3) + 0.01, proximal=first.frame, basis=first.basis)
    >>> later.frame.shape, later.classifier.shape
    (torch.Size([5, 3]), torch.Size([3, 5]))
    """
    for name, given in (("class_means", class_means), ("proximal", proximal), ("initial", initial)):
        if isinstance(given, Tensor) and given.ndim > 2:
            raise ValueError(
                f"{name} has shape {tuple(given.shape)}; solve expects one problem, (d, K). Call nearest_etf for the "
                "frames of a batch, or solve for each of its members."
            )
    frame, found = _solved(class_means, proximal, delta, method, formulation, initial, basis)
    X, A = (x.detach() if x.requires_grad else x for x in (found.variable, found.linear_term))
    return Solution(frame, X, A, found.fallbacks, found.basis)


def _solved(
    class_means: Tensor,
    proximal: Tensor | None,
    delta: float,
    method: str,
    formulation: Formulation,
    initial: Tensor | str | None,
    basis: Tensor | None,
) -> tuple[Tensor, Found]:
    """The frame (…, d, K) in the class means' dtype, and the decomposition behind it."""
    check_problem(class_means, proximal, initial, delta, method, formulation)
    check_basis(basis, class_means, class_means.shape[-1] - int(formulation == "gauge-free"))
    dtype = torch.promote_types(class_means.dtype, torch.float32)
    with without_autocast(class_means.device):
        H = class_means if class_means.dtype == dtype else class_means.to(dtype)
        U0 = proximal.to(dtype) if proximal is not None and delta > 0 else None
        given = initial if initial is not None else proximal if proximal is not None else "canonical"
        C = initial_frame_named(given, H) if isinstance(given, str) else given.detach().to(dtype)
        if single := H.ndim == 2 and C.ndim == 2 and (U0 is None or U0.ndim == 2):
            batch = torch.Size()
        else:
            batch = torch.broadcast_shapes(*(x.shape[:-2] for x in (H, C, U0) if x is not None))
            H, U0 = H.expand(*batch, -1, -1), None if U0 is None else U0.expand(*batch, -1, -1)

        if U0 is not None:
            start = C if formulation == "paper" else to_coordinates(C)[0]
            start = start if single else start.expand(*batch, -1, -1)
            found = nearest_frame(H, U0, start, method, basis, formulation, delta)
            frame = found.frame
        else:
            # The start alone determines what the class means do not: in the paper's form at least U·1.
            K = H.shape[-1]
            A = 2.0 / math.sqrt(K - 1) * to_coordinates(H)[0]
            coordinates, gauge = to_coordinates(C)
            start = coordinates if formulation == "gauge-free" else torch.cat([coordinates, gauge], -1)
            start = start if single else start.expand(*batch, -1, -1)
            found = polar(A, start, method, basis)
            whole = completed(found, A, start)
            frame = from_coordinates(whole[..., : K - 1], whole[..., K - 1 :] if formulation == "paper" else None)
        return frame if frame.dtype == class_means.dtype else frame.to(class_means.dtype), found


def initial_frame_named(initial: str, H: Tensor) -> Tensor:
    """The initial frame of that name for class means H (…, d, K): (d, K), or (…, d, K) for "feature-polar"."""
    if initial == "canonical":
        return canonical_frame(*H.shape[-2:], dtype=H.dtype, device=H.device)
    if H.ndim > 2 and initial == "random":
        return initial_frame_named(initial, H.new_zeros(H.shape[-2:]))
    if H.ndim > 2:  # as in the reference: the class means' polar factor, completed from the canonical frame
        fits = H.shape[-2] >= H.shape[-1]
        return nearest_etf(H.detach(), formulation="paper" if fits else "gauge-free", initial="canonical")
    kind: Any = initial
    return torch.from_numpy(initial_frame(kind, H.detach().cpu().double().numpy())).to(H)


def named_or_given_frame(initial: str | Tensor, num_features: int, num_classes: int) -> Tensor:
    """The frame (d, K) from which a head starts: a copy, in float32 at least.

    Raises
    ------
    ValueError
        If the name is not "canonical" or "random", or the matrix is not a frame (d, K).
    """
    dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
    if isinstance(initial, str):
        if initial not in ("canonical", "random"):
            raise ValueError(
                f"initial = {initial!r}; expected 'canonical', 'random' or a frame (d, K): other starts need class "
                "means, which a new head does not have."
            )
        if initial == "canonical":
            return canonical_frame(num_features, num_classes, dtype=dtype)
        means = np.zeros((num_features, num_classes))
        return torch.tensor(initial_frame("random", means), dtype=dtype)
    check_floats("initial", initial, "'canonical', 'random' or a frame (d, K)")
    check_frame("initial", initial, (num_features, num_classes))
    return initial.detach().to(torch.promote_types(initial.dtype, torch.float32), copy=True)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch < 2.12 cannot trace it
def has_autocast(kind: str) -> bool:
    """Whether torch has autocast for this type of device."""
    return torch.amp.autocast_mode.is_autocast_available(kind)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast on the device."""
    if has_autocast(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return _NOTHING


def check_problem(
    class_means: Tensor,
    proximal: Tensor | None,
    initial: Tensor | str | None,
    delta: float,
    method: str,
    formulation: str,
) -> None:
    """Refuse invalid problems by shapes and options; `decompose` checks that class means and proximal are finite."""
    if method not in METHODS:
        raise ValueError(f"method = {method!r}; expected one of {', '.join(map(repr, METHODS))}.")
    if formulation not in ("paper", "gauge-free"):
        raise ValueError(f"formulation = {formulation!r}; expected 'paper' or 'gauge-free'.")
    check_class_means_shape(class_means, formulation)
    if isinstance(initial, str) and initial not in INITIAL:
        raise ValueError(f"initial = {initial!r}; expected a frame (d, K) or one of {', '.join(map(repr, INITIAL))}.")
    for name, frame in (("proximal", proximal), ("initial", initial)):
        if frame is not None and not (isinstance(frame, str) and name == "initial"):
            check_floats(name, frame, "a frame (d, K)", beside=class_means)
            assert isinstance(frame, Tensor)
            check_broadcasts(name, frame, "class_means", class_means)
    if isinstance(initial, Tensor) and initial is not proximal:
        check_finite("initial", initial)
    real_number("delta", delta)


def check_basis(basis: Tensor | None, class_means: Tensor, m: int) -> None:
    """Refuse a warm start that is not orthonormal; `nearest_frame` ignores one of a neighbouring size."""
    if basis is None:
        return
    check_floats("basis", basis, f"the basis ({m}, {m}) of an earlier solution", beside=class_means)
    size = basis.shape[-1] if basis.ndim else 0
    if basis.shape != (size, size) or not m - 1 <= size <= m + 1:
        raise ValueError(f"basis has shape {tuple(basis.shape)}; expected ({m}, {m}), as a Solution's `basis`.")
    if sees_values(basis) and not abs(float(frobenius(basis)) ** 2 - size) <= 1e-3 * size:
        raise ValueError("basis is not orthonormal; expected the `basis` of an earlier Solution.")


def check_broadcasts(name: str, given: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse a matrix whose shape differs from the other one's, except in leading dimensions that broadcast."""
    found, expected = tuple(given.shape), tuple(other.shape)
    if found == expected:  # faster than torch's comparison of shapes
        return
    batches = zip(reversed(found[:-2]), reversed(expected[:-2]), strict=False)
    if found[-2:] != expected[-2:] or any(a != b and 1 not in (a, b) for a, b in batches):
        also = ", or leading dimensions that broadcast" if len(found) > 2 or len(expected) > 2 else ""
        raise ValueError(f"{name} has shape {found}; expected {expected}, as {other_name}{also}.")
