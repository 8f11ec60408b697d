"""The fixed head: a simplex ETF that training never changes.

Source: Zhu et al. 2021, arXiv 2105.02375 (a last layer that is fixed as a simplex ETF); Yang et al. 2022, arXiv
2203.09081.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from ..class_means import Averaging, only_finite, store
from ..procrustes import named_or_given_frame, solve
from ..simplex import centred, classifier_from_frame
from .averaging import AveragingHead
from .growing import extended_frame
from .normalised import Temperature


class FixedETFHead(AveragingHead):
    """A simplex ETF that training never changes, and `b = −W μ`, μ the batch's mean in training, else the running one.

    `set_means` and `refresh` set only the bias. `align`, which `fit` calls, turns the frame.

    Parameters
    ----------
    num_features, num_classes : int
        d and K, with d ≥ K−1.
    temperature
        As for `NormalisedHead`.
    initial : {"canonical", "random"} or (d, K)
        The frame; "random" is one fixed Haar frame.
    averaging : {"step", "class"}
        How the class means are averaged, as for `ClassMeans`.

    Raises
    ------
    ValueError
        If a size or an option is invalid, or K > d+1.

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
        super().__init__(num_features, num_classes, temperature, averaging, "gauge-free")
        frame = named_or_given_frame(initial, num_features, num_classes)
        self.register_buffer("weight", classifier_from_frame(frame).to(torch.get_default_dtype()).contiguous())
        self.register_buffer("bias", torch.zeros(num_classes))

    def follow(self, sums: Tensor, counts: Tensor, update: bool) -> tuple[Tensor, Tensor]:
        """The ETF, and the bias for this batch's mean."""
        _, global_mean = self.running.average(sums, counts, update)
        weight = self.weight.to(sums.dtype, copy=True)  # DDP writes into buffers, which autograd may have saved
        if update:
            bias = -weight @ global_mean
            store(self, **only_finite(self, {"bias": bias}, bias))
        return weight, -weight @ (sums.sum(1) / counts.sum().clamp(min=1))

    @torch.no_grad()
    def refresh(self) -> None:
        """Set the bias from the running global mean."""
        store(self, bias=-self.weight.to(self.running.global_mean.dtype) @ self.running.global_mean)

    @torch.no_grad()
    def align(self) -> None:
        """Turn the frame to the simplex ETF nearest to the running class means, once; later steps do not change it.

        For a start from the features of a pretrained backbone: `head.set_means(...)`, then `head.align()`. Directions
        that the class means do not determine, such as those of classes not seen yet, stay nearest to the present frame.

        Examples
        --------
        >>> head = FixedETFHead(num_features=8, num_classes=3)
        >>> head.set_means(torch.eye(8)[5:])
        >>> head.align()
        >>> head.weight.argmax(1).tolist()
        [5, 6, 7]
        """
        H = self.running.class_means.double()
        norm = torch.linalg.vector_norm(H)
        present = self._frame()
        found = solve(
            H / torch.where(norm > 0, norm, 1.0), method="svd", formulation="gauge-free", initial=present
        ).frame
        store(self, weight=self._with_pinned(classifier_from_frame(found)))
        self.refresh()

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor, *, batch_size: int = 8192) -> Self:
        """As for the other heads; the frame is aligned with the class means too, see `align`."""
        super().fit(features, labels, batch_size=batch_size)
        self.align()
        return self

    def grow(self, n: int) -> None:
        """Extend the simplex."""
        frame = extended_frame(self._frame(), n, "gauge-free")
        super().grow(n)
        store(self, weight=self._with_pinned(classifier_from_frame(frame)))
        self.refresh()

    def _frame(self) -> Tensor:
        """The partial isometry (d, K) that corresponds to W, in float64."""
        K = len(self.weight)
        return math.sqrt((K - 1) / K) * centred(self.weight.mT.double())
