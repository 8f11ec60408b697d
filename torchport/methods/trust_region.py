"""The paper's method: the reference's Riemannian trust region, in float64 on the host.

It is for comparisons with the fast methods, also over whole training runs. Its adjoint is the closed form of the
spectral methods, with `P = UᵀA` at the solution.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...reference.polar import polar_by_trust_region
from ...reference.stiefel import safe_frobenius
from .factor import Polar
from .linalg import complete_frame, without_rounding
from .spectral import in_dtype_of


def by_trust_region(A: Tensor, start: Tensor) -> Polar | None:
    """The polar decomposition of A (d, m) from `start` (d, m) or (d, m+1); None if it does not converge."""
    m = A.shape[1]
    B, C = (x.detach().cpu().double().numpy() for x in (A, start[:, :m]))
    start_left, _, start_right_t = np.linalg.svd(C, full_matrices=False)
    start_point = start_left @ start_right_t  # on the manifold
    norm = safe_frobenius(B)
    *factors, _, status = polar_by_trust_region(B / norm if norm > 0 else B, start_point)
    if not status.ok:
        return None
    U, left, right = (torch.from_numpy(x).to(A.device) for x in factors)
    if right.shape[1] < m:
        U = complete_frame(left, right, start.double())
    U, gauge = U[:, :m], U[:, m:]
    P = U.mT @ A.double()
    sigma, V = torch.linalg.eigh(0.5 * (P + P.mT))
    return in_dtype_of(A, U, U @ V, without_rounding(sigma, A), V, gauge)
