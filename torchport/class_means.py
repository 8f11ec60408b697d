"""Moving averages of class means and global mean, over steps and processes.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 4. Step t (from 1) mixes the batch's centred class
means into the running ones, `H_t = α_t · batch + (1−α_t) · H_{t−1}` with `α_t = max(2/(t+1), floor)`; the gradient
flows through the batch term only. A class that the batch does not hold keeps its running value, and one that was
never seen is zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .distributed import all_reduce_sum

MEANS_AS_OLD_AS = 30  # batches: the weight that means which were set keep against later batches; a first trial's value


class ClassMeans(nn.Module):
    """Running class means of features, centred by the batch's global mean, and the running global mean.

    Parameters
    ----------
    num_features, num_classes : int
        d and K.
    floor : float
        The least weight of a new batch.

    Attributes
    ----------
    class_means : (d, K) buffer
        `H`, class means minus the global mean.
    global_mean : (d,) buffer
    seen : (K,) bool buffer
        Classes that any batch has held so far.
    steps : int64 buffer
        t, the number of batches.

    Examples
    --------
    >>> running = ClassMeans(num_features=2, num_classes=2)
    >>> H, global_mean = running(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    >>> H.tolist(), global_mean.tolist()
    ([[0.5, -0.5], [-0.5, 0.5]], [0.5, 0.5])
    """

    def __init__(self, num_features: int, num_classes: int, floor: float = 1e-4) -> None:
        super().__init__()
        self.num_features, self.num_classes, self.floor = num_features, num_classes, floor
        self.class_means: Tensor
        self.global_mean: Tensor
        self.seen: Tensor
        self.steps: Tensor
        self.register_buffer("class_means", torch.zeros(num_features, num_classes))
        self.register_buffer("global_mean", torch.zeros(num_features))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor, labels: Tensor, update: bool = True) -> tuple[Tensor, Tensor]:
        """Average over one more batch.

        Parameters
        ----------
        features : (N, d)
        labels : (N,) integers in 0…K−1
        update : bool
            Whether the new averages are stored.

        Returns
        -------
        H : (d, K)
            The new average, with gradient to this batch's features.
        global_mean : (d,)

        Raises
        ------
        ValueError
            If shapes do not fit, and on the CPU if a label lies outside 0…K−1 or a feature is not finite. On other
            devices that check would make the host wait: there an invalid label is a device-side assertion, and NaN
            propagates to the loss.
        """
        check_batch(features, labels, self.num_features, self.num_classes)
        sums, counts = class_sums(features.to(self.class_means.dtype), labels, self.num_classes)
        total = counts.sum()
        batch_mean = sums.sum(1) / total
        present = counts > 0
        batch = sums / counts.clamp(min=1) - batch_mean[:, None]

        steps = self.steps + 1
        rate = (2.0 / (steps.double() + 1)).clamp(min=self.floor).to(sums.dtype)  # α_t
        H = self.class_means + torch.where(present, rate, 0.0) * (batch - self.class_means)
        global_mean = self.global_mean + rate.expand(self.num_features) * (batch_mean - self.global_mean)

        if update:
            store(self, class_means=H, global_mean=global_mean, seen=self.seen | present, steps=steps)
        return H, global_mean

    @torch.no_grad()
    def set_means(
        self, class_mean_rows: Tensor, counts: Tensor | None = None, global_mean: Tensor | None = None
    ) -> None:
        """Put exact means in place of the running ones; averaging goes on from there, as if after some batches.

        Parameters
        ----------
        class_mean_rows : (K, d)
            Means per class, not centred; rows are classes.
        counts : (K,), optional
            Samples of each class: a class without samples counts as never seen, and the global mean is weighted by
            them. Default: every class was seen, equally often.
        global_mean : (d,), optional
            Default: the weighted mean of the class means.

        Raises
        ------
        ValueError
            If a shape is wrong, an entry is not finite, or no class has samples.
        """
        d, K = self.num_features, self.num_classes
        found = tuple(class_mean_rows.shape)
        if found != (K, d):
            remedy = " Pass class_mean_rows.T: its rows have to be the classes." if found == (d, K) else ""
            raise ValueError(f"class_mean_rows has shape {found}; expected ({K}, {d}), a row for each class.{remedy}")
        if counts is not None and (counts.shape != (K,) or bool((counts < 0).any()) or not bool(counts.sum() > 0)):
            raise ValueError(
                f"counts has shape {tuple(counts.shape)} and sum {float(counts.sum()):g}; expected ({K},) numbers of "
                "samples, not negative and not all zero."
            )
        if global_mean is not None and global_mean.shape != (d,):
            raise ValueError(f"global_mean has shape {tuple(global_mean.shape)}; expected ({d},).")
        rows = class_mean_rows.detach().to(self.class_means.device, torch.float64)
        n = torch.ones(K, dtype=rows.dtype, device=rows.device) if counts is None else counts.detach().to(rows)
        seen = n > 0
        rows = torch.where(seen[:, None], rows, 0.0)
        mean = n / n.sum() @ rows if global_mean is None else global_mean.detach().to(rows)
        if not bool(rows.isfinite().all() & mean.isfinite().all()):
            raise ValueError("class_mean_rows or global_mean hold NaN or infinite entries of classes with samples.")
        H = torch.where(seen[:, None], rows - mean, 0.0).T
        store(self, class_means=H, global_mean=mean, seen=seen, steps=self.steps.clamp(min=MEANS_AS_OLD_AS))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClassMeans:
        """`.to(bfloat16)` and `.half()` stop at float32: an average that moves by 1e-4 would stand still in less."""
        super()._apply(fn, recurse)
        if self.class_means.dtype in (torch.bfloat16, torch.float16):
            self.class_means, self.global_mean = self.class_means.float(), self.global_mean.float()
        return self


def store(module: nn.Module, **values: Tensor) -> None:
    """Give buffers new values, without gradient.

    In place, so that CUDA graphs and shared references see them. A compiler gets new tensors instead: torch 2.13
    may recompute a forward value during the backward pass, and would read an input that was overwritten meanwhile.
    """
    for name, value in values.items():
        if torch.compiler.is_compiling():
            setattr(module, name, value.detach().to(getattr(module, name).dtype))
        else:
            getattr(module, name).copy_(value.detach())


def class_sums(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sums of features per class (d, K), and how many there are (K,), over all processes."""
    N, d = features.shape
    # One buffer, one all-reduce: a last column of ones counts. No N × K matrix is built.
    with_ones = torch.cat([features, features.new_ones(N, 1)], 1)
    sums = features.new_zeros(num_classes, d + 1).index_add(0, labels, with_ones)
    sums = all_reduce_sum(sums)
    return sums[:, :d].T.contiguous(), sums[:, d].detach()


def check_batch(features: Tensor, labels: Tensor | None, num_features: int, num_classes: int) -> None:
    """Refuse a batch that could only give wrong numbers; on the CPU its values are checked too."""
    if features.ndim != 2 or features.shape[1] != num_features:
        raise ValueError(f"features have shape {tuple(features.shape)}; expected (N, {num_features}).")
    if labels is None:
        return
    if labels.shape != features.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; expected ({len(features)},), one per row of features, at "
            "least one."
        )
    if labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"labels are {labels.dtype}; expected int64 class indices 0…{num_classes - 1}.")
    if features.device.type != "cpu" or torch.compiler.is_compiling():
        return
    values = features.detach()
    if not (values.sum().isfinite() or values.isfinite().all()):  # the sum alone is quicker
        raise ValueError(
            "features hold NaN or infinite entries: lower the learning rate, or look for the layer that made them."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels run from {low} to {high}; expected 0…{num_classes - 1}. Renumber them, or give the head a larger "
            "num_classes."
        )
