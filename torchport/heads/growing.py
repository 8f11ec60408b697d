"""New classes for a head: extension of frames and parameters, and the angles by which old vectors turn."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from ..procrustes import Formulation, solve
from ..simplex import centred
from ..tight_frame import nearest_tight_frame, unit_rows


def extended_frame(frame: Tensor, n: int, formulation: Formulation | None) -> Tensor:
    """The frame (d, K+n) nearest to `[F 0]`, F (d, K) the old one: of a simplex, or for None a tight one of any size.

    It agrees with F on vectors that sum to zero over the old classes, so that old columns keep their differences, and
    maps n further dimensions to orthonormal directions outside the range of F, those nearest to the canonical frame. If
    F has rank d, `[F 0]` itself is a tight frame.
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
    """A Parameter with the old entries before the new ones, and the old dtype, device and `requires_grad`."""
    entries = torch.cat([parameter.detach(), new.to(parameter)])
    return nn.Parameter(entries, requires_grad=parameter.requires_grad)


def warn_of_new_parameters(head: str, names: str) -> None:
    """Warn that the optimizer does not know the new parameters of a head with more classes."""
    warnings.warn(
        f"{names} of {head} are new Parameter objects: give them to the optimizer, by making a new one or by "
        "optimizer.add_param_group, and wrap the model in DistributedDataParallel again.",
        UserWarning,
        stacklevel=5,
    )


def drift_in_degrees(before: Tensor, after: Tensor) -> Tensor:
    """The angles (K,) between rows of W before and after (K, d), in float64; exactly zero for equal rows."""
    a, b = unit_rows(before.double()), unit_rows(after.double())
    difference, total = (torch.linalg.vector_norm(x, dim=1) for x in (a - b, a + b))
    return torch.rad2deg(2 * torch.atan2(difference, total))
