"""Training losses on logits z = W h + b, with ‖h‖ = τ and unit rows of W, or on those of a linear layer.

Each is a mean over the samples i of a batch, with class yᵢ:

    cross-entropy    −log(e^{z[i,yᵢ]} / Σ_k e^{z[i,k]})                      k over classes
    dot-regression   (z[i,yᵢ] − τ)² / 2τ
    mse              ‖zᵢ − τ tᵢ‖² / 2τ,  t = K/(K−1) (e_y − 1/K);            without τ  ½ ‖zᵢ − e_y‖²
    ntce             −log(e^{z[i,yᵢ]} / Σ_j e^{z[j,yᵢ]})                     j over the batch
    nonl             −log(e^{z[i,yᵢ]} / Σ_{j: yⱼ ≠ yᵢ} e^{z[j,yᵢ]})         j over samples of other classes

Sources: dot regression, Yang et al. 2022, arXiv 2203.09081, eq. 7; mean squared error, Han, Papyan & Donoho 2022,
arXiv 2106.02073; NTCE and NONL, Koromilas et al. 2026, arXiv 2605.20302, in the symmetric form that its authors use.

The target of `mse` is the logits of a simplex ETF at full collapse, W h for h = τ w_y. It is parallel to the theory's
centred one-hot target; the factor 1/2τ gives the gradient in z the scale of the cross-entropy's. For K > d+1, where no
simplex ETF exists, the loss stays above zero.

NTCE and NONL compare samples instead of classes, within each column of z, so that a bias cancels. The authors' unit
features and temperature 0.1, which divides, are τ = 10 here. Under several processes, and under gradient accumulation,
the batch that j runs over is each process's own microbatch: with fewer samples there are fewer negatives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...common.errors import UserError
from .data.images import ImageData
from .data.modify import balanced_weights
from .run.settings import Settings

LOSSES = ("cross-entropy", "dot-regression", "mse", "ntce", "nonl")
SOFT = ("cross-entropy", "mse")  # those that are defined for soft labels


class LossError(UserError):
    """A batch that a loss is not defined on; the message is one line with the remedy."""


def training_loss(
    kind: str,
    logits: Tensor,
    labels: Tensor,
    temperature: float | None = None,
    *,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean loss of a batch, in float32 at least.

    Parameters
    ----------
    kind : {"cross-entropy", "dot-regression", "mse", "ntce", "nonl"}
        The module docstring has the formulas. Dot regression pulls the true class's logit to τ, its maximum with unit
        weights, and pushes no other logit down. It suits heads whose frame keeps the rows apart; with learned rows all
        classes may collapse to one point.
    logits : (N, K)
    labels : (N,) integers in 0…K−1, or (N, K) soft labels
        Soft labels for cross-entropy and mse. Cross-entropy alone ignores rows of label −100.
    temperature : float, optional
        τ, the norm of the features: for dot regression, and for mse, where None means logits of a linear layer.
    smoothing : float
        Share of the target that is spread evenly over all classes; for cross-entropy.
    class_weights : (K,), optional
        Weights of the samples by their class, for cross-entropy; the mean is over samples, whatever their weights.

    Raises
    ------
    LossError
        For an unknown loss, for soft labels where the loss has none, and for dot regression without a temperature. On
        the CPU also for a negative label of a loss other than cross-entropy, and for nonl on a batch of one class; on
        other devices, where these checks would synchronise, that loss is −∞.

    Examples
    --------
    >>> z, y = torch.tensor([[4.0, 0.0], [1.0, 3.0]]), torch.tensor([0, 1])
    >>> {kind: round(training_loss(kind, z, y, temperature=5.0).item(), 3) for kind in LOSSES}
    {'cross-entropy': 0.073, 'dot-regression': 0.25, 'mse': 3.3, 'ntce': 0.049, 'nonl': -3.0}
    """
    if kind not in LOSSES:
        raise LossError(f"loss is {kind!r}; expected one of {', '.join(LOSSES)}")
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if kind == "cross-entropy":
        if class_weights is None:
            return F.cross_entropy(z, labels, label_smoothing=smoothing)
        losses = F.cross_entropy(z, labels, class_weights.to(z), reduction="none", label_smoothing=smoothing)
        return losses.sum() / (labels != -100).sum() if labels.ndim == 1 else losses.mean()
    _refuse_undefined(kind, labels, temperature)
    if kind == "mse":
        return _mean_squared_error(z, labels, temperature)
    true = z.gather(1, labels[:, None])[:, 0]  # z[i,yᵢ], (N,)
    if kind == "dot-regression":
        assert temperature is not None
        return (true - temperature).square().mean() / (2 * temperature)
    # The sums over j are the same for all samples of a class: those of one column of z, (K,).
    compared = z if kind == "ntce" else z.scatter(1, labels[:, None], -torch.inf)
    return (compared.logsumexp(0)[labels] - true).mean()


def loss_options(settings: Settings, data: ImageData, device: torch.device) -> dict[str, Any]:
    """Keyword arguments of `training_loss` from settings and class sizes."""
    if settings.loss != "cross-entropy":
        return {}
    weights = None
    if settings.class_weights == "balanced":
        weights = torch.from_numpy(balanced_weights(data.train.labels, data.num_classes)).float().to(device)
    return {"smoothing": settings.smoothing, "class_weights": weights}


def _refuse_undefined(kind: str, labels: Tensor, temperature: float | None) -> None:
    """Refuse labels on which a loss other than cross-entropy is undefined; values are checked on the CPU only."""
    if labels.is_floating_point() and kind not in SOFT:
        raise LossError(
            f"loss {kind} is not defined for soft labels {tuple(labels.shape)}: use {' or '.join(SOFT)}, or labels (N,)"
        )
    if kind == "dot-regression" and temperature is None:
        raise LossError("loss dot-regression pulls logits to the temperature, and there is none: pass temperature")
    if labels.device.type != "cpu" or labels.is_floating_point():
        return
    if bool((labels < 0).any()):
        raise LossError(
            f"labels hold {int(labels.min())}, which loss {kind} does not ignore: leave these rows out, or use loss "
            "cross-entropy"
        )
    if kind == "nonl" and bool((labels == labels[0]).all()):
        raise LossError(
            f"loss nonl compares samples of different classes, but all {len(labels)} of this batch have one class: use "
            "a larger batch_size, fewer grad_accum_steps, or stratified batches"
        )


def _mean_squared_error(z: Tensor, labels: Tensor, temperature: float | None) -> Tensor:
    """`‖z − τ t‖²/2τ`, t the target that collapse reaches; without τ `½ ‖z − y‖²`, y one-hot or soft."""
    K = z.shape[1]
    target = (labels if labels.is_floating_point() else F.one_hot(labels, K)).to(z.dtype)  # (N, K)
    tau = 1.0
    if temperature is not None:
        tau, target = temperature, (K * target - 1) / (K - 1)
    return (z - tau * target).square().sum(1).mean() / (2 * tau)
