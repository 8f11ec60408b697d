"""The polar factor of a matrix by several methods: the layer's forward pass.

`A = U P` with `UᵀU = I`, `P = (AᵀA)^{1/2} = V diag(σ) Vᵀ` and `L = U V`, so that `A = L diag(σ) Vᵀ`.
Sources: Higham, *Functions of Matrices* (2008), chapter 8; Amsel, Persson, Musco & Gower 2025, arXiv 2505.16932
(*The Polar Express*: minimax polynomials, chosen anew for each step). Every method ends with a look at its own
result, and one that has lost its digits is replaced by singular values, which never do; on an accelerator, where the
host must not wait for that look, the result is NaN instead.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..reference.procrustes import polar_by_trust_region

METHODS = ("auto", "svd", "eigh", "matmul", "trust-region")

# Read off benchmarks/layer.py on a CPU: with fewer columns a stale eigenbasis saves less than 0.1 ms a step. Against
# LAPACK's SVD a new eigendecomposition is quicker at every size from (4, 3) on.
SMALLEST_FOR_WARM_START = 64

# How far a stale basis may be from diagonalising P, ‖Y/D‖_F/√m, and the passes of the iterations that make up for it,
# each of which gains about this factor. Beyond it a new decomposition costs no more than further passes.
STALENESS = {torch.float32: (1e-3, 1), torch.float64: (1e-5, 2)}

_warned: set[str] = set()


class Polar(NamedTuple):
    """A decomposition of A (d, m). Parts that a method does not know are empty (a size is 0)."""

    frame: Tensor  # U (d, m)
    gauge: Tensor  # (d, g): what completes U beyond A's own columns, g = 0 or 1
    left: Tensor  # L = U V (d, m)
    sigma: Tensor  # D (m,), near the singular values
    basis: Tensor  # V (m, m), orthonormal
    coupling: Tensor  # Y (m, m): VᵀPV = diag(D) + Y, where V is stale; else empty and zero
    inverse: Tensor  # (diag(D) + Y)⁻¹ (m, m), where Y is there
    fallbacks: Tensor  # () int64: 1 if another method had to step in


def decompose(A: Tensor, start: Tensor, basis: Tensor | None, method: str) -> Polar:
    """The polar decomposition of A (d, m), d ≥ m, by `method`.

    Where A is rank-deficient the factor nearest to `start` (d, m) is taken; a further column of `start` is a
    direction that A leaves open, and is completed together with the rest. `basis` is a V of an earlier, similar A.
    """
    if method == "auto":
        method = choose(A, start)
    found = by_basis(A, basis) if method == "eigh" and basis is not None else None
    if found is None:
        if A.device.type == "cpu" and not (A.sum().isfinite() or A.isfinite().all()):  # the sum alone is quicker
            raise ValueError("class_means or proximal hold NaN or infinite entries.")
        if method == "matmul":
            found = by_matmul(A, start)
        elif method == "eigh":
            found = by_eigh(A) or _fallback(A, start)
        elif method == "trust-region":
            found = by_trust_region(A, start) or _fallback(A, start)
        else:
            found = by_svd(A, start)
    if start.shape[1] > found.frame.shape[1] + found.gauge.shape[1]:
        found = found._replace(gauge=_complete_by_one(found.frame, start))
    if (A.device.type == "cpu" or method != "matmul") and bool(found.fallbacks):  # the host does not wait for products
        _warn_once(method, A)
    return found


def _fallback(A: Tensor, start: Tensor) -> Polar:
    return by_svd(A, start)._replace(fallbacks=torch.ones((), dtype=torch.int64, device=A.device))


def choose(A: Tensor, start: Tensor) -> str:
    """The method of "auto": products only on an accelerator, where decompositions are slow and stop the host."""
    if start.shape[1] > A.shape[1]:
        return "svd"  # the first step, where rank deficiency is the rule
    return "eigh" if A.device.type in ("cpu", "meta") else "matmul"


def by_svd(A: Tensor, start: Tensor) -> Polar:
    """LAPACK's singular values in float64: the yardstick, and the only method for a rank-deficient A."""
    m = A.shape[1]
    left, sigma, Vt = torch.linalg.svd(A.double(), full_matrices=False)
    sigma = without_rounding(sigma, A)
    rank = int(sigma.count_nonzero())
    gauge = left[:, :0]
    if rank == m:
        U = left @ Vt
    else:
        U = complete_frame(left[:, :rank], Vt[:rank].mT, start.double())
        U, gauge = U[:, :m], U[:, m:]
        left = U @ Vt.mT
    return _polar(A, U, left, sigma, Vt.mT, gauge=gauge)


