"""The fixed head: a simplex ETF that training never changes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..class_means import Averaging, only_finite, store
from ..procrustes import named_or_given_frame
from ..simplex import classifier_from_frame
from .averaging import AveragingHead
from .normalised import Temperature


class FixedETFHead(AveragingHead):
    """A simplex ETF that is never changed, and `b = −W μ`: the batch's mean in training, a running one stored.

    Parameters
    ----------
    num_features, num_classes : int
        d and K, with d ≥ K−1.
    temperature
        As for `NormalisedHead`.
    initial : {"canonical", "random"} or (d, K)
        The frame; "random" is one fixed Haar frame.
    averaging : {"step", "class"}
        Of the running means, as for `ClassMeans`.

    Examples
    --------
    >>> head = FixedETFHead(num_features=8, num_classes=3)
    >>> head(torch.randn(4, 8), torch.tensor([0, 1, 2, 0])).shape
    torch.Size([4, 3])
    """

    kind = "fixed"

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        temperature: Temperature = None,
        *,
        initial: str | Tensor = "canonical",
        averaging: Averaging = "step",
    ) -> None:
        super().__init__(num_features, num_classes, temperature, averaging)
        frame = named_or_given_frame(initial, num_features, num_classes)
        self.register_buffer("weight", classifier_from_frame(frame).to(torch.get_default_dtype()).contiguous())
        self.register_buffer("bias", torch.zeros(num_classes))

    def follow(self, sums: Tensor, counts: Tensor, update: bool) -> tuple[Tensor, Tensor]:
        """The ETF, and the bias of this batch's own mean."""
        _, global_mean = self.running.average(sums, counts, update)
        weight = self.weight.to(sums.dtype, copy=True)  # DDP writes into buffers that autograd keeps
        if update:
            bias = -weight @ global_mean
            store(self, **only_finite(self, {"bias": bias}, bias))
        return weight, -weight @ (sums.sum(1) / counts.sum().clamp(min=1))

    @torch.no_grad()
    def refresh(self) -> None:
        """Set the bias from the running global mean."""
        store(self, bias=-self.weight.to(self.running.global_mean.dtype) @ self.running.global_mean)
