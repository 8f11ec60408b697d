"""Scores for out-of-distribution (OOD) data from W, b and the class means of a classifier, on their device.

They are those of `reference.ood`, which has formulas, sources, and the metrics `auroc` and `fpr95`. Larger scores
indicate in-distribution samples. Half precision is converted to float32. Entries that are not finite yield NaN, since a
check would synchronise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.arguments import real_number, whole_number
from ..reference.collapse import CUTOFF
from .arguments import check_finite, check_floats
from .class_means import at_least_single
from .hyperspherical import unit_rows


def max_softmax_score(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The largest class probability, (N,), for logits `W h + b`: the baseline of the other scores.

    Parameters
    ----------
    features : (N, d)
        The input of the classifier: for a head with normalised features, `head.normalise(features)`.
    weight : (K, d)
    bias : (K,), optional

    Raises
    ------
    ValueError
        If shapes disagree.

    Examples
    --------
    >>> max_softmax_score(torch.zeros(1, 2), torch.eye(2))
    tensor([0.5000])
    """
    logits = _logits(features, weight, bias)
    return (logits.amax(1) - logits.logsumexp(1)).exp()


def max_logit_score(features: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The largest logit, (N,).

    Parameters
    ----------
    features, weight, bias
        As for `max_softmax_score`.

    Raises
    ------
    ValueError
        As `max_softmax_score`.

    Examples
    --------
    >>> max_logit_score(torch.tensor([[3.0, 1.0]]), torch.eye(2))
    tensor([3.])
    """
    return _logits(features, weight, bias).amax(1)


def energy_score(features: Tensor, weight: Tensor, bias: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """The negative energy `T log Σ exp(logit/T)`, (N,).

    Parameters
    ----------
    features, weight, bias
        As for `max_softmax_score`.
    temperature : float
        T > 0.

    Raises
    ------
    ValueError
        As `max_softmax_score`, or if T is not a positive number.

    Examples
    --------
    >>> energy_score(torch.zeros(1, 2), torch.eye(2))
    tensor([0.6931])
    """
    temperature = real_number("temperature", temperature, positive=True)
    return temperature * (_logits(features, weight, bias) / temperature).logsumexp(1)


@torch.no_grad()
def class_subspace(rows: Tensor) -> Tensor:
    """An orthonormal basis (d, r) of the span of the centred class means, or of W's centred rows; r ≤ min(d, K−1).

    Computed in float64, returned in the dtype of the rows, float32 at least.

    Parameters
    ----------
    rows : (K, d)
        Class means or W, not centred; rows are classes.

    Raises
    ------
    ValueError
        If the shape is wrong, or all rows coincide.

    Examples
    --------
    >>> class_subspace(torch.eye(3, 5)).shape
    torch.Size([5, 2])
    """
    check_floats("rows", rows, "a floating-point matrix (K, d) whose rows are classes", values=True)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"rows have shape {tuple(rows.shape)}; expected (K, d), rows are classes.")
    check_finite("rows", rows)
    X = rows.double()
    top = X.abs().amax()
    X = X / top.where(top > 0, 1.0)
    _, values, right = torch.linalg.svd(X - X.mean(0), full_matrices=False)
    kept = values > torch.maximum(CUTOFF**0.5 * values[0], CUTOFF * X.norm())
    if not kept.any():
        raise ValueError("all rows coincide; they span no subspace.")
    return right[kept].T.to(at_least_single(rows.dtype))


@torch.no_grad()
def principal_subspace(features: Tensor, rank: int) -> Tensor:
    """The first principal components of features, (d, rank): the subspace of the NECO paper.

    Parameters
    ----------
    features : (N, d)
        Features of training data.
    rank : int
        In 1…min(N, d); K−1 at full collapse.

    Raises
    ------
    ValueError
        If the shape or the rank is wrong.

    Examples
    --------
    >>> principal_subspace(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 0.0]]), 1).abs()
    tensor([[1.],
            [0.]])
    """
    check_floats("features", features, "a floating-point matrix (N, d)")
    if features.ndim != 2 or not 1 <= whole_number("rank", rank) <= min(features.shape):
        raise ValueError(f"features {tuple(features.shape)}, rank = {rank}; expected (N, d) and 1…min(N, d).")
    check_finite("features", features)
    X = features.double()
    return torch.linalg.svd(X - X.mean(0), full_matrices=False)[2][:rank].T.to(at_least_single(features.dtype))


def neco_score(features: Tensor, subspace: Tensor, centre: Tensor | None = None) -> Tensor:
    """NECO: the share `‖Vᵀz‖/‖z‖` of a feature that lies in a subspace, `z = h − centre`, (N,) in 0…1.

    Parameters
    ----------
    features : (N, d)
    subspace : (d, r)
        V, orthonormal columns (not checked): `class_subspace` or `principal_subspace`.
    centre : (d,), optional
        The global mean, for the subspaces above; zero by default.

    Raises
    ------
    ValueError
        If shapes disagree.

    Examples
    --------
    >>> neco_score(torch.tensor([[3.0, 0.0, 4.0]]), torch.eye(3, 2))
    tensor([0.6000])
    """
    check_floats("features", features, "a floating-point matrix (N, d)")
    check_floats("subspace", subspace, "orthonormal columns (d, r)", beside=features)
    if features.ndim != 2 or subspace.ndim != 2 or features.shape[1] != len(subspace):
        raise ValueError(
            f"features {tuple(features.shape)} and subspace {tuple(subspace.shape)}; expected (N, d) and (d, r)."
        )
    z = unit_rows(_centred(features, centre, "centre"))
    return (z @ subspace.to(z)).norm(dim=1).clamp(max=1.0)


def nci_score(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    global_mean: Tensor,
    norm_weight: float = 0.0,
    order: float = 1,
) -> Tensor:
    """NCI: `w_cᵀz/‖z‖ + α‖h‖_p`, (N,), c the predicted class and `z = h − μ_G`.

    Parameters
    ----------
    features, weight, bias
        As for `max_softmax_score`.
    global_mean : (d,)
        μ_G, the mean of training features.
    norm_weight : float
        α; the paper tunes it. For features of equal length and p = 2 the second term is constant.
    order : float
        p ≥ 1.

    Raises
    ------
    ValueError
        If shapes disagree, or p < 1.

    Examples
    --------
    >>> nci_score(torch.tensor([[3.0, 1.0]]), torch.eye(2), global_mean=torch.tensor([0.0, 1.0]))
    tensor([1.])
    """
    check_floats("global_mean", global_mean, "a floating-point vector (d,)")
    norm_weight = real_number("norm_weight", norm_weight)
    if isinstance(order, str) or not order >= 1:
        raise ValueError(f"order = {order}; expected the order p ≥ 1 of a norm.")
    predicted = _logits(features, weight, bias).argmax(1)
    z = unit_rows(_centred(features, global_mean, "global_mean"))
    proximity = (z * weight.to(z)[predicted]).sum(1)
    return proximity + norm_weight * features.to(z).norm(p=order, dim=1)


def _logits(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Logits (N, K) in the dtype of the features, float32 at least."""
    check_floats("features", features, "a floating-point matrix (N, d)")
    check_floats("weight", weight, "a floating-point matrix (K, d)", beside=features)
    if bias is not None:
        check_floats("bias", bias, "a floating-point vector (K,)", beside=features)
    if 0 in weight.shape or features.ndim != 2 or weight.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise ValueError(
            f"features {tuple(features.shape)} and weight {tuple(weight.shape)}; expected (N, d) and (K, d) with one d."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: shape {tuple(bias.shape)}; expected ({len(weight)},), one entry per row of weight.")
    h = features.to(at_least_single(features.dtype))
    return torch.nn.functional.linear(h, weight.to(h), None if bias is None else bias.to(h))


def _centred(features: Tensor, centre: Tensor | None, name: str) -> Tensor:
    h = features.to(at_least_single(features.dtype))
    if centre is None:
        return h
    check_floats(name, centre, "a floating-point vector (d,)", beside=features)
    if centre.shape != h.shape[1:]:
        raise ValueError(f"{name}: shape {tuple(centre.shape)}; expected ({h.shape[1]},).")
    return h - centre.to(h)