def by_trust_region(A: Tensor, start: Tensor) -> Polar | None:
    """The paper's own way: the reference's Riemannian trust region from `start`, in float64 on the host.

    It is here for comparisons with the fast methods, also over whole training runs. None if it does not converge.
    """
    m = A.shape[1]
    B, C = (x.detach().cpu().double().numpy() for x in (A, start[:, :m]))
    start_left, _, start_right_t = np.linalg.svd(C, full_matrices=False)
    start_point = start_left @ start_right_t  # on the manifold
    *factors, _, status = polar_by_trust_region(B / max(float(np.linalg.norm(B)), 1e-300), start_point)
    if not status.ok:
        return None
    U, left, right = (torch.from_numpy(x).to(A.device) for x in factors)
    if right.shape[1] < m:
        U = complete_frame(left, right, start.double())
    U, gauge = U[:, :m], U[:, m:]
    P = U.mT @ A.double()
    sigma, V = torch.linalg.eigh(0.5 * (P + P.mT))
    return _polar(A, U, U @ V, without_rounding(sigma, A), V, gauge=gauge)


def by_eigh(A: Tensor) -> Polar | None:
    """From the eigendecomposition of AᵀA, formed and decomposed in float64; None where that is not exact enough.

    The Gram matrix squares the condition number: float64 leaves float32 problems enough digits up to 3e5, and for
    float64 ones the eigenbasis is taken as a stale one, which restores them.
    """
    squares, V = torch.linalg.eigh(gram(A.double()))
    if not bool(squares[0] > 1e-11 * squares[-1]):
        return None
    if A.dtype == torch.float64:
        return by_basis(A, V)
    sigma, V = squares.sqrt().to(A.dtype), V.to(A.dtype, memory_format=torch.contiguous_format)
    left = (A @ V).div_(sigma)
    return _polar(A, left @ V.mT, left, sigma, V)


def by_basis(A: Tensor, V: Tensor) -> Polar | None:
    """From a stale eigenbasis V, where the columns of B = AV are nearly orthogonal; None where they are not enough so.

    The wanted `VᵀPV = D + Y` is the square root of `BᵀB`, D² its diagonal and C the rest: `DY + YD = C − Y²` is
    solved by fixed-point iteration, and its inverse is the first terms of `(I − E + E² − …) D⁻¹` with `E = D⁻¹Y`.
    As in one-sided Jacobi methods columns of any length keep their own relative accuracy; all is products.
    """
    bound, passes, tolerance = *STALENESS[A.dtype], 10 * torch.finfo(A.dtype).eps
    B = A @ V
    C = gram(B)
    D = C.diagonal().sqrt()
    C.fill_diagonal_(0.0)
    weights = (D[:, None] + D).reciprocal_()
    Y, root = C * weights, len(D) ** 0.5
    previous, change = 1.0, float(torch.linalg.vector_norm(Y / D)) / root
    if not change <= min(bound, 0.5 / root):  # or NaN, from a zero column; ‖E‖ ≤ ½ makes D + Y positive definite
        return None
    while change * min(change / previous, 1.0) > tolerance:  # what the next step would still change
        Y_next = torch.addmm(C, Y, Y, alpha=-1).mul_(weights)
        previous, change = change, float(torch.linalg.vector_norm((Y_next - Y).div_(D))) / root
        Y = Y_next
        if not change <= 0.25 * previous:
            return None
    E, eye = Y / D[:, None], torch.eye(len(D), dtype=A.dtype, device=A.device)
    series = eye - E
    for _ in range(passes):
        series = torch.addmm(eye, E, series, alpha=-1)
    inverse = series / D
    left = B @ inverse
    return _polar(A, left @ V.mT, left, D, V.clone(), coupling=Y, inverse=inverse)


