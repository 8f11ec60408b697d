"""More classes for a head: frames that are extended, parameters that are lengthened, and how far old vectors turn."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from ..procrustes import Formulation, solve
from ..simplex import centred
from ..tight_frame import nearest_tight_frame, unit_rows


def extended_frame(frame: Tensor, n: int, formulation: Formulation | None) -> Tensor:
    """The frame (d, K+n) nearest to `[F 0]`, F (d, K) the old one: of a simplex, or by `None` a tight one of any size.

    It maps what sums to zero over the old classes as F does, so that old vectors keep their differences, and n further
    dimensions to orthonormal directions outside of F's range, those nearest to the canonical frame. `[F 0]` itself is a
    tight frame where F has all d dimensions already.
    """
    d, K = frame.shape
    new = frame.new_zeros(d, n)
    if formulation is None and d + 1 <= K:
        return torch.cat([frame, new], 1)
    bare = torch.cat([centred(frame.double()), new.double()], 1)
    if formulation is None:
        return nearest_tight_frame(bare, method="svd").to(frame.dtype)
    return solve(bare, method="svd", formulation=formulation).frame.to(frame.dtype)


def lengthened(parameter: Tensor, new: Tensor) -> nn.Parameter:
    """A new Parameter with the old one's entries and then these, of its dtype, device and need of a gradient."""
    entries = torch.cat([parameter.detach(), new.to(parameter)])
    return nn.Parameter(entries, requires_grad=parameter.requires_grad)


def warn_of_new_parameters(head: str, names: str) -> None:
    """Say that the optimizer does not know the parameters of a head that has grown."""
    warnings.warn(
        f"{names} of {head} are new Parameter objects: give them to the optimizer, by making a new one or by "
        "optimizer.add_param_group, and wrap DistributedDataParallel around the model anew.",
        UserWarning,
        stacklevel=5,
    )


def drift_in_degrees(before: Tensor, after: Tensor) -> Tensor:
    """The angles (K,) between rows of W before and after (K, d), in float64; exactly zero where both are the same."""
    a, b = unit_rows(before.double()), unit_rows(after.double())
    difference, total = (torch.linalg.vector_norm(x, dim=1) for x in (a - b, a + b))
    return torch.rad2deg(2 * torch.atan2(difference, total))
