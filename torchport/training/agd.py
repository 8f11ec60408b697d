"""Automatic gradient descent: step sizes from the architecture (Bernstein et al., arXiv 2304.05187).

For L layers with weights W_l of d_l outputs and d_{l−1} inputs, gradients g_l and sizes s_l = √(d_l/d_{l−1})
(Algorithm 1 of the paper):

    G = (1/L) Σ_l s_l ‖g_l‖_F,   η = log ½(1 + √(1 + 4G)),   W_l ← W_l − (η/L) s_l g_l/‖g_l‖_F

A kernel counts as one matrix per position, with s_l divided by the square root of the number of positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def layer_size(weight: Tensor) -> float:
    """s_l of a matrix (d_l, d_{l−1}) or kernel (d_l, d_{l−1}, ·, ·).

    >>> layer_size(torch.zeros(8, 2)), layer_size(torch.zeros(9, 1, 3, 3))
    (2.0, 1.0)
    """
    outputs, inputs, *positions = weight.shape
    return math.sqrt(outputs / inputs / math.prod(positions))


class AGD(torch.optim.Optimizer):
    """Automatic gradient descent for the matrices and kernels of a model.

    The theory covers no biases or batch-norm scales: vectors are frozen at their initial values. Matrices and kernels
    start orthogonal, with norm s_l.

    Parameters
    ----------
    model : Module
        Re-initialised.
    gain : float
        Factor on all steps; 1 in the paper.

    Examples
    --------
    >>> model = nn.Linear(4, 2)
    >>> optimizer = AGD(model)
    >>> (model.weight @ model.weight.T).round(decimals=4).abs().tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """

    def __init__(self, model: nn.Module, gain: float = 1.0) -> None:
        weights = [p for p in model.parameters() if p.ndim > 1]
        for vector in (p for p in model.parameters() if p.ndim <= 1):
            vector.requires_grad_(False)
        super().__init__(weights, {"lr": gain})
        with torch.no_grad():
            for weight in weights:
                matrices = weight.flatten(2).unbind(2) if weight.ndim > 2 else [weight]
                for matrix in matrices:
                    matrix.copy_(nn.init.orthogonal_(torch.empty_like(matrix)) * layer_size(weight))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step of Algorithm 1, without synchronising."""
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms = [torch.linalg.vector_norm(p.grad, dim=(0, 1), keepdim=True) for p in weights]  # per position
        L = len(weights)
        G = torch.stack([layer_size(p) * n.sum() for p, n in zip(weights, norms, strict=True)]).sum() / L
        eta = torch.log((1 + torch.sqrt(1 + 4 * G)) / 2)
        for p, n in zip(weights, norms, strict=True):
            direction = p.grad / n.clamp_min(torch.finfo(n.dtype).tiny)
            p -= self.param_groups[0]["lr"] * eta / L * layer_size(p) * direction
