"""The polar factor as a differentiable function: autograd, `torch.func`, and one opaque operator for compilers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from .decompose import as_kind, choose, decompose, expected_kind
from .factor import Decomposition, Polar
from .matmul import Products
from .warm import Warm


def polar(A: Tensor, start: Tensor, method: str = "auto", basis: Tensor | None = None) -> Polar:
    """The polar decomposition of A (d, m), see `decompose`; its `frame` is differentiable to any order.

    Reverse and forward mode, and `torch.func.vmap`, which solves one problem after the other. Under torch.compile
    the decomposition is one opaque operator and forward mode is not offered.
    """
    if method == "auto":
        method = choose(A, start)
    if torch.compiler.is_compiling():
        frame, gauge, fallbacks, *known = _CompiledPolar.apply(A, start, basis, method)
        kind = expected_kind(A.dtype, basis, method)
    else:
        frame, gauge, fallbacks, kind, *known = _EagerPolar.apply(A, start, basis, method)
    return Polar(frame, gauge, fallbacks, kind(*known))


class _CompiledPolar(torch.autograd.Function):
    """Tensors in, tensors out: frame, gauge, fallbacks and the decomposition's own."""

    @staticmethod
    def forward(A: Tensor, start: Tensor, basis: Tensor | None, method: str) -> tuple[Any, ...]:
        return tuple(torch.ops.nearest_etf.polar(A.detach(), start.detach(), basis, method))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        A, _, basis, method = inputs
        ctx.kind = expected_kind(A.dtype, basis, method)
        _save(ctx, A, output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if cotangents[0] is None:
            return None, None, None, None
        A, U, *known = ctx.saved_tensors
        return _adjoint(ctx.kind(*known), A, U, cotangents[0]), None, None, None


class _EagerPolar(_CompiledPolar):
    """The same, and the kind of decomposition among the results: it may depend on values."""

    @staticmethod
    def forward(A: Tensor, start: Tensor, basis: Tensor | None, method: str) -> tuple[Any, ...]:
        A, start = A.detach(), start.detach()
        if type(A) is Tensor and A.device.type != "meta":
            frame, gauge, fallbacks, known = decompose(A, start, basis, method)
            return frame, gauge, fallbacks, type(known), *known  # type: ignore[misc]
        frame, gauge, fallbacks, *tensors = torch.ops.nearest_etf.polar(A, start, basis, method)
        return frame, gauge, fallbacks, expected_kind(A.dtype, basis, method), *tensors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.kind = output[3]
        _save(ctx, inputs[0], (*output[:3], *output[4:]))

    @staticmethod
    def jvp(ctx: Any, A_dot: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        A, U, *known = ctx.saved_tensors
        U_dot = torch.zeros_like(A) if A_dot is None else _adjoint(ctx.kind(*known), A, U, A_dot)
        return (U_dot, *(None for _ in range(3 + len(known))))

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], A: Tensor, start: Tensor, basis: Tensor | None, method: str
    ) -> tuple[tuple[Any, ...], tuple[int | None, ...]]:
        def problem(index: int) -> list[Any]:
            inputs = zip((A, start, basis), in_dims, strict=False)
            return [value if value is None or dim is None else value.select(dim, index) for value, dim in inputs]

        kind = expected_kind(A.dtype, basis, method)
        solved = []
        for index in range(info.batch_size):
            frame, gauge, fallbacks, own_kind, *known = _EagerPolar.apply(*problem(index), method)
            solved.append((frame, gauge, fallbacks, *_tensors(as_kind(own_kind(*known), kind, fallbacks))))
        frame, gauge, fallbacks, *known = (torch.stack(values) for values in zip(*solved, strict=True))
        return (frame, gauge, fallbacks, kind, *known), (0, 0, 0, None, *(0 for _ in known))


# `apply` asks for this signature at every call, and making it anew takes as long as a small eigendecomposition.
for _function in (_CompiledPolar, _EagerPolar):
    _function.forward.__signature__ = inspect.signature(_function.forward)  # type: ignore[attr-defined]


def _save(ctx: Any, A: Tensor, output: tuple[Tensor, ...]) -> None:
    frame, gauge, fallbacks, *known = output
    ctx.mark_non_differentiable(gauge, fallbacks, *known)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(A, frame, *known)
    ctx.save_for_forward(A, frame, *known)


def _tensors(known: Decomposition) -> tuple[Tensor, ...]:
    return tuple(known)  # type: ignore[arg-type]


def _adjoint(known: Decomposition, A: Tensor, U: Tensor, G: Tensor) -> Tensor:
    """The method's adjoint, or operations that can be differentiated once more where that may be asked for."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return known.adjoint(A, U, G)
    P = U.mT @ A
    P = 0.5 * (P + P.mT)
    T = U.mT @ G
    Phi = _Lyapunov.apply(P, T - T.mT)
    return U @ Phi + torch.linalg.solve(P, (G - U @ T).mT).mT


class _Lyapunov(torch.autograd.Function):
    """Φ with `P Φ + Φ P = S`, by the eigenbasis of P; its own derivatives ask for the same equation again."""

    @staticmethod
    def forward(P: Tensor, S: Tensor) -> Tensor:
        sigma, V = torch.linalg.eigh(P)
        return V @ ((V.mT @ S @ V) / (sigma[..., :, None] + sigma[..., None, :])) @ V.mT

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
        P, S = (
            x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip((P, S), in_dims, strict=True)
        )
        return _Lyapunov.apply(P, S), 0


@torch.library.custom_op(
    "nearest_etf::polar", mutates_args=(), schema="(Tensor A, Tensor start, Tensor? basis, str method) -> Tensor[]"
)
def _polar_operator(A: Tensor, start: Tensor, basis: Tensor | None, method: str) -> list[Tensor]:
    frame, gauge, fallbacks, known = decompose(A, start, basis, method)
    known = as_kind(known, expected_kind(A.dtype, basis, method), fallbacks)
    return [frame, gauge, fallbacks, *_tensors(known)]


@_polar_operator.register_fake
def _shapes(A: Tensor, start: Tensor, basis: Tensor | None, method: str) -> list[Tensor]:
    d, m = A.shape
    frame, gauge, fallbacks = A.new_empty(d, m), A.new_empty(d, start.shape[1] - m), A.new_empty((), dtype=torch.int64)
    kind = expected_kind(A.dtype, basis, method)
    if kind is Products:
        return [frame, gauge, fallbacks, A.new_empty((), dtype=torch.bool)]
    coupled = [A.new_empty(m, m), A.new_empty(m, m)] if kind is Warm else []
    return [frame, gauge, fallbacks, A.new_empty(d, m), A.new_empty(m), A.new_empty(m, m), *coupled]
