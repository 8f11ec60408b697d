"""What every head is: features in, logits of the classifier in force out."""

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

    Not thread-safe: a training step reads and writes buffers, and of steps from several threads some would be lost.

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
        The head's name in settings and exported files; "pinned" where rows of W are.
    pinned : (P, d) buffer or None
        The rows of W that `add_classes(…, pin=True)` keeps as they are.

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
        self.register_buffer("pinned", None)  # in the state_dict only where rows are pinned
        self.register_load_state_dict_pre_hook(_translate_old_names)
        self.register_load_state_dict_pre_hook(_take_over_pinned)

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
        check_device("features", features, self.bias)
        h = self.normalise(features)
        weight, bias = self.classifier_for(h, targets, update)
        return F.linear(h, weight.to(h.dtype), bias.to(h.dtype)).to(features.dtype)

    def classifier_for(self, h: Tensor, targets: Tensor | None, update: bool) -> tuple[Tensor, Tensor]:
        """W (K, d) and b (K,) for a batch, with gradient where they have one."""
        return self.weight, self.bias

    @torch.no_grad()
    def add_classes(self, n: int, *, pin: bool = False) -> Tensor:
        """Make room for n more classes, which get the numbers K…K+n−1; call it on every process alike.

        Running means and counts of the old classes are kept, and the new ones count as never seen. What the old
        vectors become is the head's own:

        * learned and linear: they stay, and the new rows start at random. The rows are a new Parameter object, which
          the optimizer has to be given: make a new one, or add a group; `DistributedDataParallel` has to be wrapped
          around the model anew. A warning says so;
        * class mean: they stay, and a new row is zero until its class is seen;
        * fixed, implicit, tight frame for K+n ≤ d+1: the frame is extended orthonormally. All old vectors lean the
          same way by the least angle that makes room for the larger simplex, `arctan √(n/((K+n)(K−1)))`. It is the
          proximal point of the next solution, which turns the new vectors to the means of the new classes, and the
          old ones no further than that asks for;
        * tight frame for K ≥ d+1: they stay, since `[F 0]` is tight as well; a new row is zero until its class is seen.

        The temperature stays; a head that is built anew for this one's state needs the same one. ProNC (Wang et al.
        2025, arXiv 2505.24254) extends an ETF in the same way, by Gram–Schmidt once per task, and keeps it as the
        target of that whole task, as the fixed head does; the others follow the class means from there.

        Parameters
        ----------
        n : int
            At least 1.
        pin : bool
            Keep the old rows of W exactly as they are, now and in later steps: only new rows follow means or training.
            W is an ETF or a tight frame no more, so that its angles and its distance to the class means are no longer
            those of the solution, and `kind` becomes "pinned". The bias is not pinned. Rows that are pinned stay so.

        Returns
        -------
        drift : (K,) float64
            Angles in degrees between old and new rows of the old classes.

        Raises
        ------
        ValueError
            If n is no positive integer, or K+n classes do not fit into d features. Nothing is changed then.

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
        """Refuse a number of classes that this head cannot serve; any will do where a head has no reason."""

    def grow(self, n: int) -> None:
        """Give all that has one entry per class n more, `num_classes` being the new number."""
        raise NotImplementedError

    def fit(self, features: Tensor, labels: Tensor, *, batch_size: int = 8192) -> Self:
        """Set the classifier from all features of a frozen backbone at once, where there is a closed form."""
        raise NotImplementedError(
            f"{type(self).__name__} has no closed form to fit features by: train it with an optimizer, or take a "
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
            self.__dict__.pop("kind", None)  # the class's own

    def _with_pinned(self, weight: Tensor) -> Tensor:
        """W (K, d) with the pinned rows in their places."""
        if self.pinned is None:
            return weight
        return torch.cat([self.pinned.to(weight.dtype), weight[len(self.pinned) :]])


def _translate_old_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """The state of an earlier version under the present names."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        present = prefix + present_buffer(key[len(prefix) :])
        if present != key:
            state_dict[present] = state_dict.pop(key)


def _take_over_pinned(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """As many pinned rows as the state has, whose values torch then loads."""
    assert isinstance(module, Head)
    found = state_dict.get(f"{prefix}pinned")
    module._pin(None if found is None else module.weight.detach().new_empty(found.shape))
