"""Validation and class sums of batches: hard labels of any integer type, ignored rows, soft labels."""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import check_dense, check_device, check_floats

IGNORED = -100  # the `ignore_index` of torch's cross-entropy
INTEGERS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)


def checked_targets(features: Tensor, labels: Tensor | None, num_features: int, num_classes: int) -> Tensor | None:
    """The labels of a valid batch, as int64 (N,) or soft labels (N, K).

    Shapes and types are checked on every device, values on the CPU only, where the check does not synchronise.

    Raises
    ------
    ValueError
        If features or labels are not tensors, or have a wrong shape or type; on the CPU also if a feature is not
        finite, a label is neither in 0…K−1 nor −100 (ignored), or a soft label is negative or not finite.

    Examples
    --------
    >>> checked_targets(torch.zeros(2, 3), torch.tensor([0, 1], dtype=torch.uint8), 3, 2)
    tensor([0, 1])
    """
    check_floats("features", features, f"(N, {num_features}), floating point")
    if features.ndim != 2 or features.shape[1] != num_features:
        raise ValueError(
            f"features are {features.dtype} of shape {tuple(features.shape)}; expected (N, {num_features}), floating "
            "point."
        )
    if labels is None:
        return None
    check_dense("labels", labels, f"an integer tensor (N,), or soft labels (N, {num_classes})")
    check_device("labels", labels, features)
    if len(features) == 0:
        raise ValueError("the batch is empty: features have no rows; expected at least one. Skip empty batches.")
    soft = labels.is_floating_point() and labels.ndim == 2
    expected_shape = (len(features), num_classes) if soft else (len(features),)
    if labels.shape != expected_shape:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; expected {expected_shape}, one per row of features."
        )
    if not soft and labels.dtype not in INTEGERS:
        raise ValueError(
            f"labels are {labels.dtype}; expected integer class indices 0…{num_classes - 1}, or soft labels "
            f"({len(features)}, {num_classes})."
        )
    labels = labels.to(torch.promote_types(features.dtype, torch.float32)) if soft else labels.long()
    if features.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_values(features.detach(), labels, num_classes)
    return labels


def class_sums(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Sums of features per class and, in the last column, their numbers: (K, d+1), of this process.

    Ignored rows do not count; a row with a soft label counts for each class by its share.
    """
    N, d = features.shape
    with_ones = torch.cat([features, features.new_ones(N, 1)], 1)
    if labels.ndim == 2:
        return labels.to(features.dtype).mT @ with_ones
    if not _nothing_ignored(labels):
        ignored = labels == IGNORED
        with_ones, labels = with_ones.masked_fill(ignored[:, None], 0.0), labels.masked_fill(ignored, 0)
    return features.new_zeros(num_classes, d + 1).index_add(0, labels, with_ones)  # without an N × K matrix


def _nothing_ignored(labels: Tensor) -> bool:
    """Whether no row is ignored, as far as this is known without synchronising."""
    return labels.device.type == "cpu" and not torch.compiler.is_compiling() and bool((labels >= 0).all())


def _check_values(features: Tensor, labels: Tensor, num_classes: int) -> None:
    if not (features.sum().isfinite() or features.isfinite().all()):  # the sum alone is faster
        raise ValueError(
            "features contain NaN or infinite entries: lower the learning rate, or find the layer that produces them."
        )
    if labels.ndim == 2:
        if not (labels.isfinite().all() and (labels >= 0).all()):
            raise ValueError(
                "soft labels contain negative, NaN or infinite entries; expected shares, each row with sum 1."
            )
        return
    low, high = (int(label) for label in labels.aminmax())
    if low < 0:
        kept = labels[labels != IGNORED]
        low = int(kept.min()) if len(kept) else 0
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels run from {low} to {high}; expected 0…{num_classes - 1}, or {IGNORED} for a row to ignore. "
            "Renumber them, or give the head a larger num_classes."
        )
