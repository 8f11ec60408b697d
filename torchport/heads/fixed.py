"""The fixed head: a simplex ETF that training never changes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..class_means import ClassMeans, store
from ..distributed import all_reduce_sum
from ..simplex import canonical_frame, classifier_from_frame
from .base import Head


class FixedETFHead(Head):
    """The canonical simplex ETF, never changed, and `b = −W μ`: the batch's mean in training, a running one stored.

    Parameters
    ----------
    num_features, num_classes, temperature
        As for `Head`.

    Examples
    --------
    >>> head = FixedETFHead(num_features=8, num_classes=3)
    >>> head(torch.randn(4, 8), torch.tensor([0, 1, 2, 0])).shape
    torch.Size([4, 3])
    """

    kind = "fixed"

    def __init__(self, num_features: int, num_classes: int, temperature: float = 5.0) -> None:
        super().__init__(num_features, num_classes, temperature)
        self.running = ClassMeans(num_features, num_classes)
        self.register_buffer("weight", classifier_from_frame(canonical_frame(num_features, num_classes)))
        self.register_buffer("bias", torch.zeros(num_classes))

    def classifier_for(self, h: Tensor, labels: Tensor, update: bool) -> tuple[Tensor, Tensor]:
        """The ETF, and the bias of this batch's own mean."""
        self.running(h, labels, update)
        weight = self.weight.to(self.running.global_mean.dtype)
        if update:
            store(self, bias=-weight @ self.running.global_mean)
        total = all_reduce_sum(torch.cat([h.sum(0), h.new_tensor([len(h)])]))  # over all processes
        batch_mean = total[:-1] / total[-1].detach()
        return weight, -weight @ batch_mean.to(weight.dtype)

    @torch.no_grad()
    def set_means(
        self, class_mean_rows: Tensor, counts: Tensor | None = None, global_mean: Tensor | None = None
    ) -> None:
        """Set the running means, and the bias that follows; see `ClassMeans.set_means`."""
        self.running.set_means(class_mean_rows, counts, global_mean)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Set the bias from the running means again: after they were averaged over models, say."""
        store(self, bias=-self.weight.to(self.running.global_mean.dtype) @ self.running.global_mean)
