"""The nearest frame as a differentiable function: autograd, `torch.func`, and one opaque operator for compilers.

One function maps class means and proximal point to the frame, so that centring, scale and δ U₀ need no autograd nodes
of their own. With `X` the polar factor of A and `Ā` from the adjoint of the method that found it, for one problem or a
batch of them (all matrices with the same leading dimensions):

    problem        A                              frame      H̄                      Ū₀
    "polar"        H                              X          Ā
    "paper"        (2/√(K−1)) H M + δ U₀          X          (2/√(K−1)) Ā M         δ Ā
    "gauge-free"   (2/√(K−1)) H Q + δ U₀ Q        X Qᵀ       (2/√(K−1)) Ā Qᵀ        δ Ā Qᵀ
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..simplex import centred, from_coordinates, to_coordinates
from .decompose import as_kind, choose, decompose, expected_kind
from .factor import Decomposition, tensors
from .linalg import pseudo_inverse, without_rounding
from .matmul import Products
from .warm import Warm


class Found(NamedTuple):
    """The results of a solve; only `frame` has a gradient. For a batch, all have leading dimensions."""

    frame: Tensor  # (d, K) of the problem; for "polar" X itself
    linear_term: Tensor  # A (d, m)
    variable: Tensor  # X (d, m)
    gauge: Tensor | None  # (d, 1): the completion of X by a further column of the start, if there is one
    fallbacks: Tensor | int  # 1 if another method replaced the chosen one; a tensor on an accelerator
    known: Decomposition

    @property
    def basis(self) -> Tensor | None:
        """An eigenbasis V (m, m) of P for a later warm start, if the method computes one."""
        return getattr(self.known, "basis", None)


def polar(A: Tensor, start: Tensor, method: str = "auto", basis: Tensor | None = None) -> Found:
    """The polar decomposition of A (…, d, m), see `decompose`; its `frame` is differentiable to any order.

    Reverse and forward mode and `torch.func.vmap` are supported; a vmap is solved as a batch. Under torch.compile the
    decomposition is one opaque operator, without forward mode.
    """
    return nearest_frame(A, None, start, method, basis, "polar", 0.0)


def nearest_frame(
    H: Tensor,
    U0: Tensor | None,
    start: Tensor,
    method: str,
    basis: Tensor | None,
    problem: str,
    delta: float,
) -> Found:
    """The decomposition of A, with the frame (…, d, K) of the problem in place of its polar factor, differentiable.

    `start` has A's shape, or for "polar" one column more. A `basis` of a problem of another size or precision, such as
    that of a first step without proximal point, is ignored.
    """
    m = H.shape[-1] - int(problem == "gauge-free")
    if basis is not None and (basis.shape[-1] != m or basis.dtype != H.dtype or basis.device != H.device):
        basis = None
    if torch.compiler.is_compiling():
        method = choose(H, start) if method == "auto" else method
        frame, A, X, gauge, fallbacks, *known = _CompiledFrame.apply(H, U0, start, basis, method, problem, delta)
        kind = expected_kind(H, basis, method)
    elif type(H) is Tensor and H.device.type != "meta" and not torch._C._are_functorch_transforms_active():
        frame, (A, X, gauge, fallbacks, known) = _PlainFrame.apply(H, U0, start, basis, method, problem, delta)
        return Found(frame, A, X, gauge, fallbacks, known)
    else:
        results = _EagerFrame.apply(H, U0, start, basis, method, problem, delta)
        frame, A, X, gauge, fallbacks, kind, *known = results
    return Found(frame, A, frame if X is None else X, gauge, fallbacks, kind(*known))


def linear_term(H: Tensor, U0: Tensor | None, problem: str, delta: float) -> Tensor:
    """A (…, d, m) of the problem."""
    if problem == "polar":
        return H
    scale = 2.0 / math.sqrt(H.shape[-1] - 1)
    assert U0 is not None
    if problem == "paper":
        return (centred(H) * scale).add(U0, alpha=delta)
    return to_coordinates((H * scale).add(U0, alpha=delta))[0]


def _pulled_back(A_bar: Tensor, problem: str, delta: float, proximal: bool) -> tuple[Tensor, Tensor | None]:
    """H̄ and, if `proximal` is true, Ū₀, from Ā."""
    if problem == "polar":
        return A_bar, None
    whole = A_bar if problem == "paper" else from_coordinates(A_bar)
    scale = 2.0 / math.sqrt(whole.shape[-1] - 1)
    return scale * (centred(whole) if problem == "paper" else whole), delta * whole if proximal else None


class _Frame(torch.autograd.Function):
    """The reverse mode that the functions below share, from the tensors of `_save`."""

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        G = cotangents[0]
        if G is None:
            return (None,) * 7
        A_bar = _adjoint(ctx, to_coordinates(G)[0] if ctx.problem == "gauge-free" else G)
        H_bar, U0_bar = _pulled_back(A_bar, ctx.problem, ctx.delta, ctx.needs_input_grad[1])
        return H_bar, U0_bar, None, None, None, None, None


class _FrameWithTangents(_Frame):
    """`_Frame` with forward mode, which compilers do not trace."""

    @staticmethod
    def jvp(ctx: Any, H_dot: Tensor | None, U0_dot: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        like = H_dot if H_dot is not None else U0_dot
        assert like is not None
        H_dot, U0_dot = (torch.zeros_like(like) if dot is None else dot for dot in (H_dot, U0_dot))
        X_dot = _adjoint(ctx, linear_term(H_dot, U0_dot, ctx.problem, ctx.delta))
        frame_dot = from_coordinates(X_dot) if ctx.problem == "gauge-free" else X_dot
        return (frame_dot, *(None for _ in range(ctx.others)))


class _PlainFrame(_FrameWithTangents):
    """Outside of compilers and `torch.func`: the frame, and the other results as one object."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, tuple[Any, ...]]:
        H, U0, start, basis, method, problem, delta = inputs
        A = linear_term(H, U0, problem, delta)
        X, known, gauge, fallbacks = decompose(A, start, basis, method)
        frame = from_coordinates(X) if problem == "gauge-free" else X
        others = (A, X if frame is not X else X.detach(), gauge, fallbacks, known)
        _save(ctx, inputs, (frame, A, X if frame is not X else None), type(known), tensors(known), others=1)
        return frame, others


