"""Simplex ETFs without training: the projection of a trained classifier, and the distance of class means.

Source: Papyan, Han & Donoho 2020 (neural collapse); the nearest ETF is that of Markou, Ajanthan & Gould 2024, arXiv
2411.01248, section 3. With `H M = U P` the polar decomposition of centred class means H (d, K), rank K−1 at most,

    min_{U, s} ‖H M − s U M‖_F²   has   s = ‖H M‖_*/(K−1),
    min_U ‖H M/‖H M‖_F − U M/√(K−1)‖_F² = 2 − 2 ‖H M‖_*/(√(K−1) ‖H M‖_F).
"""

from __future__ import annotations

import math
from typing import Any, overload

import torch
from torch import Tensor, nn

from ..reference.collapse import CUTOFF
from .arguments import check_finite, check_floats
from .collapse_batches import unit_of
from .procrustes import nearest_etf, without_autocast
from .simplex import centred, check_class_means_shape, check_sizes


@overload
def project_to_etf(weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]: ...
@overload
def project_to_etf(weight: nn.Linear) -> nn.Linear: ...
def project_to_etf(weight: Tensor | nn.Linear, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None] | nn.Linear:
    """The simplex ETF nearest to the rows of a trained linear classifier, at the best scale.

    Parameters
    ----------
    weight : (K, d), or nn.Linear
        `W`, rows are classes, K ≤ d+1. They are centred first, which shifts all logits of a sample equally and changes
        neither softmax nor argmax.
    bias : (K,), optional
        `b`, returned unchanged.

    Returns
    -------
    (weight, bias), or nn.Linear
        `s M Uᵀ` with U and s that minimise `‖M W − s M Uᵀ‖_F`, and b. New tensors, or a new layer, with dtype, device,
        `requires_grad` and training mode of the given ones, and without gradient to them. If the centred
        rows have a rank less than K−1, as when two coincide, U is the minimiser nearest to the canonical frame.

    Raises
    ------
    ValueError
        If a shape is wrong, W looks transposed, no ETF of K classes fits into d dimensions, an entry is not finite,
        or all rows are equal.

    Notes
    -----
    If the centred rows `M W` are an ETF up to scale, as for two classes they always are, all logits of a sample are
    shifted equally: no prediction and no probability changes. For all other weights, the argmax of some features
    changes.

    Examples
    --------
    >>> layer = nn.Linear(16, 4)
    >>> etf = project_to_etf(layer)
    >>> cosines = torch.nn.functional.cosine_similarity(etf.weight[:1], etf.weight[1:])
    >>> cosines.allclose(torch.tensor(-1 / 3)), torch.equal(etf.bias, layer.bias)
    (True, True)
    """
    if isinstance(weight, nn.Linear):
        return _projected_layer(weight)
    expected = "a floating-point matrix (K, d) whose rows are classes, or nn.Linear"
    check_floats("weight", weight, expected, values=True)
    if weight.ndim != 2:
        raise ValueError(f"weight is {weight.dtype} of shape {tuple(weight.shape)}; expected {expected}.")
    K, d = weight.shape
    _check_that_one_fits("weight", weight, d, K)
    check_sizes(d, K, "gauge-free")
    if bias is not None:
        check_floats("bias", bias, f"a floating-point vector ({K},)", beside=weight)
        if bias.shape != (K,):
            raise ValueError(f"bias has shape {tuple(bias.shape)}; expected ({K},), one entry per row of weight.")
    W = weight.detach().double()
    if not W.isfinite().all():
        raise ValueError("weight contains NaN or infinite entries.")
    unit = unit_of(W)  # so that no square overflows or underflows
    C = centred(W.mT / unit)  # (d, K)
    if torch.linalg.vector_norm(C) <= CUTOFF * torch.linalg.vector_norm(W / unit):
        raise ValueError("weight has equal rows, whose best ETF has scale zero; expected a trained classifier.")
    with without_autocast(weight.device):
        etf = nearest_etf(C, method="svd", formulation="gauge-free")  # X Qᵀ, which is centred
        scale = unit * (C * etf).sum() / (K - 1)
    projected = (scale * etf.mT).to(weight.dtype).contiguous().requires_grad_(weight.requires_grad)
    return projected, None if bias is None else bias.detach().clone().requires_grad_(bias.requires_grad)


def _projected_layer(layer: nn.Linear) -> nn.Linear:
    weight, bias = project_to_etf(layer.weight, layer.bias)
    new = nn.Linear(layer.in_features, layer.out_features, bias is not None, device="meta").train(layer.training)
    new.weight = nn.Parameter(weight.detach(), weight.requires_grad)
    new.bias = None if bias is None else nn.Parameter(bias.detach(), bias.requires_grad)  # type: ignore[assignment]
    return new


