"""What the heads share: normalised features, a stored classifier, and one forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...common.old_names import present_buffer
from ..class_means import check_batch
from ..procrustes import without_autocast
from ..simplex import check_sizes


class Head(nn.Module):
    """A classifier on normalised features: `logits = W h + b` with `h = τ f/‖f‖`.

    Parameters
    ----------
    num_features, num_classes : int
        d and K, with d ≥ K−1.
    temperature : float
        τ, which multiplies the unit features: a larger τ gives more confident probabilities. The paper's is 5.

    Attributes
    ----------
    weight : (K, d)
    bias : (K,)
        The classifier in force, a buffer or (learned) a parameter.
    kind : str
        The head's name in settings and exported files.
    """

    kind: str
    weight: Tensor
    bias: Tensor

    def __init__(self, num_features: int, num_classes: int, temperature: float = 5.0) -> None:
        super().__init__()
        check_sizes(num_features, num_classes, "gauge-free")
        if not temperature > 0:
            raise ValueError(f"temperature = {temperature}; expected a positive number.")
        self.num_features, self.num_classes, self.temperature = num_features, num_classes, temperature
        self.register_load_state_dict_pre_hook(_translate_old_buffers)

    def normalise(self, features: Tensor) -> Tensor:
        """`h = τ f/‖f‖`, (N, d), in float32 at least: what the classifier and the collapse metrics are about."""
        f = features.to(torch.promote_types(features.dtype, torch.float32))
        return self.temperature * F.normalize(f, dim=1)

    def forward(self, features: Tensor, labels: Tensor | None = None, update: bool = True) -> Tensor:
        """Logits (N, K) of features (N, d), in their dtype.

        Parameters
        ----------
        features : (N, d)
        labels : (N,) integers in 0…K−1, optional
            In training, the ETF heads bring their class means up to date with them. Without labels, and in eval mode,
            the stored classifier is used.
        update : bool
            False: the classifier of this batch is solved for as usual, but nothing is stored.

        Raises
        ------
        ValueError
            If shapes do not fit, and on the CPU if a label lies outside 0…K−1 or a feature is not finite. On other
            devices that check would make the host wait: there NaN propagates to the logits.
        """
        check_batch(features, labels, self.num_features, self.num_classes)
        h = self.normalise(features)
        weight, bias = self.weight, self.bias
        if self.training and labels is not None:
            with without_autocast(h.device):
                weight, bias = self.classifier_for(h, labels, update)
        return F.linear(h, weight.to(h.dtype), bias.to(h.dtype)).to(features.dtype)

    def classifier_for(self, h: Tensor, labels: Tensor, update: bool) -> tuple[Tensor, Tensor]:
        """W (K, d) and b (K,) for a training batch, with gradient; `update` stores them and what they came from."""
        return self.weight, self.bias

    def after_step(self) -> None:
        """To be called after every optimizer step; only the learned head needs it."""

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, num_classes={self.num_classes}, temperature={self.temperature}"


def _translate_old_buffers(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A state dict of an earlier version, under the present names."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        present = prefix + present_buffer(key[len(prefix) :])
        if present != key:
            state_dict[present] = state_dict.pop(key)
