"""Exact class means of the features of a frozen backbone, block by block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...common.arguments import whole_number
from ..arguments import check_dense, check_floats
from ..distributed import all_reduce_sum
from ..targets import checked_targets, class_sums


def means_of_classes(
    normalise: Callable[[Tensor], Tensor],
    features: Tensor,
    labels: Tensor,
    num_features: int,
    num_classes: int,
    device: torch.device,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Means of `normalise(features)` per class (K, d), zero for a class without samples, and counts (K,), in float64.

    Features (N, d) and labels (N,), or soft ones (N, K), may be on another device than `device`, which computes the
    means. Under several processes, the means are those of the features of all processes.

    Raises
    ------
    ValueError
        If batch_size is less than 1, or features or labels have a wrong shape or type, or (if `device` is the CPU) an
        invalid value.
    """
    whole_number("batch_size", batch_size, 1)
    check_floats("features", features, f"(N, {num_features}), floating point", values=True)
    check_dense("labels", labels, f"an integer tensor (N,), or soft labels (N, {num_classes})")
    if labels.is_meta:
        raise ValueError("labels are on the meta device, without values; expected class indices or soft labels.")
    if features.ndim != 2 or labels.ndim == 0:
        raise ValueError(
            f"features have shape {tuple(features.shape)} and labels {tuple(labels.shape)}; expected "
            f"(N, {num_features}) and a label per row."
        )
    if len(features) != len(labels):
        raise ValueError(f"labels have length {len(labels)}; expected {len(features)}, one per row of features.")
    sums = torch.zeros(num_classes, num_features + 1, dtype=torch.float64, device=device)
    for start in range(0, max(len(features), 1), batch_size):
        block, own = (x[start : start + batch_size].to(device) for x in (features, labels))
        targets = checked_targets(block, own, num_features, num_classes)
        assert targets is not None
        sums += class_sums(normalise(block).double(), targets, num_classes)
    sums = all_reduce_sum(sums)
    counts = sums[:, num_features]
    return sums[:, :num_features] / torch.where(counts > 0, counts, 1.0)[:, None], counts
