"""The class-mean head: the running class means themselves are the classifier, for any number of classes.

Source: Jiang, Zhou, Wang, Qu, Mixon, You & Zhu 2023, *Generalized Neural Collapse for a Large Number of Classes*,
arXiv 2310.05351, section 4: a classifier tied to the class means trains as well as a learned one, without its
parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...common.arguments import switch
from ..class_means import Averaging, only_finite, store
from ..tight_frame import unit_rows
from .averaging import AveragingHead
from .normalised import Temperature


class ClassMeanHead(AveragingHead):
    """The running class means H (d, K), centred and at unit length: `w_k = H_k/‖H_k‖` and `b = −W μ`.

    Parameters
    ----------
    num_features, num_classes : int
        d ≥ 1 and K ≥ 2, of any size.
    temperature
        As for `NormalisedHead`.
    gradient : bool
        Whether gradients flow through W. The bias `b = −W μ` passes the gradient of μ in any case.
    averaging : {"step", "class"}
        How the class means are averaged, as for `ClassMeans`.

    Raises
    ------
    ValueError
        If a size or an option is invalid.

    Notes
    -----
    The row of a class that has not been seen, or whose mean differs from the global one only by rounding, is zero and
    has no gradient. All state is in buffers, and training steps do not synchronise.

    Examples
    --------
    >>> head = ClassMeanHead(num_features=3, num_classes=10)
    >>> head(torch.randn(20, 3, requires_grad=True), torch.arange(20) % 10).shape
    torch.Size([20, 10])
    >>> head.weight.norm(dim=1).allclose(torch.ones(10))
    True
    """

    kind = "class-mean"

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        temperature: Temperature = None,
        *,
        gradient: bool = True,
        averaging: Averaging = "step",
    ) -> None:
        super().__init__(num_features, num_classes, temperature, averaging, None)
        self.gradient = switch("gradient", gradient)
        self.register_buffer("weight", torch.zeros(num_classes, num_features))
        self.register_buffer("bias", torch.zeros(num_classes))

    def follow(self, sums: Tensor, counts: Tensor, update: bool) -> tuple[Tensor, Tensor]:
        """Update the class means with this batch; their directions are W."""
        H, global_mean = self.running.average(sums, counts, update)
        return self._classify(H if self.gradient else H.detach(), global_mean, update)

    @torch.no_grad()
    def refresh(self) -> None:
        """Set the classifier from the running means, for example after averaging them over models."""
        self._classify(self.running.class_means, self.running.global_mean, update=True)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, gradient={self.gradient}"

    def _classify(self, H: Tensor, global_mean: Tensor, update: bool) -> tuple[Tensor, Tensor]:
        rounding = 16 * torch.finfo(H.dtype).eps * self._tau()  # error of a mean of features of norm τ
        weight = self._with_pinned(unit_rows(H.mT, rounding))
        bias = -weight @ global_mean
        if update:
            store(self, **only_finite(self, {"weight": weight, "bias": bias}, weight, bias))
        return weight, bias
