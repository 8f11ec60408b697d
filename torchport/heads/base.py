"""The base class of all heads: from features to the logits of the current classifier."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...common.arguments import whole_number
from ...common.old_names import present_buffer
from ..arguments import check_device
from ..class_means import at_least_single
from ..targets import checked_targets
from .growing import drift_in_degrees


class Head(nn.Module):
    """A linear classifier on features (N, d): `logits = W h + b` with `h = normalise(features)`.

    Not thread-safe: training steps read and write buffers, so steps from several threads may be lost.

    Parameters
    ----------
    num_features, num_classes : int
        d ≥ 1 and K ≥ 2.

    Attributes
    ----------
    weight : (K, d)
    bias : (K,)
        The current classifier.
    temperature : float or None
        τ, the norm of h; None for a head on raw features.
    kind : str
        The head's name in settings and exported files; "pinned" if rows of W are pinned.
    pinned : (P, d) buffer or None
        The rows of W that `add_classes(…, pin=True)` keeps constant.

    Raises
    ------
    ValueError
        If d < 1 or K < 2.

    Examples
    --------
    >>> from nearest_etf.torchport import LinearHead
    >>> head: Head = LinearHead(num_features=8, num_classes=3)
    >>> head(torch.randn(4, 8)).shape, head.weight.shape, head.bias.shape, head.kind
    (torch.Size([4, 3]), torch.Size([3, 8]), torch.Size([3]), 'linear')
    """

    kind: str
    weight: Tensor
    bias: Tensor
    pinned: Tensor | None

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        d, K = whole_number("num_features", num_features), whole_number("num_classes", num_classes)
        if d < 1 or K < 2:
            raise ValueError(f"num_features = {d} and num_classes = {K}; expected at least 1 and 2, in this order.")
        self.num_features, self.num_classes = d, K
        self.register_buffer("pinned", None)  # in the state_dict only if rows are pinned
        self.register_load_state_dict_pre_hook(_translate_old_names)
        self.register_load_state_dict_pre_hook(_allocate_pinned)

    @property
    def temperature(self) -> float | None:
        """τ, the norm of the scaled features; None for a head on raw features."""
        return None

    def normalise(self, features: Tensor) -> Tensor:
        """The input of the classifier and of the collapse metrics, (N, d), in float32 at least: here, the features."""
        return features.to(at_least_single(features.dtype))

    def forward(self, features: Tensor, labels: Tensor | None = None, update: bool = True) -> Tensor:
        """Logits (N, K) of features (N, d), in the dtype of the features.

        Parameters
        ----------
        features : (N, d)
        labels : (N,) integers in 0…K−1, or (N, K) soft labels, optional
            In training mode, the heads that follow class means update them; a row with label −100 is ignored. Without
            labels, and in eval mode, the stored classifier is used.
        update : bool
            False: with labels, the classifier of this batch is computed as usual, but nothing is stored; without
            labels, the stored classifier is used without a warning.

        Raises
        ------
        ValueError
            If shapes do not fit, and on the CPU if a label lies outside 0…K−1 or a feature is not finite. On other
            devices this check would synchronise: there the logits are NaN, and nothing is stored.
        RuntimeError
            For a head that follows class means, in training: under `nn.DataParallel`, on a device without float64, or
            if activation checkpointing computes a batch a second time.
        """
        targets = checked_targets(features, labels, self.num_features, self.num_classes)
        check_device("features", features, self.bias)
        h = self.normalise(features)
        weight, bias = self.classifier_for(h, targets, update)
        return F.linear(h, weight.to(h.dtype), bias.to(h.dtype)).to(features.dtype)

    def classifier_for(self, h: Tensor, targets: Tensor | None, update: bool) -> tuple[Tensor, Tensor]:
        """W (K, d) and b (K,) for a batch, with their gradient if there is one."""
        return self.weight, self.bias

    @torch.no_grad()
    def add_classes(self, n: int, *, pin: bool = False) -> Tensor:
        """Add n classes, with the numbers K…K+n−1; call it on every process.

        Running means and counts of the old classes do not change, and the new classes count as not seen. The change of
        the old vectors depends on the head:

        * learned and linear: none; the new rows are random. The rows become a new Parameter object, as a warning
          reports: make a new optimizer or add a parameter group, and wrap the model in `DistributedDataParallel` again;
        * class mean: none; a new row is zero until its class is seen;
        * fixed, implicit, and tight frame for K+n ≤ d+1: the frame is extended orthonormally. All old vectors turn in
          the same direction, by the least angle that admits the larger simplex, `arctan √(n/((K+n)(K−1)))`. The frame
          is the proximal point of the next solution, which turns the new vectors to the means of the new classes, and
          the old ones no further than necessary;
        * tight frame for K ≥ d+1: none, since `[F 0]` is tight too; a new row is zero until its class is seen.

        The temperature does not change; to load this head's state, build a head with the same one. ProNC (Wang et al.
        2025, arXiv 2505.24254) also extends an ETF, by Gram–Schmidt once per task, and keeps it as the target during
        that task, as the fixed head does; the others then follow the class means.

        Parameters
        ----------
        n : int
            At least 1.
        pin : bool
            Keep the old rows of W exactly constant, also in later steps: only new rows follow means or training. Then W
            is no longer an ETF or a tight frame, its angles and its distance to the class means differ from those of
            the solution, and `kind` becomes "pinned". The bias is not pinned. Later calls do not unpin these rows.

        Returns
        -------
        drift : (K,) float64
            Angles in degrees between old and new rows of the old classes.

        Raises
        ------
        ValueError
            If n is not a positive integer, or K+n classes do not fit into d features. Then nothing changes.

        Examples
        --------
        >>> from nearest_etf.torchport import ClassMeanHead, FixedETFHead
        >>> head = FixedETFHead(num_features=16, num_classes=8)
        >>> head.add_classes(2).round(decimals=1).unique().tolist(), head.weight.shape
        ([9.6], torch.Size([10, 16]))
        >>> head.add_classes(1, pin=True).max().item(), head.kind
        (0.0, 'pinned')
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n = {n!r}; expected the number of new classes, an integer of at least 1.")
        self.check_num_classes(self.num_classes + n)
        before = self.weight.detach().clone()
        if pin:
            self._pin(before)
        self.num_classes += n
        self.grow(n)
        return drift_in_degrees(before, self.weight[: len(before)])

    def check_num_classes(self, num_classes: int) -> None:
        """Refuse a number of classes that this head does not support; by default, none."""

    def grow(self, n: int) -> None:
        """Add n entries to everything with one entry per class; `num_classes` is the new number already."""
        raise NotImplementedError

    def fit(self, features: Tensor, labels: Tensor, *, batch_size: int = 8192) -> Self:
        """Set the classifier from all features of a frozen backbone at once, if there is a closed form."""
        raise NotImplementedError(
            f"{type(self).__name__} has no closed form for fit: train it with an optimizer, or take a "
            "LearnedHead, whose rows start at the class means."
        )

    def extra_repr(self) -> str:
        pinned = "" if self.pinned is None else f", pinned={len(self.pinned)}"
        return f"num_features={self.num_features}, num_classes={self.num_classes}{pinned}"

    def _pin(self, rows: Tensor | None) -> None:
        self.pinned = rows
        if rows is not None:
            self.kind = "pinned"
        else:
            self.__dict__.pop("kind", None)  # back to that of the class

    def _with_pinned(self, weight: Tensor) -> Tensor:
        """W (K, d), with the pinned rows in place of its first ones."""
        if self.pinned is None:
            return weight
        return torch.cat([self.pinned.to(weight.dtype), weight[len(self.pinned) :]])


def _translate_old_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the entries of an earlier version to the present names."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        present = prefix + present_buffer(key[len(prefix) :])
        if present != key:
            state_dict[present] = state_dict.pop(key)


def _allocate_pinned(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Allocate as many pinned rows as the state has; torch then loads their values."""
    assert isinstance(module, Head)
    found = state_dict.get(f"{prefix}pinned")
    module._pin(None if found is None else module.weight.detach().new_empty(found.shape))
