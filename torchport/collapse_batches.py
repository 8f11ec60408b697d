"""Batches of the collapse meter: validation, chunks, and the unit of lengths; and a change of origin for its sums."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .arguments import check_dense, check_device, check_floats


def moved(
    counts: Tensor, shift: Tensor, sums: Tensor, squares: Tensor, scatter: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of residuals, of their squares and of their products, for origins moved back by `shift` (K, d)."""
    shift = torch.where(counts[:, None] > 0, shift, 0.0)
    n = counts[:, None].double()
    cross = (sums + 0.5 * n * shift).T @ shift
    squares = squares + ((2 * sums + n * shift) * shift).sum(1)
    return sums + n * shift, squares, scatter + cross + cross.T


def chunks(features: Tensor, labels: Tensor, unit: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The batch in float32 or float64, in the given unit, in chunks of max(d, 256) rows: memory O(d²)."""
    rows = max(features.shape[1], 256)
    for x, y in zip(features.detach().split(rows), labels.split(rows), strict=True):
        x = x if x.dtype == torch.float64 else x.float()
        yield x / unit.to(x.dtype), y


def unit_of(values: Tensor) -> Tensor:
    """The largest power of two not above the largest entry, () float64; 1 if all are zero, or one is not finite."""
    top = values.detach().abs().amax().double()
    return torch.where((top > 0) & top.isfinite(), torch.ldexp(torch.ones_like(top), torch.frexp(top)[1] - 1), 1.0)


def check_batch(features: Tensor, labels: Tensor, num_classes: int, num_features: int, beside: Tensor) -> None:
    """Refuse features other than floating (B, d) on the meter's device, and labels other than int64 (B,) in 0…K−1."""
    check_floats("features", features, f"floating (B, {num_features})", beside=beside, values=True)
    check_dense("labels", labels, "int64 (B,)")
    check_device("labels", labels, features)
    if features.ndim != 2 or features.shape[1] != num_features:
        raise ValueError(
            f"features are {features.dtype} {tuple(features.shape)}; expected floating (B, {num_features})."
        )
    if labels.shape != features.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}; expected int64 ({len(features)},).")
    if len(labels):
        least, most = (int(label) for label in labels.aminmax())
        if least < 0 or most >= num_classes:
            raise ValueError(f"labels span {least}…{most}; expected 0…{num_classes - 1}, the classes.")