def etf_distance(class_means: Tensor) -> Tensor:
    """`‖H M/‖H M‖_F − E*‖_F²`, E* the nearest simplex ETF of unit norm: from 0 for an ETF to 2 − 2/√(K−1) for rank 1.

    As a regulariser it pulls class means, or the rows of a classifier (pass `weight.T`), towards a simplex ETF. It is
    the metric `etf_distance_means` of `NeuralCollapseMeter`; `etf_distance_weight` differs by not centring W.

    Parameters
    ----------
    class_means : (…, d, K)
        `H`, columns are classes, K ≤ d+1; they need not be centred or normalised.

    Returns
    -------
    distance : (…)
        Computed in float64, returned in the class means' dtype, float32 at least. Differentiable to second order, in
        reverse and forward mode. The gradient with respect to the normalised means Ĥ is `2 (Ĥ − E*)`, without inverse
        singular values. If all classes coincide, the distance is 1, as in the metric, and the gradient is zero.

    Raises
    ------
    ValueError
        If the class means are not matrices (d, K), look transposed, or no ETF of K classes fits into d dimensions; on
        the CPU also if an entry is not finite.

    Examples
    --------
    >>> H = torch.randn(8, 4, requires_grad=True)
    >>> distance = etf_distance(H)
    >>> distance.backward()
    >>> bool(etf_distance(H - 0.1 * H.grad) < distance)
    True
    >>> round(float(etf_distance(torch.eye(5, 3))), 6)
    0.0
    """
    check_floats("class_means", class_means, "a floating-point matrix (d, K) whose columns are classes")
    if class_means.ndim >= 2:
        _check_that_one_fits("class_means", class_means, *class_means.shape[-2:])
    check_class_means_shape(class_means, "gauge-free")
    check_finite("class_means", class_means)
    with without_autocast(class_means.device):
        H = class_means.double()
        top = H.detach().abs().amax((-2, -1), keepdim=True)
        H = H / torch.where(top > 0, top, 1.0)  # the distance is the same, and squares neither overflow nor underflow
        C = centred(H)
        norm = torch.linalg.vector_norm(C, dim=(-2, -1), keepdim=True)
        apart = norm > CUTOFF * torch.linalg.vector_norm(H, dim=(-2, -1), keepdim=True)
        unit = torch.where(apart, C, 0.0) / torch.where(apart, norm, 1.0)
        distance = (_Distance if torch.compiler.is_compiling() else _DistanceWithTangents).apply(unit)[0]
    return distance.to(torch.promote_types(class_means.dtype, torch.float32))


class _Distance(torch.autograd.Function):
    """`‖Ĥ − E(Ĥ)‖_F²` for Ĥ (…, d, K), and E.

    E maximises ⟨Ĥ, E⟩, so its derivative does not contribute to the first derivative of the distance, `2 (Ĥ − E)`, but
    only to the second.
    """

    @staticmethod
    def forward(unit: Tensor) -> tuple[Tensor, Tensor]:
        etf = _unit_etf(unit)
        return (unit - etf).square().sum((-2, -1)), etf

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])
        ctx.save_for_forward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        unit, etf = ctx.saved_tensors
        etf = _unit_etf(unit) if torch.is_grad_enabled() else etf
        return 2 * cotangents[0][..., None, None] * (unit - etf)


class _DistanceWithTangents(_Distance):
    """`_Distance` with forward mode and `torch.func.vmap`, which compilers do not trace."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[Tensor, None]:
        unit, etf = ctx.saved_tensors
        return 2 * ((unit - etf) * tangents[0]).sum((-2, -1)), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], unit: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return _DistanceWithTangents.apply(unit.movedim(in_dims[0], 0)), (0, 0)


def _unit_etf(unit: Tensor) -> Tensor:
    return nearest_etf(unit, formulation="gauge-free") / math.sqrt(unit.shape[-1] - 1)


def _check_that_one_fits(name: str, given: Tensor, d: int, K: int) -> None:
    """Refuse more classes than a simplex ETF in d dimensions can have."""
    if d + 1 < K:
        raise ValueError(
            f"{name} has shape {tuple(given.shape)}: {K} classes in {d} dimensions, where a simplex ETF has {d + 1} at "
            "most. Transpose it if classes and features are interchanged; for more classes use the nearest tight frame "
            "(`TightFrameHead`, `nearest_tight_frame`)."
        )
