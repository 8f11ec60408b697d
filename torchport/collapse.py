"""Neural collapse measured over a stream of batches, on the device, in memory O(Kd + d²).

The metrics are those of `reference.collapse`, which has their formulas and sources. Here, covariances are accumulated
without cancellation: every class has an *origin*, its first sample, and only residuals `r = x − origin` are summed.
`Σ_W = (Σ r rᵀ − Σ_c n_c δ_c δ_cᵀ)/N`, δ_c the mean residual of class c, is then a difference of numbers of the size of
the spread within a class, at any distance between classes, and exactly zero for exactly collapsed features. Products of
a batch are computed in the precision of the features; all accumulators are float64. Lengths are measured in a *unit*,
the power of two below the largest entry of the first batch, so that squares neither overflow nor underflow.

Metrics that depend on single samples and on the class means (NC4, the cosine margins) need a second pass over the data.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..common.arguments import whole_number
from ..reference.collapse import CUTOFF, MARGIN_EDGES, NeuralCollapse
from .arguments import check_floats
from .collapse_batches import check_batch, chunks, moved, unit_of
from .collapse_metrics import (
    between_class_spectrum,
    cdnv,
    etf_error,
    squared_distance,
    unit,
    unit_etf,
    variability_collapse,
    variation,
)

MARGIN_BINS = len(MARGIN_EDGES) - 1
SAME_DATA = 1e-4  # how far a class mean may move in the second pass, relative to the size of the features


class NeuralCollapseMeter:
    """Accumulates the statistics for the metrics of neural collapse, batch by batch.

    Parameters
    ----------
    num_features, num_classes : int
        d and K, at least 1 and 2.
    device : torch.device or str, optional
        The device of the accumulators and of the features (B, d); it must support float64.

    Raises
    ------
    ValueError
        If d < 1 or K < 2.

    Examples
    --------
    >>> from nearest_etf.reference import simplex_etf
    >>> weight = torch.tensor(simplex_etf(3))
    >>> batches = [(2 * weight[labels], labels) for labels in torch.arange(12).remainder(3).split(5)]
    >>> meter = NeuralCollapseMeter(num_features=3, num_classes=3)
    >>> for features, labels in batches:
    ...     meter.update(features, labels)
    >>> meter.compute(weight).nc1
    0.0
    >>> second = meter.second_pass(weight)
    >>> for features, labels in batches:
    ...     second.update(features, labels)
    >>> second.compute().nc4, round(second.compute().cosine_margin, 6)
    (0.0, 1.5)
    """

    def __init__(self, num_features: int, num_classes: int, device: torch.device | str | None = None) -> None:
        K, d = whole_number("num_classes", num_classes, 2), whole_number("num_features", num_features, 1)
        self.num_classes, self.num_features = K, d
        self.counts = torch.zeros(K, dtype=torch.int64, device=device)
        self.origins = torch.zeros(K, d, dtype=torch.float64, device=device)
        self.sums = torch.zeros_like(self.origins)  # Σ r per class
        self.squares = torch.zeros(K, dtype=torch.float64, device=device)  # Σ ‖r‖² per class
        self.scatter = torch.zeros(d, d, dtype=torch.float64, device=device)  # Σ r rᵀ
        self.unit = torch.zeros((), dtype=torch.float64, device=device)  # of all of these; 0 before the first batch
        self._begun = False  # equals `unit > 0`, without synchronising

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Parameters
        ----------
        features : (B, d) floating point
            The input of the classifier; half precision is converted to float32.
        labels : (B,) int64

        Raises
        ------
        ValueError
            If shapes disagree or a label is not in 0…K−1.
        """
        check_batch(features, labels, self.num_classes, self.num_features, self.counts)
        if not self._begun and len(labels):
            self.unit, self._begun = unit_of(features), True
        with torch.autocast(features.device.type, enabled=False):
            for x, y in chunks(features, labels, self.unit):
                self._add(x, y)

    def _add(self, x: Tensor, labels: Tensor) -> None:
        rows = torch.arange(len(labels), device=labels.device)
        first = rows.new_full((self.num_classes,), len(rows)).scatter_reduce(0, labels, rows, "amin")
        new = (self.counts == 0) & (first < len(rows))
        self.origins[new] = x[first[new]].double()
        residuals = x - self.origins[labels].to(x.dtype)
        self.counts += torch.bincount(labels, minlength=self.num_classes)
        self.sums.index_add_(0, labels, residuals.double())
        self.squares.index_add_(0, labels, residuals.square().sum(1).double())
        self.scatter += residuals.T @ residuals

    def merge(self, other: NeuralCollapseMeter) -> None:
        """Add the data of another meter.

        Raises
        ------
        ValueError
            If the meters differ in K or d.
        """
        if (other.num_classes, other.num_features) != (self.num_classes, self.num_features):
            raise ValueError(
                f"a meter for K = {other.num_classes}, d = {other.num_features} cannot be merged into one "
                f"for K = {self.num_classes}, d = {self.num_features}."
            )
        if not other._begun:
            return
        device = self.counts.device
        unit = torch.maximum(self.unit, other.unit.to(device))
        ratio = other.unit.to(device) / unit
        self._measure_in(unit)
        counts, theirs = other.counts.to(device), ratio * other.origins.to(device)
        common = torch.where(self.counts[:, None] > 0, self.origins, theirs)
        sums, squares, scatter = moved(
            counts,
            theirs - common,
            ratio * other.sums.to(device),
            ratio**2 * other.squares.to(device),
            ratio**2 * other.scatter.to(device),
        )
        self.origins = common
        self.counts += counts
        self.sums += sums
        self.squares += squares
        self.scatter += scatter

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Merge the meters of all processes into each of them; without a process group, do nothing."""
        if not dist.is_initialized():
            return
        unit = self.unit.clone()
        dist.all_reduce(unit, dist.ReduceOp.MAX, group)
        self._measure_in(unit)
        # Every class takes its origin from the first process that has seen it.
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        owner = torch.where(self.counts > 0, rank, size)
        dist.all_reduce(owner, dist.ReduceOp.MIN, group)
        common = torch.where((owner == rank)[:, None], self.origins, 0.0)
        dist.all_reduce(common, group=group)
        self.sums, self.squares, self.scatter = moved(
            self.counts, self.origins - common, self.sums, self.squares, self.scatter
        )
        self.origins = common
        for total in (self.counts, self.sums, self.squares, self.scatter):
            dist.all_reduce(total, group=group)

    def _measure_in(self, unit: Tensor) -> None:
        """Change to a unit that is not smaller."""
        ratio = self.unit / unit.where(unit > 0, 1.0)
        self.origins, self.sums = ratio * self.origins, ratio * self.sums
        self.squares, self.scatter = ratio**2 * self.squares, ratio**2 * self.scatter
        self.unit, self._begun = unit, bool(unit > 0)

    @torch.no_grad()
    def compute(self, weight: Tensor, bias: Tensor | None = None) -> NeuralCollapse:
        """The metrics of the data seen so far, for logits `W x + b`.

        nc4 and the cosine margins are nan, since they need a `second_pass`; so is `numerical_rank`, which needs all
        features of a class at once (see `collapse_metrics.numerical_rank`).

        Parameters
        ----------
        weight : (K, d)
        bias : (K,), optional

        Raises
        ------
        ValueError
            If shapes disagree, W is zero, an entry or a feature seen is not finite, or fewer than two
            classes have been seen.
        """
        W, b, unit_of_logits = self._classifier(weight, bias)
        present = self.counts > 0
        n = self.counts[present].double()
        global_mean, H = self._centred_means()
        K = len(H)

        mean_residuals = self.sums[present] / n[:, None]
        weighted = mean_residuals * n.sqrt()[:, None]
        sigma_w = (self.scatter - weighted.T @ weighted) / n.sum()
        variances = (self.squares[present] / n - mean_residuals.square().sum(1)).clamp_min(0.0)
        values, vectors = between_class_spectrum(H)
        within = (vectors * (sigma_w @ vectors)).sum(0).clamp_min(0.0)
        nc1 = float((within / values).sum()) / K if len(values) else float("inf")

        W_present = W[present]
        etf_weight, weight_unique = unit_etf(W_present)
        etf_means, means_unique = unit_etf(H)
        etf_all = etf_weight if len(W) == K else unit_etf(W)[0]
        both_unique = weight_unique and means_unique
        equinorm_weight, equinorm_means = variation(W.norm(dim=1)), variation(H.norm(dim=1))
        return NeuralCollapse(
            nc1=nc1,
            nc2=etf_error(W, W),
            nc2_means=etf_error(H, H),
            nc3=etf_error(W_present, H),
            nc4=float("nan"),
            bias_offset=float((W @ global_mean + b).norm() * unit_of_logits),
            equinorm_weight=equinorm_weight,
            equinorm_means=equinorm_means,
            equinorm_difference=abs(equinorm_weight - equinorm_means),
            cosine_margin=float("nan"),
            cosine_margin_std=float("nan"),
            etf_distance_weight=squared_distance(unit(W), etf_all),
            etf_distance_means=squared_distance(unit(H), etf_means),
            etf_distance_between=squared_distance(etf_weight, etf_means) if both_unique else float("nan"),
            numerical_rank=float("nan"),
            variability_collapse=variability_collapse(sigma_w, H, len(values)),
            cdnv=cdnv(H, variances),
            margin_histogram=np.zeros(MARGIN_BINS, dtype=np.int64),
        )

    def second_pass(self, weight: Tensor, bias: Tensor | None = None) -> SecondPass:
        """Begin the second pass over the same data, for the metrics that depend on single samples.

        Raises
        ------
        ValueError
            As `compute`.
        """
        return SecondPass(self, weight, bias)

    def _classifier(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """W in its own unit, b in that of the logits, and the latter: the product of W's unit and the meter's."""
        K, d = self.num_classes, self.num_features
        check_floats("weight", weight, f"a floating-point matrix ({K}, {d})", values=True)
        if bias is not None:
            check_floats("bias", bias, f"a floating-point vector ({K},)", values=True)
        W = weight.detach().to(self.scatter)
        b = W.new_zeros(K) if bias is None else bias.detach().to(self.scatter)
        if W.shape != (K, d) or b.shape != (K,):
            raise ValueError(
                f"weight {tuple(W.shape)}, bias {tuple(b.shape)}; expected {(K, d)} and {(K,)}, as the meter."
            )
        if not (W.isfinite().all() and b.isfinite().all()):
            raise ValueError("weight or bias contains NaN or infinite entries.")
        if not W.any():
            raise ValueError("weight is zero; its angles and its nearest ETF are undefined.")
        unit_of_weight = unit_of(W)
        unit_of_logits = unit_of_weight * self.unit
        b = b / unit_of_logits.where(unit_of_logits > 0, 1.0)
        if not b.isfinite().all():
            raise ValueError("bias outweighs W x by more than float64 can compare: rescale features or weight.")
        return W / unit_of_weight, b, unit_of_logits

    def class_mean_rows(self) -> Tensor:
        """Means of the classes, not centred, (K, d) in float64; zero for a class that has not been seen."""
        return self.unit * self._class_mean_rows()

    def _class_mean_rows(self) -> Tensor:
        """`class_mean_rows` in the meter's unit."""
        return self.origins + self.sums / self.counts.clamp_min(1)[:, None]

    def _centred_means(self) -> tuple[Tensor, Tensor]:
        """The mean μ_G (d,) of the means of the classes seen, and H̄ᵀ (K, d), these means minus μ_G."""
        present = self.counts > 0
        if int(present.sum()) < 2:
            raise ValueError(f"{int(present.sum())} class(es) have been seen; neural collapse compares at least two.")
        if not self.squares.isfinite().all():
            raise ValueError(
                "the features seen contain NaN or infinite entries, or grew beyond the range of their type after the "
                f"first batch, whose largest entry was about {float(self.unit):.0e}."
            )
        means = self._class_mean_rows()[present]
        global_mean = means.mean(0)
        H = means - global_mean
        return global_mean, H if H.norm() > CUTOFF * means.norm() else torch.zeros_like(H)