class _CompiledFrame(_Frame):
    """Tensors in, tensors out: the frame, and without gradient A, X (None: the frame), gauge, fallbacks, known."""

    @staticmethod
    def forward(
        H: Tensor, U0: Tensor | None, start: Tensor, basis: Tensor | None, method: str, problem: str, delta: float
    ) -> tuple[Any, ...]:
        A = linear_term(H.detach(), None if U0 is None else U0.detach(), problem, delta)
        X, gauge, fallbacks, *known = torch.ops.nearest_etf.polar(A, start.detach(), basis, method)
        if problem == "gauge-free":
            return from_coordinates(X), A, X, gauge, fallbacks, *known
        return X, A.clone() if problem == "polar" else A, None, gauge, fallbacks, *known

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        H, _, _, basis, method, *_ = inputs
        frame, A, X, _, _, *known = output
        ctx.mark_non_differentiable(*(x for x in output[1:] if x is not None))
        _save(ctx, inputs, (frame, A, X), expected_kind(H, basis, method), known, others=len(output) - 1)


class _EagerFrame(_FrameWithTangents):
    """Under `torch.func`, on the meta device and for subclasses: the kind, which may depend on values, is a result."""

    @staticmethod
    def forward(
        H: Tensor, U0: Tensor | None, start: Tensor, basis: Tensor | None, method: str, problem: str, delta: float
    ) -> tuple[Any, ...]:
        A = linear_term(H.detach(), None if U0 is None else U0.detach(), problem, delta)
        kind: Any
        method = choose(A, start) if method == "auto" else method
        if type(H) is Tensor and H.device.type != "meta":
            X, known, gauge, fallbacks = decompose(A, start.detach(), basis, method)
            kind, parts = type(known), list(tensors(known))
        else:
            X, gauge, fallbacks, *parts = torch.ops.nearest_etf.polar(A, start.detach(), basis, method)
            kind = expected_kind(A, basis, method)
        if problem == "gauge-free":
            return from_coordinates(X), A, X, gauge, fallbacks, kind, *parts
        return X, A, None, gauge, fallbacks, kind, *parts

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        frame, A, X, _, _, kind, *known = output
        ctx.mark_non_differentiable(*(x for x in output[1:] if isinstance(x, Tensor)))
        _save(ctx, inputs, (frame, A, X), kind, known, others=len(output) - 1)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        H: Tensor,
        U0: Tensor | None,
        start: Tensor,
        basis: Tensor | None,
        *how: Any,
    ) -> tuple[tuple[Any, ...], tuple[int | None, ...]]:
        H, U0, start = _batched(info, in_dims, H, U0, start)
        results = _EagerFrame.apply(H, U0, start, None, *how)
        return results, tuple(0 if isinstance(x, Tensor) else None for x in results)


# `apply` reads this signature at every call; computing it takes as long as a small eigendecomposition.
for _function in (_CompiledFrame, _EagerFrame):
    _function.forward.__signature__ = inspect.signature(_function.forward)  # type: ignore[attr-defined]


def _save(
    ctx: Any,
    inputs: tuple[Any, ...],
    results: tuple[Tensor, Tensor, Tensor | None],
    kind: type[Decomposition],
    known: Sequence[Tensor],
    others: int,
) -> None:
    """Save tensors for the derivatives; `results` are frame, A and X (None: the frame), `others` the other outputs."""
    H, U0, _, _, _, ctx.problem, ctx.delta = inputs
    ctx.kind, ctx.others = kind, others
    ctx.set_materialize_grads(False)
    # A proximal point without gradient may be a buffer, which the next step overwrites; the derivatives need only A.
    saved = (H, U0 if U0 is not None and U0.requires_grad else None, *results, *known)
    ctx.save_for_backward(*saved)
    ctx.save_for_forward(*saved)


