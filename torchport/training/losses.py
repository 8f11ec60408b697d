"""Training losses on logits z = W h + b, with ‖h‖ = τ."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def training_loss(kind: str, logits: Tensor, labels: Tensor, temperature: float | None = None) -> Tensor:
    """Mean loss of a batch.

    Parameters
    ----------
    kind : {"cross-entropy", "dot-regression"}
        Dot regression (Yang et al. 2022, arXiv 2203.09081, eq. 7) pulls the true class's logit to the largest
        value that unit weights allow, (z_y − τ)² / 2τ, and pushes nothing away.
    logits : (N, K)
    labels : (N,)
    temperature : float, optional
        τ, the norm of the features; for dot regression.

    Examples
    --------
    >>> import torch
    >>> training_loss("dot-regression", torch.tensor([[4.0, 0.0]]), torch.tensor([0]), 5.0).item()
    0.10000000149011612
    """
    if kind == "cross-entropy":
        return F.cross_entropy(logits, labels)
    assert temperature is not None
    true_class = logits.gather(1, labels[:, None])[:, 0]
    return (true_class - temperature).square().mean() / (2 * temperature)
