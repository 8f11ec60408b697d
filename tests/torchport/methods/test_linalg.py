"""The Frobenius norm in float32, whose sum has millions of terms at a few thousand classes."""

from __future__ import annotations

import math

import pytest
import torch

from nearest_etf.torchport.methods.linalg import frobenius
from nearest_etf.torchport.procrustes import check_basis


def cosines(n: int) -> torch.Tensor:
    """An orthonormal matrix (n, n) with dense entries: the discrete cosine transform."""
    k = torch.arange(n)
    angles = torch.outer(2 * k + 1, k) % (4 * n)
    basis = (angles.float() * (math.pi / (2 * n))).cos() * math.sqrt(2 / n)
    basis[:, 0] = math.sqrt(1 / n)
    return basis


def test_norm_and_check_hold_for_five_thousand_classes() -> None:
    basis = cosines(5000)
    assert float(frobenius(basis)) == pytest.approx(math.sqrt(5000), rel=1e-6)
    check_basis(basis, torch.empty(5000, 5000), 5000)
    with pytest.raises(ValueError, match="not orthonormal"):
        check_basis(1.001 * basis, torch.empty(5000, 5000), 5000)


def test_norm_and_its_derivatives() -> None:
    A = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        A[0, 1] = 0.0
    assert torch.allclose(frobenius(A), torch.linalg.matrix_norm(A))
    assert torch.autograd.gradcheck(frobenius, A)
    assert torch.autograd.gradgradcheck(frobenius, A)
    zero = torch.zeros(3, 4, requires_grad=True)
    frobenius(zero).backward()
    assert zero.grad is not None
    assert not zero.grad.any()
