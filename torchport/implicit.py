"""The polar factor as a differentiable function: the implicit gradient in closed form.

Differentiating `A = U P` under `UᵀU = I` gives, for a cotangent G of U,

    P Φ + Φ P = UᵀG − GᵀU,    Ā = U Φ + (I − UUᵀ) G P⁻¹,

a symmetric map of G, so that tangents of A are pushed forward by the same formula. Source: Gould, Hartley &
Campbell, *Deep Declarative Networks* (2021), proposition 4.5, of which this is the solution by hand; Roberts 1980
for the sign function that solves the Lyapunov equation by products alone.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from .polar import COEFFICIENTS, STALENESS, Polar, choose, decompose, pseudo_inverse

Parts = tuple[Tensor, ...]  # of Polar


def polar(A: Tensor, start: Tensor, method: str = "auto", basis: Tensor | None = None) -> Polar:
    """The polar decomposition of A (d, m), see `decompose`; its `frame` is differentiable to any order.

    Reverse and forward mode, and `torch.func.vmap`, which solves one problem after the other. Under torch.compile
    the decomposition is one opaque operator and forward mode is not offered.
    """
    function = _Polar if torch.compiler.is_compiling() else _PolarWithTangents
    return Polar(*function.apply(A, start, basis, method))


def inverse_hessian(known: Polar, A: Tensor, G: Tensor) -> Tensor:
    """`U Φ + (I − UUᵀ) G P⁻¹` with `P Φ + Φ P = UᵀG − GᵀU`; a curvature of zero counts as infinite."""
    if known.basis.numel() == 0:
        found = _inverse_hessian_by_matmul(known.frame, A, G)
        return torch.where(known.fallbacks > 0, 0.0, found)  # no solution, no gradient
    L, D, V, Y = known.left, known.sigma, known.basis, known.coupling
    weights = pseudo_inverse(D[:, None] + D)
    GV = G @ V
    T = L.mT @ GV
    S = T - T.mT
    Phi = S * weights
    if Y.numel() == 0:
        inverse = pseudo_inverse(D)
        return GV.mul_(inverse).addmm_(L, Phi.sub_(T * inverse)) @ V.mT
    for _ in range(STALENESS[G.dtype][1]):  # (D+Y)Φ + Φ(D+Y) = S
        YPhi = Y @ Phi
        Phi = (S - YPhi + YPhi.mT) * weights
    return (GV @ known.inverse).addmm_(L, Phi - T @ known.inverse) @ V.mT


def _inverse_hessian_by_matmul(U: Tensor, A: Tensor, G: Tensor) -> Tensor:
    P = U.mT @ A
    P = 0.5 * (P + P.mT)
    T = U.mT @ G
    normal = torch.cholesky_solve((G - U @ T).mT, torch.linalg.cholesky_ex(P)[0]).mT
    return U @ lyapunov_by_sign(P, T - T.mT) + normal


def lyapunov_by_sign(P: Tensor, S: Tensor) -> Tensor:
    """Φ with `P Φ + Φ P = S` for P > 0 and S skew, by products alone.

    `sign [[P, S], [0, −P]] = [[I, 2Φ], [0, −I]]`, and the polynomials of `by_matmul` find the sign. Only the upper
    blocks `[B C]` are kept: B stays symmetric and C skew.
    """
    scale = torch.linalg.vector_norm(P)
    B, C = P / scale, S / scale
    for a, b, c in COEFFICIENTS[P.dtype]:
        B2, BC = B @ B, B @ C
        C2 = BC + BC.mT
        B2C2 = B2 @ C2
        Q = b * B2 + c * (B2 @ B2)
        R = b * C2 + c * (B2C2 + B2C2.mT)
        B, C = a * B + B @ Q, a * C + C @ Q + B @ R
    return 0.25 * (C - C.mT)


class _Polar(torch.autograd.Function):
    @staticmethod
    def forward(A: Tensor, start: Tensor, basis: Tensor | None, method: str) -> Parts:
        A, start = A.detach(), start.detach()
        if type(A) is Tensor and A.device.type != "meta" and not torch.compiler.is_compiling():
            return tuple(decompose(A, start, basis, method))
        return torch.ops.nearest_etf.polar(A, start, basis, method)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Parts) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], *output)
        ctx.save_for_forward(inputs[0], *output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if cotangents[0] is None:
            return None, None, None, None
        A, *parts = ctx.saved_tensors
        return _linear_map(A, Polar(*parts), cotangents[0]), None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], A: Tensor, start: Tensor, basis: Tensor | None, method: str
    ) -> tuple[Parts, tuple[int, ...]]:
        def problem(index: int) -> list[Any]:
            inputs = zip((A, start, basis), in_dims, strict=False)
            return [value if value is None or dim is None else value.select(dim, index) for value, dim in inputs]

        solved = [_PolarWithTangents.apply(*problem(i), method) for i in range(info.batch_size)]
        solved = [of_known_shape(Polar(*parts), A.dtype, basis, method) for parts in solved]
        return tuple(torch.stack(part) for part in zip(*solved, strict=True)), (0,) * len(Polar._fields)


class _PolarWithTangents(_Polar):
    @staticmethod
    def jvp(ctx: Any, A_dot: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        A, *parts = ctx.saved_tensors
        known = Polar(*parts)
        frame_dot = torch.zeros_like(A) if A_dot is None else _linear_map(A, known, A_dot)
        return (frame_dot, *(None for _ in parts[1:]))


# `apply` asks for this signature at every call, and making it anew takes as long as a small eigendecomposition.
_Polar.forward.__signature__ = inspect.signature(_Polar.forward)  # type: ignore[attr-defined]


def _linear_map(A: Tensor, known: Polar, G: Tensor) -> Tensor:
    """`inverse_hessian`, in operations that can be differentiated once more where that may be asked for."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return inverse_hessian(known, A, G)
    U = known.frame
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
    "nearest_etf::polar",
    mutates_args=(),
    schema="(Tensor A, Tensor start, Tensor? basis, str method) -> (" + ", ".join(["Tensor"] * 8) + ")",
)
def _polar_operator(A: Tensor, start: Tensor, basis: Tensor | None, method: str) -> Parts:
    """`decompose` as one operator: its choices depend on values, which a compiler must not look into."""
    method = choose(A, start) if method == "auto" else method
    return tuple(of_known_shape(decompose(A, start, basis, method), A.dtype, basis, method))