def by_matmul(A: Tensor, start: Tensor) -> Polar:
    """Matrix products only, nothing that makes the host of an accelerator wait.

    `X ← X (aI + b XᵀX + c (XᵀX)²)` drives all singular values to one. On the CPU a result that is not orthonormal
    enough (A is nearly rank-deficient) is replaced by that of `by_svd`; elsewhere it is made NaN, on the device.
    """
    X = A / torch.linalg.vector_norm(A)
    for a, b, c in COEFFICIENTS[A.dtype]:
        B = X.mT @ X
        X = a * X + X @ (b * B + c * (B @ B))
    residual = torch.linalg.vector_norm(X.mT @ X - torch.eye(X.shape[1], dtype=A.dtype, device=A.device))
    exact = residual <= 1e3 * torch.finfo(A.dtype).eps * X.shape[1] ** 0.5
    if A.device.type == "cpu" and not bool(exact):
        return by_svd(A, start)._replace(fallbacks=(~exact).long())
    return _polar(A, torch.where(exact, X, torch.nan), fallbacks=(~exact).long())


def _minimax_coefficients(eps: float) -> tuple[tuple[float, float, float], ...]:
    """Odd quintics `ax + bx³ + cx⁵` whose composition takes [8 eps, 1] to 1 ± eps, each the best for its interval.

    On [l, 1] the error of the best one alternates at l, two inner extrema, and 1 (Remez' algorithm). Two departures
    keep full accuracy. Intervals below l = 0.1 are treated as that one, which costs little speed, for the best
    polynomial would bring large singular values down to l, and with them their digits. And all but the last
    contract their argument by 1 % first: beyond 1 they fall so steeply that rounding would be amplified.
    """
    steps: list[tuple[float, float, float]] = []
    lower, margin = 8 * eps, 1.01
    while True:
        left = max(lower, 0.1)
        points = np.array([left, 0.5 * (left + 1), 0.75, 1.0])
        for _ in range(50):
            # p(x_i) + (−1)^i e = 1
            system = np.column_stack([points, points**3, points**5, [1.0, -1.0, 1.0, -1.0]])
            a, b, c, error = np.linalg.solve(system, np.ones(4))
            root = np.sqrt(max(9 * b * b - 20 * a * c, 0.0))
            inner = np.sqrt(np.array([-3 * b - root, -3 * b + root]) / (10 * c))  # p'(x) = 0
            if np.allclose(inner, points[1:3], rtol=1e-12):
                break
            points[1:3] = inner
        if abs(error) < 1e-3:  # from here on Newton–Schulz' own quintic converges cubically, without cancellation
            last = (float(a), float(b), float(c))
            return (*steps, last, (1.875, -1.25, 0.375), (1.875, -1.25, 0.375))
        scale = 1.0 / (1.0 + abs(error))
        a, b, c = (float(k * scale / margin**n) for k, n in ((a, 1), (b, 3), (c, 5)))
        steps.append((a, b, c))
        lower = min(a * lower + b * lower**3 + c * lower**5, (1.0 - abs(error)) * scale)


COEFFICIENTS = {t: _minimax_coefficients(torch.finfo(t).eps) for t in (torch.float32, torch.float64)}


def complete_frame(left: Tensor, right: Tensor, start: Tensor) -> Tensor:
    """The frame nearest to `start` (d, m) among those that map `right` (m', r) to `left` (d, r).

    Both have orthonormal columns, and right is padded with zeros where m > m'. With orthonormal complements the
    frame is `left rightᵀ + left_⊥ Z right_⊥ᵀ`, and Z is the polar factor of `left_⊥ᵀ start right_⊥`.
    """
    (d, r), m = left.shape, start.shape[1]
    right = torch.cat([right, right.new_zeros(m - len(right), r)])
    right_rest = torch.linalg.qr(right, mode="complete")[0][:, r:]  # (m, m−r)
    target = start @ right_rest
    # The complement of span(left) in R^d may be huge; this much of it holds the target, and room to complete it.
    eye = torch.eye(d, m, dtype=left.dtype, device=left.device)
    left_rest = torch.linalg.qr(torch.cat([left, target, eye], 1))[0][:, r:]
    Z, _, Yt = torch.linalg.svd(left_rest.mT @ target, full_matrices=False)
    return left @ right.mT + left_rest @ (Z @ Yt) @ right_rest.mT


