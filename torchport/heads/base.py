"""What every head is: features in, logits of the classifier in force out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ...common.old_names import present_buffer
from ..class_means import at_least_single
from ..targets import checked_targets


class Head(nn.Module):
    """A linear classifier on features (N, d): `logits = W h + b` with `h = normalise(features)`.

    Parameters
    ----------
    num_features, num_classes : int
        d ≥ 1 and K ≥ 2.

    Attributes
    ----------
    weight : (K, d)
    bias : (K,)
        The classifier in force.
    temperature : float or None
        τ, the norm of h; None where features are taken as they come.
    kind : str
        The head's name in settings and exported files.
    """

    kind: str
    weight: Tensor
    bias: Tensor

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        if num_features < 1 or num_classes < 2:
            raise ValueError(
                f"num_features = {num_features} and num_classes = {num_classes}; expected at least 1 and 2, in this "
                "order."
            )
        self.num_features, self.num_classes = num_features, num_classes
        self.register_load_state_dict_pre_hook(_translate_old_names)

    @property
    def temperature(self) -> float | None:
        """τ, the norm that features are scaled to; None where they are taken as they come."""
        return None

    def normalise(self, features: Tensor) -> Tensor:
        """What the classifier and the collapse metrics are about, (N, d), in float32 at least: here, the features."""
        return features.to(at_least_single(features.dtype))

    def forward(self, features: Tensor, labels: Tensor | None = None, update: bool = True) -> Tensor:
        """Logits (N, K) of features (N, d), in their dtype.

        Parameters
        ----------
        features : (N, d)
        labels : (N,) integers in 0…K−1, or (N, K) soft labels, optional
            In training, the ETF heads bring their class means up to date with them; −100 leaves a row out. Without
            labels, and in eval mode, the stored classifier is used.
        update : bool
            False: with labels the classifier of this batch is solved for as usual, but nothing is stored; without
            labels the stored classifier is meant, and nothing is warned of.

        Raises
        ------
        ValueError
            If shapes do not fit, and on the CPU if a label lies outside 0…K−1 or a feature is not finite. On other
            devices that check would make the host wait: there the logits are NaN, and nothing is stored.
        RuntimeError
            Of an ETF head in training: under `nn.DataParallel`, on a device without float64, and where activation
            checkpointing computes a batch a second time.
        """
        targets = checked_targets(features, labels, self.num_features, self.num_classes)
        h = self.normalise(features)
        weight, bias = self.classifier_for(h, targets, update)
        return F.linear(h, weight.to(h.dtype), bias.to(h.dtype)).to(features.dtype)

    def classifier_for(self, h: Tensor, targets: Tensor | None, update: bool) -> tuple[Tensor, Tensor]:
        """W (K, d) and b (K,) for a batch, with gradient where they have one."""
        return self.weight, self.bias

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, num_classes={self.num_classes}"


def _translate_old_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """The state of an earlier version under the present names."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        present = prefix + present_buffer(key[len(prefix) :])
        if present != key:
            state_dict[present] = state_dict.pop(key)
