"""Moving averages of class means and global mean, over steps and processes.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 4. Step t (from 1) mixes the batch's centred class
means into the running ones, `H_t = α_t · batch + (1−α_t) · H_{t−1}` with `α_t = max(2/(t+1), floor)`; the gradient
flows through the batch term only. A class that the batch does not hold keeps its running value, one that was never
seen is zero, and one seen for the first time enters at rate 1: at α_t it would stay too short for thousands of steps.
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
# Batches: the age at which means that were set go on being averaged. In benchmarks/results/kept-means.json 3 to 30 do
# as well as each other, within seeds, and both forgetting (0) and clinging (100 and more) lose one to two points.
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
        "step" is the paper's rate, the same for all classes of a batch. "class" gives each class its own,
        `α_c = max(2/(n_c+1), floor)` with n_c the batches that held it: truer means of rare classes, and noisier ones
        where a batch holds about one sample of a class. Both agree where every batch holds every class.

    Attributes
    ----------
    class_means : (d, K) buffer
        `H`, class means minus the global mean.
    global_mean : (d,) buffer
    batches : (K,) int64 buffer
        n_c, how many batches have held each class so far.
    steps : int64 buffer
        t, the number of batches.

    Raises
    ------
    ValueError
        If a size is no whole number, or `averaging` is unknown.

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
        """Classes that any batch has held so far, (K,) bool."""
        return self.batches > 0

    def forward(self, features: Tensor, labels: Tensor, update: bool = True) -> tuple[Tensor, Tensor]:
        """Average over one more batch.

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
            devices that check would make the host wait: there an invalid label is a device-side assertion, and a batch
            that is not finite leaves the stored averages as they were.
        """
        targets = checked_targets(features, labels, self.num_features, self.num_classes)
        assert targets is not None
        check_device("features", features, self.class_means)
        sums, counts = self.batch_sums(features, targets)
        check_finite("features are too large: the sum over a class", sums)
        return self.average(sums, counts, update)

    def batch_sums(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of features per class (d, K), and how many there are (K,), over all processes."""
        if self.steps.is_floating_point():  # a loader that casts has set the buffers one by one, as Transformers' does
            keep_single(self, "class_means", "global_mean")
            keep_integer(self, "batches", "steps")
        sums = all_reduce_sum(class_sums(features.to(self.class_means.dtype), targets, self.num_classes))
        d = self.num_features
        return sums[:, :d].mT, sums[:, d].detach()

    def average(self, sums: Tensor, counts: Tensor, update: bool = True) -> tuple[Tensor, Tensor]:
        """H (d, K) and the global mean (d,) after a batch with these sums (d, K) and counts (K,)."""
        total = counts.sum()
        held = total > 0  # false where every row was ignored
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
        check_floats(
            "class_mean_rows", class_mean_rows, f"a floating-point matrix ({K}, {d}), a row for each class", values=True
        )
        found = tuple(class_mean_rows.shape)
        if found != (K, d):
            remedy = " Pass class_mean_rows.T: its rows have to be the classes." if found == (d, K) else ""
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
            raise ValueError("class_mean_rows or global_mean hold NaN or infinite entries of classes with samples.")
        H = torch.where(seen[:, None], rows - mean, 0.0).T
        batches = torch.where(seen, self.batches.clamp(min=MEANS_AS_OLD_AS), 0)
        steps = self.steps.clamp(min=MEANS_AS_OLD_AS)
        store(self, class_means=H, global_mean=mean, batches=batches, steps=steps)

    @torch.no_grad()
    def add_classes(self, n: int) -> None:
        """Make room for n more classes, never seen so far, behind the others, whose means and counts stay."""
        d = self.num_features
        self.class_means = torch.cat([self.class_means, self.class_means.new_zeros(d, n)], 1)
        self.batches = torch.cat([self.batches, self.batches.new_zeros(n)])
        self.num_classes += n

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClassMeans:
        """`.to(bfloat16)` and `.half()` stop at float32: an average that moves by 1e-4 would stand still in less."""
        super()._apply(fn, recurse)
        keep_single(self, "class_means", "global_mean")
        return self


def at_least_single(dtype: torch.dtype) -> torch.dtype:
    """The dtype itself, or float32 for half precision."""
    return torch.promote_types(dtype, torch.float32)


def keep_single(module: nn.Module, *names: str) -> None:
    """Take buffers that a cast has brought to half precision back to float32."""
    for name in names:
        value: Tensor = getattr(module, name)
        setattr(module, name, value.to(at_least_single(value.dtype)))


def keep_integer(module: nn.Module, *names: str) -> None:
    """Take counters that a cast has made floating-point numbers of back to integers."""
    for name in names:
        value: Tensor = getattr(module, name)
        if value.is_floating_point():
            setattr(module, name, value.long())


def only_finite(module: nn.Module, values: dict[str, Tensor], *decisive: Tensor) -> dict[str, Any]:
    """The values, or what the module holds under their names where one of the decisive tensors is not finite.

    On an eager CPU such a batch was refused before; elsewhere the device decides, and the host does not wait.
    """
    if decisive[0].device.type == "cpu" and not torch.compiler.is_compiling():
        return values
    finite = torch.stack([x.isfinite().all() for x in decisive]).all()
    return {name: torch.where(finite, value, getattr(module, name)) for name, value in values.items()}


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
