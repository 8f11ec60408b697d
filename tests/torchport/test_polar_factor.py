"""The public polar factor: batches, wide matrices, and derivatives where those of singular vectors are infinite."""

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from nearest_etf.torchport import polar

F64 = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def with_singular_values(*sigma: float, d: int = 6, seed: int = 0) -> Tensor:
    left, right = torch.linalg.qr(random(d, len(sigma), seed=seed))[0], torch.linalg.qr(random(*[len(sigma)] * 2))[0]
    return left * torch.tensor(sigma, dtype=F64) @ right


def by_singular_vectors(A: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(A, full_matrices=False)
    return left @ right


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (4, 4), (5, 1), (1, 5), (1, 1)])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3), (0,), (2, 0)])
def test_it_agrees_with_scipy(shape: tuple[int, int], batch: tuple[int, ...]) -> None:
    A = random(*batch, *shape).requires_grad_()
    U = polar(A)
    assert U.shape == A.shape
    for index in np.ndindex(batch):
        wanted = scipy.linalg.polar(A[index].detach().numpy(), side="right" if shape[0] >= shape[1] else "left")[0]
        np.testing.assert_allclose(U[index].detach().numpy(), wanted, atol=1e-12)
    assert torch.autograd.grad(U.sum(), A)[0].shape == A.shape


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 3, 5), (3, 3)])
def test_all_derivatives(shape: tuple[int, ...]) -> None:
    A = random(*shape).requires_grad_()
    assert torch.autograd.gradcheck(polar, A, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(polar, A, check_fwd_over_rev=True)


def test_gradients_agree_with_autograd_through_singular_vectors() -> None:
    A, G = random(20, 8, 4).requires_grad_(), random(20, 8, 4, seed=1)
    found, wanted = (torch.autograd.grad(function(A), A, G)[0] for function in (polar, by_singular_vectors))
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)


def test_repeated_singular_values_have_correct_derivatives() -> None:
    """Singular vectors have no derivatives there, and autograd through them gives NaN."""
    A = torch.eye(6, 3, dtype=F64).repeat(3, 1, 1)
    A[1] *= 2.5
    A[2, 2, 2] = 0.5
    A.requires_grad_()
    G = random(3, 6, 3)
    assert torch.autograd.grad(by_singular_vectors(A), A, G)[0].isnan().any((-2, -1)).all()
    assert torch.autograd.gradcheck(polar, A)
    # At the identity, P = I and Φ = (UᵀG − GᵀU)/2: the gradient is the tangent part of G.
    U = torch.eye(6, 3, dtype=F64)
    tangent = G[0] - U @ (0.5 * (U.T @ G[0] + G[0].T @ U))
    torch.testing.assert_close(torch.autograd.grad(polar(A), A, G)[0][0], tangent)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_zero_singular_values_have_finite_derivatives(dtype: torch.dtype) -> None:
    """Also at repeated ones. Along changes that keep the row space, they are the true derivatives."""
    members = [(2.0, 1.0, 0.5), (2.0, 1.0, 0.0), (1.0, 1.0, 0.0), (3.0, 0.0, 0.0), (0.0, 0.0, 0.0)]
    A64 = torch.stack([with_singular_values(*sigma) for sigma in members])
    A = A64.to(dtype).requires_grad_()
    G = random(5, 6, 3, seed=2).to(dtype)
    assert not torch.autograd.grad(by_singular_vectors(A), A, G)[0][2:].isfinite().all()
    U = polar(A)
    gradient = torch.autograd.grad(U, A, G)[0]
    assert gradient.isfinite().all()
    assert gradient[4].count_nonzero() == 0
    torch.testing.assert_close(U.mT @ U, torch.eye(3, dtype=dtype).expand(5, 3, 3))
    for ours, member, cotangent in zip(gradient, A64, G.double(), strict=True):
        single = member.requires_grad_()
        wanted = torch.autograd.grad(polar(single), single, cotangent)[0]
        torch.testing.assert_close(ours.double(), wanted, atol=1e-5, rtol=1e-5)
    if dtype == F64:  # a change from the left keeps the row space
        change, step = random(6, 6, seed=3), 1e-6
        ahead, back = (polar(A64 + sign * step * change @ A64) for sign in (1, -1))
        differences = ((ahead - back) * G).sum((-2, -1)) / (2 * step)
        torch.testing.assert_close((gradient * (change @ A64)).sum((-2, -1)), differences, atol=1e-7, rtol=1e-7)


def test_the_start_completes_a_rank_deficient_matrix() -> None:
    A = torch.stack([with_singular_values(2.0, 0.0, 0.0), with_singular_values(2.0, 1.0, 0.3)])
    start = torch.linalg.qr(random(6, 3, seed=5))[0]
    U = polar(A, start)
    limit = scipy.linalg.polar((A[0] + 1e-8 * start).numpy())[0]
    np.testing.assert_allclose(U[0].numpy(), limit, atol=1e-6)
    torch.testing.assert_close(U[1], polar(A[1]))
    torch.testing.assert_close(polar(A.mT, start.T), U.mT)
    torch.testing.assert_close(polar(A[0], torch.stack([start, torch.eye(6, 3, dtype=F64)]))[0], U[0])


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_the_factor_does_not_depend_on_the_scale(scale: float, dtype: torch.dtype) -> None:
    A = random(4, 8, 3).to(dtype)
    torch.testing.assert_close(polar(scale * A), polar(A))


def test_vmap_and_compilers() -> None:
    A, G = random(3, 5, 4), random(3, 5, 4, seed=1)

    def loss(A: Tensor, G: Tensor) -> Tensor:
        return (polar(A) * G).sum()

    gradient = torch.func.grad(loss)(A, G)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(A, G), gradient)
    torch._dynamo.reset()
    for shape in ((3, 5, 4), (5, 4)):
        leaf = A.clone().requires_grad_() if len(shape) == 3 else A[0].clone().requires_grad_()
        torch.compile(loss, fullgraph=True, backend="aot_eager")(leaf, G.view(-1, *shape)[0]).backward()
        torch.testing.assert_close(leaf.grad, gradient.view(-1, *shape)[0])


def test_half_precision_is_decomposed_in_float32_and_returned_in_its_dtype() -> None:
    A = random(4, 8, 3).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        U = polar(A)
    assert U.dtype == torch.bfloat16
    assert torch.equal(U, polar(A.float()).bfloat16())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A": torch.zeros(4)}, r"A is torch.float32 of shape \(4,\); expected a floating-point matrix"),
        ({"A": torch.zeros(4, 2, dtype=torch.int64)}, "floating-point"),
        ({"A": torch.zeros(4, 0)}, r"expected a floating-point matrix \(d, m\)"),
        ({"A": torch.tensor([[1.0, torch.nan]])}, "A contains NaN"),
        ({"start": torch.zeros(3, 4)}, r"start has shape \(3, 4\); expected \(4, 3\)"),
        ({"start": torch.zeros(2, 4, 3), "A": torch.zeros(3, 4, 3)}, "broadcast"),
        ({"method": "qr"}, "'svd', 'eigh', 'matmul'"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        polar(**{"A": torch.eye(4, 3), **change})
