"""The base of the heads that follow the class means of training batches: all but the linear and the learned one."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..class_means import Averaging, ClassMeans
from ..procrustes import Formulation, without_autocast
from ..simplex import check_sizes
from .normalised import NormalisedHead, Temperature


class AveragingHead(NormalisedHead):
    """A head that averages class means over training batches, and stores its classifier in buffers.

    Parameters
    ----------
    num_features, num_classes, temperature, settings
        As for `NormalisedHead`.
    averaging : {"step", "class"}
        How the class means are averaged, as for `ClassMeans`.
    formulation : {"paper", "gauge-free"} or None
        The formulation of the simplex ETF, which limits the number of classes; None for a head without limit.

    Attributes
    ----------
    running : ClassMeans
        The running class means of `normalise(features)`.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        temperature: Temperature,
        averaging: Averaging,
        formulation: Formulation | None,
        settings: dict[str, float] | None = None,
    ) -> None:
        if formulation is not None:  # first: too many classes may also warn about the temperature
            check_sizes(num_features, num_classes, formulation)
        super().__init__(num_features, num_classes, temperature, settings)
        self._simplex = formulation
        self.running = ClassMeans(num_features, num_classes, averaging=averaging)
        self._warned_of_missing_labels = False

    def classifier_for(self, h: Tensor, targets: Tensor | None, update: bool) -> tuple[Tensor, Tensor]:
        """The classifier for a labelled training batch, else the stored one."""
        if self.training and targets is not None:
            self._refuse_unsupported_use(h.device.type)
            with without_autocast(h.device):
                return self.follow(*self.running.batch_sums(h, targets), update)
        if self.training and update:
            self._warn_of_missing_labels()
        if torch.is_grad_enabled():  # autograd may save them, and a later step overwrites the buffers
            return self.weight.clone(), self.bias.clone()
        return self.weight, self.bias

    def follow(self, sums: Tensor, counts: Tensor, update: bool) -> tuple[Tensor, Tensor]:
        """W and b for a batch with these class sums (d, K) and counts (K,); `update` stores the new state."""
        raise NotImplementedError

    @torch.no_grad()
    def set_means(
        self, class_mean_rows: Tensor, counts: Tensor | None = None, global_mean: Tensor | None = None
    ) -> None:
        """Set the running means from a pass over a data set, and the classifier; averaging continues from there.

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
        self.running.set_means(class_mean_rows, counts, global_mean)
        self.refresh()

    def refresh(self) -> None:
        """Set the classifier from the running means, for example after averaging them over models."""
        raise NotImplementedError

    def check_num_classes(self, num_classes: int) -> None:
        """Refuse more classes than a simplex ETF in d dimensions has vertices, if W is one."""
        if self._simplex is not None:
            check_sizes(self.num_features, num_classes, self._simplex)

    def grow(self, n: int) -> None:
        """Add classes without means, with zero rows and biases."""
        self.running.add_classes(n)
        self.weight, self.bias = (torch.cat([x, x.new_zeros(n, *x.shape[1:])]) for x in (self.weight, self.bias))

    def _refuse_unsupported_use(self, device: str) -> None:
        if torch.compiler.is_compiling():
            return
        name = type(self).__name__
        if getattr(self, "_is_replica", False):
            raise RuntimeError(
                f"{name} under nn.DataParallel discards its class means with every replica: use "
                "nn.parallel.DistributedDataParallel, which sums them over processes."
            )
        if device == "mps":
            raise RuntimeError(
                f"{name} needs float64, which MPS lacks: keep the head on the CPU (model.head.cpu()), and give it "
                "features.cpu()."
            )
        if torch._C._current_graph_task_id() != -1:  # during a backward pass
            raise RuntimeError(
                f"{name} is computed a second time during the backward pass, as by torch.utils.checkpoint; its class "
                "means have changed since, so the gradient would be wrong. Checkpoint the backbone alone."
            )

    def _warn_of_missing_labels(self) -> None:
        if self._warned_of_missing_labels or torch.compiler.is_compiling():
            return
        self._warned_of_missing_labels = True
        warnings.warn(
            f"{type(self).__name__} without labels in training mode does not change its classifier: call "
            "head(features, labels), or model(images, labels), so that it follows the class means; or pass "
            "update=False if this is intended. (Shown once.)",
            UserWarning,
            stacklevel=5,
        )
