"""The learned head: a linear classifier with unit rows and no bias on normalised features, the usual baseline.

Source: Wang et al. 2018, *CosFace*, arXiv 1801.09414, section 3.1, without the margin.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..class_means import ClassMeans
from ..tight_frame import unit_rows
from .growing import lengthened, warn_of_new_parameters
from .normalised import NormalisedHead, Temperature


class LearnedHead(NormalisedHead):
    """A learned linear classifier without bias, whose rows are normalised in every forward pass.

    Parameters
    ----------
    num_features, num_classes : int
        d and K, of any size.
    temperature
        As for `NormalisedHead`.

    Attributes
    ----------
    rows : (K, d) parameter
        The rows before normalisation; `weight` has them at unit length.

    Raises
    ------
    ValueError
        If a size or an option is invalid.

    Examples
    --------
    >>> head = LearnedHead(num_features=8, num_classes=3)
    >>> head(torch.randn(4, 8)).shape, head.weight.norm(dim=1).allclose(torch.ones(3))
    (torch.Size([4, 3]), True)
    """

    kind = "learned"

    def __init__(self, num_features: int, num_classes: int, temperature: Temperature = None) -> None:
        super().__init__(num_features, num_classes, temperature)
        self.rows = nn.Parameter(F.normalize(torch.randn(num_classes, num_features), dim=1))
        self.register_buffer("bias", torch.zeros(num_classes))
        self.register_load_state_dict_pre_hook(_rename_weight_to_rows)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W (K, d) with unit rows, differentiable in `rows`; with pinned rows in place of its first ones."""
        return self._with_pinned(F.normalize(self.rows, dim=1))

    @torch.no_grad()
    def set_means(
        self, class_mean_rows: Tensor, counts: Tensor | None = None, global_mean: Tensor | None = None
    ) -> None:
        """Set the rows to the class means, centred and normalised; training continues from there.

        There is no bias, so the global mean μ affects only the rows: logits are `W h`, not the `W (h − μ)` of the other
        heads. A class without samples, or whose mean is the global one, keeps its row.

        Parameters
        ----------
        class_mean_rows : (K, d)
            Means per class of `normalise(features)`, not centred; rows are classes.
        counts : (K,), optional
            Number of samples of each class; default: equal numbers.
        global_mean : (d,), optional
            Default: the mean of the class means, weighted by the counts.

        Raises
        ------
        ValueError
            If a shape is wrong (a transposed matrix included) or an entry is not finite. Then nothing changes.
        """
        means = ClassMeans(self.num_features, self.num_classes).to(self.rows.device, torch.float64)
        means.set_means(class_mean_rows, counts, global_mean)
        rows = unit_rows(means.class_means.mT, 1e-6 * float(self.temperature))
        self.rows.copy_(torch.where(rows.any(1, keepdim=True), rows, self.rows))

    def grow(self, n: int) -> None:
        """Add random rows, drawn like the first ones."""
        new = F.normalize(torch.randn(n, self.num_features), dim=1)
        self.rows = lengthened(self.rows, new)
        self.bias = torch.cat([self.bias, self.bias.new_zeros(n)])
        warn_of_new_parameters(type(self).__name__, "rows")


def _rename_weight_to_rows(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the rows of version 0.1.0, which were called weight and normalised after every step."""
    if f"{prefix}weight" in state_dict:
        state_dict[f"{prefix}rows"] = state_dict.pop(f"{prefix}weight")