def of_known_shape(found: Polar, dtype: torch.dtype, basis: Tensor | None, method: str) -> Polar:
    """With Y = 0 and its inverse filled in where another problem of this kind could have them."""
    if not may_be_coupled(dtype, basis, method) or found.coupling.numel() > 0:
        return found
    inverse = pseudo_inverse(found.sigma).diag_embed()
    return found._replace(coupling=torch.zeros_like(inverse), inverse=inverse)


def may_be_coupled(dtype: torch.dtype, basis: Tensor | None, method: str) -> bool:
    """Whether `decompose` may use a stale basis: shapes have to be known before values are."""
    return method == "eigh" and (basis is not None or dtype == torch.float64)


@_polar_operator.register_fake
def _shapes(A: Tensor, start: Tensor, basis: Tensor | None, method: str) -> Parts:
    d, m = A.shape
    if method == "auto":
        method = choose(A, start)
    spectral = 0 if method == "matmul" else m
    coupled = m if may_be_coupled(A.dtype, basis, method) else 0
    return (
        A.new_empty(d, m),
        A.new_empty(d, start.shape[1] - m),
        A.new_empty(d, spectral),
        A.new_empty(spectral),
        A.new_empty(spectral, spectral),
        A.new_empty(coupled, coupled),
        A.new_empty(coupled, coupled),
        A.new_empty((), dtype=torch.int64),
    )
