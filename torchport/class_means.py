"""Moving averages of class means and global mean, over steps and processes.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248. Step t (from 1) mixes the batch's centred
class means into the running ones, `H_t = α_t · batch + (1−α_t) · H_{t−1}` with `α_t = max(2/(t+1), floor)`; the
gradient flows through the batch term only. A class that is absent from the batch keeps its running value. A class not
seen yet is zero. A class seen for the first time enters at rate 1; with rate α_t it would stay too short for thousands
of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..common.arguments import real_number, whole_number
from .arguments import check_dense, check_device, check_finite, check_floats
from .distributed import all_reduce_sum
from .targets import INTEGERS, checked_targets, class_sums

Averaging = Literal["step", "class"]
AVERAGING = ("step", "class")
# Batches: the age of given means in the average. In benchmarks/results/kept-means.json ages of 3 to 30 do not differ
# beyond the spread over seeds; 0, and 100 or more, lose one to two points.
MEANS_AS_OLD_AS = 10


class ClassMeans(nn.Module):
    """Running class means of features, centred by the batch's global mean, and the running global mean.

    Parameters
    ----------
    num_features, num_classes : int
        d and K.
    floor : float
        The least weight of a new batch.
    averaging : {"step", "class"}
        The rate of a class that the batch holds:

        - "step": the paper's `α_t` for every class, and 1 for a class seen for the first time;
        - "class": `α_c = max(2/(n_c+1), floor)`, with n_c the number of batches that held class c, this one included.
          The means have less bias, but more noise, where most batches lack most classes.

        Both are equal if every batch holds every class.

    Attributes
    ----------
    class_means : (d, K) buffer
        `H`, class means minus the global mean.
    global_mean : (d,) buffer
    batches : (K,) int64 buffer
        n_c, the number of batches that held the class.
    steps : int64 buffer
        t, the number of batches.

    Raises
    ------
    ValueError
        If a size is not a whole number, `floor` is not a number, or `averaging` is unknown.

    Examples
    --------
    >>> running = ClassMeans(num_features=2, num_classes=2)
    >>> H, global_mean = running(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    >>> H.tolist(), global_mean.tolist()
    ([[0.5, -0.5], [-0.5, 0.5]], [0.5, 0.5])
    """

    def __init__(
        self, num_features: int, num_classes: int, floor: float = 1e-4, *, averaging: Averaging = "step"
    ) -> None:
        super().__init__()
        if averaging not in AVERAGING:
            raise ValueError(f"averaging = {averaging!r}; expected one of {', '.join(map(repr, AVERAGING))}.")
        num_features, num_classes = whole_number("num_features", num_features), whole_number("num_classes", num_classes)
        self.num_features, self.num_classes = num_features, num_classes
        self.floor, self.averaging = real_number("floor", floor), averaging
        self.class_means: Tensor
        self.global_mean: Tensor
        self.batches: Tensor
        self.steps: Tensor
        dtype = at_least_single(torch.get_default_dtype())
        self.register_buffer("class_means", torch.zeros(num_features, num_classes, dtype=dtype))
        self.register_buffer("global_mean", torch.zeros(num_features, dtype=dtype))
        self.register_buffer("batches", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def seen(self) -> Tensor:
        """Classes with a sample in any batch so far, (K,) bool."""
        return self.batches > 0

    def forward(self, features: Tensor, labels: Tensor, update: bool = True) -> tuple[Tensor, Tensor]:
        """Add one batch to the averages.

        Parameters
        ----------
        features : (N, d)
        labels : (N,) integers in 0…K−1, −100 for a row to ignore; or soft labels (N, K)
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
            devices this check would synchronise: there an invalid label is a device-side assertion, and a batch that is
            not finite does not change the stored averages.
        """
        targets = checked_targets(features, labels, self.num_features, self.num_classes)
        assert targets is not None
        check_device("features", features, self.class_means)
        sums, counts = self.batch_sums(features, targets)
        check_finite("features are too large: the sum over a class", sums)
        return self.average(sums, counts, update)

    def batch_sums(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of features per class (d, K), and their numbers (K,), over all processes."""
        if self.steps.is_floating_point():  # set one by one by a loader that casts, as Transformers' does
            keep_single(self, "class_means", "global_mean")
            keep_integer(self, "batches", "steps")
        sums = all_reduce_sum(class_sums(features.to(self.class_means.dtype), targets, self.num_classes))
        d = self.num_features
        return sums[:, :d].mT, sums[:, d].detach()

    def average(self, sums: Tensor, counts: Tensor, update: bool = True) -> tuple[Tensor, Tensor]:
        """H (d, K) and the global mean (d,) after a batch with these sums (d, K) and counts (K,)."""
        total = counts.sum()
        held = total > 0  # false if every row is ignored
        batch_mean = sums.sum(1) / torch.where(held, total, 1.0)
        present = counts > 0
        batch = sums / torch.where(present, counts, 1.0) - batch_mean[:, None]

        steps, batches = self.steps + held, self.batches + present
        step_rate = (2.0 / (steps.double() + 1)).clamp(min=self.floor)  # α_t
        if self.averaging == "step":
            rate = torch.where(batches > 1, step_rate, 1.0)
        else:
            rate = (2.0 / (batches.double() + 1)).clamp(min=self.floor)  # α_c
        rate = torch.where(present, rate, 0.0).to(sums.dtype)
        H = torch.addcmul(self.class_means, rate, batch - self.class_means)
        mean_rate = torch.where(held, step_rate, 0.0).to(sums.dtype)
        global_mean = torch.addcmul(self.global_mean, mean_rate, batch_mean - self.global_mean)

        if update:
            values = {"class_means": H, "global_mean": global_mean, "batches": batches, "steps": steps}
            store(self, **only_finite(self, values, H, global_mean))
        return H, global_mean

    @torch.no_grad()
    def set_means(
        self, class_mean_rows: Tensor, counts: Tensor | None = None, global_mean: Tensor | None = None
    ) -> None:
        """Replace the running means by exact ones; averaging continues from there, as if after at least ten batches.

        Parameters
        ----------
        class_mean_rows : (K, d)
            Means per class, not centred; rows are classes.
        counts : (K,), optional
            Number of samples of each class, the weights of the global mean. A class without samples counts as not
            seen. Default: equal numbers.
        global_mean : (d,), optional
            Default: the weighted mean of the class means.

        Raises
        ------
        ValueError
            If a shape is wrong, an entry is not finite, or no class has samples.
        """
        d, K = self.num_features, self.num_classes
        check_floats(
            "class_mean_rows", class_mean_rows, f"a floating-point matrix ({K}, {d}), a row for each class", values=True
        )
        found = tuple(class_mean_rows.shape)
        if found != (K, d):
            remedy = " Pass class_mean_rows.T: its rows must be the classes." if found == (d, K) else ""
            raise ValueError(f"class_mean_rows has shape {found}; expected ({K}, {d}), a row for each class.{remedy}")
        if counts is not None:
            check_dense("counts", counts, f"({K},) numbers of samples")
            counts = counts.double() if counts.dtype in INTEGERS else counts
            check_floats("counts", counts, f"({K},) numbers of samples", values=True)
        if counts is not None and (counts.shape != (K,) or bool((counts < 0).any()) or not bool(counts.sum() > 0)):
            raise ValueError(
                f"counts has shape {tuple(counts.shape)} and sum {float(counts.sum()):g}; expected ({K},) numbers of "
                "samples, not negative and not all zero."
            )
        if global_mean is not None:
            check_floats("global_mean", global_mean, f"a floating-point vector ({d},)", values=True)
        if global_mean is not None and global_mean.shape != (d,):
            raise ValueError(f"global_mean has shape {tuple(global_mean.shape)}; expected ({d},).")
        rows = class_mean_rows.detach().to(self.class_means.device, torch.float64)
        n = torch.ones(K, dtype=rows.dtype, device=rows.device) if counts is None else counts.detach().to(rows)
        seen = n > 0
        rows = torch.where(seen[:, None], rows, 0.0)
        mean = n / n.sum() @ rows if global_mean is None else global_mean.detach().to(rows)
        if not bool(rows.isfinite().all() & mean.isfinite().all()):
            raise ValueError("class_mean_rows or global_mean contain NaN or infinite entries of classes with samples.")
        H = torch.where(seen[:, None], rows - mean, 0.0).T
        batches = torch.where(seen, self.batches.clamp(min=MEANS_AS_OLD_AS), 0)
        steps = self.steps.clamp(min=MEANS_AS_OLD_AS)
        store(self, class_means=H, global_mean=mean, batches=batches, steps=steps)

    @torch.no_grad()
    def add_classes(self, n: int) -> None:
        """Append n classes that have not been seen; means and counts of the others do not change."""
        d = self.num_features
        self.class_means = torch.cat([self.class_means, self.class_means.new_zeros(d, n)], 1)
        self.batches = torch.cat([self.batches, self.batches.new_zeros(n)])
        self.num_classes += n

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClassMeans:
        """`.to(bfloat16)` and `.half()` keep the averages in float32: half precision would lose changes of 1e-4."""
        super()._apply(fn, recurse)
        keep_single(self, "class_means", "global_mean")
        return self


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """The dtype itself, or float32 for half precision."""
    return torch.promote_types(dtype, torch.float32)


def keep_single(module: nn.Module, *names: str) -> None:
    """Cast buffers in half precision back to float32."""
    for name in names:
        value: Tensor = getattr(module, name)
        setattr(module, name, value.to(at_least_single(value.dtype)))


def keep_integer(module: nn.Module, *names: str) -> None:
    """Cast counters in floating point back to integers."""
    for name in names:
        value: Tensor = getattr(module, name)
        if value.is_floating_point():
            setattr(module, name, value.long())


def only_finite(module: nn.Module, values: dict[str, Tensor], *decisive: Tensor) -> dict[str, Any]:
    """The values, or the module's present ones if a decisive tensor is not finite.

    In eager mode on the CPU such a batch has been refused before; elsewhere the device decides, without synchronising.
    """
    if decisive[0].device.type == "cpu" and not torch.compiler.is_compiling():
        return values
    finite = torch.stack([x.isfinite().all() for x in decisive]).all()
    return {name: torch.where(finite, value, getattr(module, name)) for name, value in values.items()}


def store(module: nn.Module, **values: Tensor) -> None:
    """Set buffers to new values, without gradient.

    In place, so that CUDA graphs and shared references see them. Under a compiler they are new tensors: torch 2.13 may
    recompute a forward value during the backward pass, and would read an input that was overwritten meanwhile.
    """
    for name, value in values.items():
        if torch.compiler.is_compiling():
            setattr(module, name, value.detach().to(getattr(module, name).dtype))
        else:
            getattr(module, name).copy_(value.detach())