class SecondPass:
    """The metrics that depend on single samples, from the same data; see `NeuralCollapseMeter.second_pass`.

    Counts and class sums are accumulated again; `compute` raises an error if they differ from those of the first pass.
    """

    def __init__(self, first: NeuralCollapseMeter, weight: Tensor, bias: Tensor | None = None) -> None:
        W, b, _ = first._classifier(weight, bias)
        self.unit = first.unit
        self.global_mean, _ = first._centred_means()
        self.measured = first.compute(weight, bias)
        self.num_classes, self.num_features = first.num_classes, first.num_features
        self.expected_counts = first.counts.clone()
        self.class_mean_rows = first._class_mean_rows()
        spread = first.squares.sum() / (first.counts.sum() * self.num_features)
        self.size = float((self.class_mean_rows.square().mean() + spread).sqrt())
        # With x̃ = x − μ_G, the logits are `W x̃ + shifted_bias`, and h_cᵀx̃ − ‖h_c‖²/2 is largest at the nearest mean.
        self.weight, self.shifted_bias = W, W @ self.global_mean + b
        self.lengths = (W - W.mean(0)).norm(dim=1)
        self.centred_rows = self.class_mean_rows - self.global_mean
        squares = self.centred_rows.square().sum(1)
        self.handicaps = torch.where(first.counts > 0, 0.5 * squares, torch.inf)

        self.counts = torch.zeros_like(first.counts)
        self.deviations = torch.zeros_like(first.sums)  # Σ x − μ_c per class
        self.totals = torch.zeros(3, dtype=torch.float64, device=W.device)  # mismatches, Σ margin, Σ margin²
        self.histogram = torch.zeros(MARGIN_BINS, dtype=torch.int64, device=W.device)
        self.edges = torch.as_tensor(MARGIN_EDGES, device=W.device)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch (B, d), (B,), as in the first pass.

        Raises
        ------
        ValueError
            If shapes disagree or a label is not in 0…K−1.
        """
        check_batch(features, labels, self.num_classes, self.num_features, self.counts)
        with torch.autocast(features.device.type, enabled=False):
            for x, y in chunks(features, labels, self.unit):
                self._add(x, y)

    def _add(self, x: Tensor, labels: Tensor) -> None:
        self.counts += torch.bincount(labels, minlength=self.num_classes)
        self.deviations.index_add_(0, labels, (x - self.class_mean_rows[labels].to(x.dtype)).double())
        centred = x - self.global_mean.to(x.dtype)
        products = centred @ self.weight.to(x.dtype).T  # (B, K)
        predicted = (products + self.shifted_bias.to(x.dtype)).argmax(1)
        nearness = centred @ self.centred_rows.to(x.dtype).T - self.handicaps.to(x.dtype)
        mismatches = (predicted != nearness.argmax(1)).sum().double()

        scale = centred.norm(dim=1, keepdim=True) * self.lengths.to(x.dtype)
        cosines = (products - products.mean(1, keepdim=True)) / scale.where(scale > 0, torch.inf)
        true = cosines.gather(1, labels[:, None])
        others = cosines.scatter(1, labels[:, None], -torch.inf)
        margins = (true[:, 0] - others.amax(1)).double()
        self.totals += torch.stack([mismatches, margins.sum(), margins.square().sum()])
        bins = torch.bucketize(margins, self.edges, right=True) - 1
        self.histogram += torch.bincount(bins.clamp(0, MARGIN_BINS - 1), minlength=MARGIN_BINS)

    def merge(self, other: SecondPass) -> None:
        """Add the data of another second pass, begun from an equal meter."""
        for ours, theirs in zip(self._accumulators(), other._accumulators(), strict=True):
            ours += theirs.to(ours.device)

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Merge the second passes of all processes; without a process group, do nothing."""
        if dist.is_initialized():
            for total in self._accumulators():
                dist.all_reduce(total, group=group)

    def compute(self) -> NeuralCollapse:
        """All metrics of the data, including those of the second pass.

        Raises
        ------
        ValueError
            If the second pass was not over the data of the first: another number of samples in a class, or
            another class mean.
        """
        if not torch.equal(self.counts, self.expected_counts):
            c = int((self.counts != self.expected_counts).nonzero()[0])
            raise ValueError(
                f"the second pass was over other data: it saw {int(self.counts[c])} samples of class "
                f"{c}, the first {int(self.expected_counts[c])}. Feed both the same samples."
            )
        change = float((self.deviations / self.counts.clamp_min(1)[:, None]).abs().max())
        if not change <= SAME_DATA * self.size:
            moved, size = change * float(self.unit), self.size * float(self.unit)
            raise ValueError(
                f"the second pass was over other data: a class mean moved by {moved:.1e}, where features are of size "
                f"{size:.1e}. Feed both the same samples, in eval mode, not augmented."
            )
        count = int(self.counts.sum())
        mismatch, mean, square = (self.totals / count).tolist()
        return replace(
            self.measured,
            nc4=mismatch,
            cosine_margin=mean,
            cosine_margin_std=max(square - mean**2, 0.0) ** 0.5,
            margin_histogram=self.histogram.cpu().numpy(),
        )

    def _accumulators(self) -> tuple[Tensor, ...]:
        return self.counts, self.deviations, self.totals, self.histogram