def _adjoint(ctx: Any, G: Tensor) -> Tensor:
    """The method's adjoint for the cotangent G (d, m) of X; differentiable in grad mode.

    The value is always that of the method, so higher derivatives do not change the first one: the added term is zero,
    but has the derivative of the formula.
    """
    H, U0, frame, A, X, *known = ctx.saved_tensors
    found: Tensor = ctx.kind(*known).adjoint(A, frame if X is None else X, G)
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return found
    moving = linear_term(H, torch.zeros_like(H) if U0 is None else U0, ctx.problem, ctx.delta)
    A = A.detach() + (moving - moving.detach())
    X = to_coordinates(frame)[0] if ctx.problem == "gauge-free" else frame  # with the frame's own derivative
    P = X.mT @ A
    P = 0.5 * (P + P.mT)
    T = X.mT @ G
    formula = X @ _Lyapunov.apply(P, T - T.mT) + _RightSolve.apply(P, G - X @ T)
    return found.detach() + (formula - formula.detach())


def _spectrum(P: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, those at rounding level set to zero, and eigenvectors of P (…, m, m)."""
    sigma, V = torch.linalg.eigh(P)
    return without_rounding(sigma, P), V


class _Lyapunov(torch.autograd.Function):
    """Φ with `P Φ + Φ P = S`, by the eigenbasis of P; its derivatives solve the same equation again."""

    @staticmethod
    def forward(P: Tensor, S: Tensor) -> Tensor:
        sigma, V = _spectrum(P)
        return V @ ((V.mT @ S @ V) * pseudo_inverse(sigma[..., :, None] + sigma[..., None, :])) @ V.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, Tensor]:
        P, Phi = ctx.saved_tensors
        S_bar = _Lyapunov.apply(P, cotangents[0])
        return -(S_bar @ Phi.mT + Phi.mT @ S_bar), S_bar

    @staticmethod
    def jvp(ctx: Any, P_dot: Tensor | None, S_dot: Tensor | None) -> Tensor:
        P, Phi = ctx.saved_tensors
        right_side = torch.zeros_like(P) if S_dot is None else S_dot
        if P_dot is not None:
            right_side = right_side - P_dot @ Phi - Phi @ P_dot
        return _Lyapunov.apply(P, right_side)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], P: Tensor, S: Tensor) -> tuple[Tensor, int]:
        return _Lyapunov.apply(*_batched(info, in_dims, P, S)), 0


class _RightSolve(torch.autograd.Function):
    """`N P⁻¹` for N (d, m), with zero in place of the inverse of a vanishing eigenvalue."""

    @staticmethod
    def forward(P: Tensor, N: Tensor) -> Tensor:
        sigma, V = _spectrum(P)
        return ((N @ V) * pseudo_inverse(sigma)[..., None, :]) @ V.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, Tensor]:
        P, X = ctx.saved_tensors
        N_bar = _RightSolve.apply(P, cotangents[0])
        return -X.mT @ N_bar, N_bar

    @staticmethod
    def jvp(ctx: Any, P_dot: Tensor | None, N_dot: Tensor | None) -> Tensor:
        P, X = ctx.saved_tensors
        right_side = torch.zeros_like(X) if N_dot is None else N_dot
        if P_dot is not None:
            right_side = right_side - X @ P_dot
        return _RightSolve.apply(P, right_side)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], P: Tensor, N: Tensor) -> tuple[Tensor, int]:
        return _RightSolve.apply(*_batched(info, in_dims, P, N)), 0


def _batched(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> list[Any]:
    """The given inputs of a vmap, with the batch dimension in front."""
    pairs = zip(inputs, in_dims, strict=False)
    return [
        x if x is None else x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in pairs
    ]


@torch.library.custom_op(
    "nearest_etf::polar", mutates_args=(), schema="(Tensor A, Tensor start, Tensor? basis, str method) -> Tensor[]"
)
def _polar_operator(A: Tensor, start: Tensor, basis: Tensor | None, method: str) -> list[Tensor]:
    X, known, gauge, fallbacks = decompose(A, start, basis, method)
    known = as_kind(known, expected_kind(A, basis, method), A.device)
    gauge = A.new_empty(*A.shape[:-1], 0) if gauge is None else gauge
    return [x.contiguous() for x in (X, gauge, torch.as_tensor(fallbacks, device=A.device), *tensors(known))]


@_polar_operator.register_fake
def _shapes(A: Tensor, start: Tensor, basis: Tensor | None, method: str) -> list[Tensor]:
    *batch, d, m = A.shape
    frame, gauge = A.new_empty(*batch, d, m), A.new_empty(*batch, d, start.shape[-1] - m)
    fallbacks = A.new_empty(batch, dtype=torch.int64)
    kind = expected_kind(A, basis, method)
    if kind is Products:
        return [frame, gauge, fallbacks, A.new_empty(batch, dtype=torch.bool)]
    square = (*batch, m, m)
    coupled = [A.new_empty(square), A.new_empty(square)] if kind is Warm else []
    return [frame, gauge, fallbacks, A.new_empty(*batch, d, m), A.new_empty(*batch, m), A.new_empty(square), *coupled]
