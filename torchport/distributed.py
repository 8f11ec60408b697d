"""Differentiable sums over all processes; the identity without torch.distributed or with one process.

Every rank's loss depends on every rank's summand, so the cotangents are summed as well: together with
DistributedDataParallel, which averages gradients over ranks, each parameter gets the gradient of the mean loss.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def all_reduce_sum(summand: Tensor) -> Tensor:
    """The sum of `summand` over all processes, of the same shape on each."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return summand
    return _AllReduceSum.apply(summand)


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, summand: Tensor) -> Tensor:
        total = summand.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        return all_reduce_sum(cotangents[0])