def without_rounding(sigma: Tensor, A: Tensor) -> Tensor:
    """The singular values of A, zero where only rounding, of A's entries or of the decomposition, made them."""
    share = max(max(A.shape) * torch.finfo(torch.float64).eps, 4 * torch.finfo(A.dtype).eps)
    return torch.where(sigma > share * sigma.amax(), sigma, 0.0)


def pseudo_inverse(values: Tensor) -> Tensor:
    """1/values, and 0 for 0: there a derivative does not exist, and none is passed on."""
    return values.reciprocal().masked_fill_(values == 0, 0.0)


def _complete_by_one(U: Tensor, start: Tensor) -> Tensor:
    """The unit vector (d, 1) orthogonal to U (d, m) nearest to the last column of `start`."""
    w = start[:, -1:].to(U.dtype)
    for _ in range(2):  # twice is enough for full orthogonality
        w = w - U @ (U.mT @ w)
        length = torch.linalg.vector_norm(w)
        if U.device.type == "cpu" and float(length) < 1e-8:
            eye = torch.eye(U.shape[1], dtype=torch.float64)
            return complete_frame(U.double(), eye, start.double())[:, -1:].to(U.dtype)
        w = w / length
    return w


def gram(A: Tensor, block: int = 256) -> Tensor:
    """AᵀA; of a large one only the blocks on and below the diagonal are multiplied out."""
    m = A.shape[1]
    if m <= block:
        return A.mT @ A
    G = A.new_empty(m, m)
    for i in range(0, m, block):
        rows = A[:, i : i + block].mT @ A[:, : i + block]
        G[i : i + block, : i + block] = rows
        G[:i, i : i + block] = rows[:, :i].mT
    return G


def _polar(
    A: Tensor,
    U: Tensor,
    left: Tensor | None = None,
    sigma: Tensor | None = None,
    V: Tensor | None = None,
    *,
    gauge: Tensor | None = None,
    coupling: Tensor | None = None,
    inverse: Tensor | None = None,
    fallbacks: Tensor | None = None,
) -> Polar:
    """The parts in A's dtype and contiguous, those not known empty and new: an operator's results share no memory."""
    d = len(A)
    return Polar(
        frame=U.to(A.dtype).contiguous(),
        gauge=A.new_empty(d, 0) if gauge is None or gauge.numel() == 0 else gauge.to(A.dtype).contiguous(),
        left=A.new_empty(d, 0) if left is None else left.to(A.dtype).contiguous(),
        sigma=A.new_empty(0) if sigma is None else sigma.to(A.dtype),
        basis=A.new_empty(0, 0) if V is None else V.to(A.dtype).contiguous(),
        coupling=A.new_empty(0, 0) if coupling is None else coupling,
        inverse=A.new_empty(0, 0) if inverse is None else inverse,
        fallbacks=torch.zeros((), dtype=torch.int64, device=A.device) if fallbacks is None else fallbacks,
    )


def _warn_once(method: str, A: Tensor) -> None:
    if method in _warned:
        return
    _warned.add(method)
    sigma = without_rounding(torch.linalg.svdvals(A.double()), A)
    warnings.warn(
        f"the polar factor of a matrix of condition number {float(sigma[0] / sigma[-1]):.1e} is beyond {method!r} in "
        f"{A.dtype}: 'svd' stepped in, now and wherever this happens again (said once). Class means coincide or are "
        "missing; if that lasts, a larger delta or float64 helps.",
        RuntimeWarning,
        stacklevel=3,
    )
