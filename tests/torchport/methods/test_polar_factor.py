"""The polar factor: every method against SciPy, derivatives of every order, and fallbacks."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from nearest_etf.torchport.methods import decompose as decompose_module
from nearest_etf.torchport.methods.autograd import polar
from nearest_etf.torchport.methods.factor import Polar
from nearest_etf.torchport.methods.linalg import complete_frame
from nearest_etf.torchport.methods.matmul import Products, lyapunov_by_sign, orthonormalised
from nearest_etf.torchport.methods.spectral import by_eigh, by_svd
from nearest_etf.torchport.methods.warm import by_basis

F64 = torch.float64
METHODS = ("svd", "eigh", "matmul", "trust-region")


def conditioned(d: int, m: int, condition: float, seed: int = 0) -> Tensor:
    """A random matrix with singular values spread evenly, on a logarithmic scale, over [1/condition, 1]."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(d, m, dtype=F64, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(m, m, dtype=F64, generator=generator))[0]
    return (left * torch.logspace(0, -float(np.log10(condition)), m, dtype=F64)) @ right


def relative(found: Tensor, wanted: Tensor) -> float:
    return float(((found - wanted).norm() / wanted.norm()).detach())


def exact_vjp(A: Tensor, G: Tensor) -> Tensor:
    """The closed form with singular vectors in float64."""
    left, sigma, Vt = torch.linalg.svd(A, full_matrices=False)
    T = left.T @ G @ Vt.T
    Phi = (T - T.T) / (sigma[:, None] + sigma)
    return (left @ Phi + (G @ Vt.T - left @ T) / sigma) @ Vt


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("d", "m"), [(40, 12), (12, 12), (5, 1)])
@pytest.mark.parametrize(
    ("dtype", "condition"), [(torch.float32, 10.0), (torch.float32, 1e3), (F64, 10.0), (F64, 1e3), (F64, 1e6)]
)
def test_factor_and_gradient_are_accurate(method: str, d: int, m: int, dtype: torch.dtype, condition: float) -> None:
    A64 = conditioned(d, m, condition)
    G = torch.randn(d, m, dtype=F64, generator=torch.Generator().manual_seed(1))
    A = A64.to(dtype, copy=True).requires_grad_()
    U = polar(A, torch.eye(d, m, dtype=dtype), method).frame
    U.backward(G.to(dtype))
    assert A.grad is not None
    # Rounding A's entries alone changes the result by eps · condition; the guarantee in float32 is 1e-4.
    bound = min(200 * torch.finfo(dtype).eps * (condition + 10), 1e-4)
    assert relative(U.detach().double(), torch.from_numpy(scipy.linalg.polar(A64.numpy())[0])) < bound
    assert relative(A.grad.double(), exact_vjp(A64, G)) < bound
    assert float((U.T @ U - torch.eye(m)).detach().norm()) < bound


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("d", "m"), [(6, 3), (3, 3)])
def test_derivatives_of_every_kind(method: str, d: int, m: int) -> None:
    A = conditioned(d, m, 5.0).requires_grad_()
    start = torch.eye(d, m, dtype=F64)

    def frame(A: Tensor) -> Tensor:
        return polar(A, start, method).frame

    assert torch.autograd.gradcheck(frame, A, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(frame, A, check_fwd_over_rev=True)


def test_a_stale_basis_gives_the_same_factor_and_gradient() -> None:
    old, new = conditioned(30, 10, 50.0), conditioned(30, 10, 50.0) + 1e-7 * conditioned(30, 10, 2.0, seed=3)
    start, G = torch.eye(30, 10, dtype=F64), conditioned(30, 10, 2.0, seed=4)
    basis = polar(old, start, "svd").basis
    assert basis is not None
    for dtype, bound in ((torch.float32, 1e-4), (F64, 1e-10)):
        A = new.to(dtype).requires_grad_()
        warm = polar(A, start.to(dtype), "eigh", basis.to(dtype))
        assert warm.basis is not None
        assert torch.equal(warm.basis, basis.to(dtype))  # the stale basis was used
        warm.frame.backward(G.to(dtype))
        assert A.grad is not None
        assert relative(warm.frame.detach().double(), polar(new, start, "svd").frame) < bound
        assert relative(A.grad.double(), exact_vjp(new, G)) < bound


def test_a_stale_basis_is_not_used_where_float32_would_lose_digits() -> None:
    A = conditioned(30, 10, 1e3)
    start = torch.eye(30, 10)
    basis = polar(A, start.double(), "svd").basis
    assert basis is not None
    assert by_basis(A.float(), basis.float()) is None
    found = polar(A.float(), start, "eigh", basis.float())
    assert relative(found.frame.double(), polar(A.float().double(), start.double(), "svd").frame) < 2e-6


def test_a_basis_of_another_problem_is_replaced() -> None:
    A, start = conditioned(30, 10, 100.0), torch.eye(30, 10, dtype=F64)
    found = polar(A, start, "eigh", torch.eye(10, dtype=F64))
    assert by_basis(A, torch.eye(10, dtype=F64)) is None
    assert found.basis is not None
    assert not torch.equal(found.basis, torch.eye(10, dtype=F64))
    torch.testing.assert_close(found.frame, polar(A, start, "svd").frame)


@pytest.mark.parametrize("method", METHODS)
def test_for_deficient_rank_the_factor_is_nearest_to_the_start(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decompose_module, "_warned", set())
    A = conditioned(9, 5, 10.0)
    A[:, 3:] = 0.0
    start = torch.linalg.qr(conditioned(9, 5, 2.0, seed=7))[0]
    A = A.requires_grad_()
    solves_it = method in ("svd", "trust-region")
    if solves_it:
        found = polar(A, start, method)
    else:
        with pytest.warns(RuntimeWarning, match=f"'{method}' cannot compute the polar factor"):
            found = polar(A, start, method)
    assert int(found.fallbacks) == (not solves_it)
    U = found.frame.detach()
    torch.testing.assert_close(U.T @ U, torch.eye(5, dtype=F64))
    # The factor of A nearest to the start is the limit for a vanishing proximal term towards it.
    limit = scipy.linalg.polar((A.detach() + 1e-7 * start).numpy())[0]
    np.testing.assert_allclose(U.numpy(), limit, atol=1e-5)
    found.frame.sum().backward()
    assert A.grad is not None
    assert torch.isfinite(A.grad).all()


def test_fallbacks_warn_once(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    monkeypatch.setattr(decompose_module, "_warned", set())
    A = torch.zeros(6, 3)
    A[0, 0] = 1.0
    for _ in range(3):
        assert int(polar(A, torch.eye(6, 3), "eigh").fallbacks) == 1
    assert len([w for w in recwarn if issubclass(w.category, RuntimeWarning)]) == 1


@pytest.mark.parametrize("start_is_in_the_range", [False, True])
def test_gauge_completes_the_frame(start_is_in_the_range: bool) -> None:
    A = conditioned(7, 4, 10.0)
    start = torch.eye(7, 5, dtype=F64)
    if start_is_in_the_range:
        start[:, 4] = polar(A, start[:, :4], "svd").frame[:, 0]
    for method in METHODS:
        found = polar(A, start, method)
        assert found.gauge is not None
        whole = torch.cat([found.frame, found.gauge], 1)
        torch.testing.assert_close(whole.T @ whole, torch.eye(5, dtype=F64))
        if not start_is_in_the_range:
            wanted = complete_frame(found.frame, torch.eye(4, dtype=F64), start)
            torch.testing.assert_close(whole, wanted)


def test_vmap_is_a_batch() -> None:
    batch = torch.stack([conditioned(6, 3, 5.0, seed) for seed in range(3)])
    start, G = torch.eye(6, 3, dtype=F64), conditioned(6, 3, 2.0, 9)

    def loss(A: Tensor) -> Tensor:
        return (polar(A, start, "eigh").frame * G).sum()

    gradients = torch.func.vmap(torch.func.grad(loss))(batch)
    torch.testing.assert_close(gradients, torch.stack([exact_vjp(A, G) for A in batch]))


@pytest.mark.parametrize("method", METHODS)
def test_the_operator_passes_opcheck(method: str) -> None:
    for A in (torch.randn(9, 4), torch.randn(2, 9, 4), torch.randn(0, 2, 9, 4), torch.randn(2, 9, 4, dtype=F64)):
        inputs = (A, torch.eye(9, 5, dtype=A.dtype).expand(*A.shape[:-1], 5), None, method)
        torch.library.opcheck(torch.ops.nearest_etf.polar.default, inputs)


def test_lyapunov_by_products_alone() -> None:
    B = conditioned(20, 8, 30.0)
    P, S = B.T @ B, torch.randn(8, 8, dtype=F64)
    S = S - S.T
    Phi = lyapunov_by_sign(P, S)
    assert relative(P @ Phi + Phi @ P, S) < 1e-10


@pytest.mark.parametrize("solve", [by_eigh, lambda A: by_basis(A, torch.eye(A.shape[1]))])
def test_methods_return_none_if_not_accurate_enough(solve: Callable[[Tensor], object]) -> None:
    assert solve(torch.ones(5, 3)) is None


def test_entries_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        polar(torch.full((4, 2), torch.nan), torch.eye(4, 2))


@pytest.mark.parametrize(("d", "m"), [(40, 12), (12, 12), (64, 64), (100, 3)])
@pytest.mark.parametrize("condition", [1e2, 1e4, 3e5])
def test_auto_in_float32_keeps_the_digits_of_the_input(d: int, m: int, condition: float) -> None:
    """On the CPU, against float64 with the same entries, so that only the computation loses digits."""
    A = conditioned(d, m, condition).float()
    G = torch.randn(d, m, generator=torch.Generator().manual_seed(1))
    leaf = A.clone().requires_grad_()
    U = polar(leaf, torch.eye(d, m)).frame
    U.backward(G)
    assert leaf.grad is not None
    wanted = torch.from_numpy(scipy.linalg.polar(A.double().numpy())[0])
    assert relative(U.detach().double(), wanted) < 2e-6
    assert float((U.double().T @ U.double() - torch.eye(m)).detach().norm()) < 2e-6 * m**0.5
    assert relative(leaf.grad.double(), exact_vjp(A.double(), G.double())) < 1e-5


@pytest.mark.parametrize(("d", "m"), [(40, 12), (12, 12), (100, 3)])
def test_a_batch_keeps_the_digits_of_each_of_its_members(d: int, m: int) -> None:
    """As above, in one batch of all condition numbers; the last one is too large for the Gram matrix."""
    A = torch.stack([conditioned(d, m, condition, seed) for seed, condition in enumerate((3.0, 1e2, 1e4, 5e4, 3e5))])
    A, G = A.float().requires_grad_(), torch.randn(5, d, m, generator=torch.Generator().manual_seed(1))
    found = polar(A, torch.eye(d, m))
    assert torch.as_tensor(found.fallbacks).tolist() == [0, 0, 0, 0, 1]
    (gradient,) = torch.autograd.grad(found.frame, A, G)
    for U, H_bar, member, cotangent in zip(found.frame.detach(), gradient, A.detach().double(), G, strict=True):
        assert relative(U.double(), torch.from_numpy(scipy.linalg.polar(member.numpy())[0])) < 2e-6
        assert relative(H_bar.double(), exact_vjp(member, cotangent.double())) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_only_inaccurate_members_are_decomposed_alone(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    A = torch.stack([conditioned(9, 5, 10.0, seed) for seed in range(6)]).to(dtype)
    A[2, :, 3:] = 0.0
    A[4] = 0.0
    alone = []

    def counted(A: Tensor, start: Tensor) -> Polar:
        alone.append(A)
        return by_svd(A, start)

    monkeypatch.setattr(decompose_module, "by_svd", counted)
    found = polar(A, torch.eye(9, 6, dtype=dtype))
    assert [A.equal(B) for A, B in zip(alone, A[[2, 4]], strict=True)] == [True, True]
    assert found.gauge is not None
    whole = torch.cat([found.frame, found.gauge], -1)
    torch.testing.assert_close(whole.mT @ whole, torch.eye(6, dtype=dtype).expand(6, 6, 6))


def test_a_batch_on_an_accelerator_is_nan_where_products_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    A = torch.stack([conditioned(9, 5, 10.0), torch.zeros(9, 5, dtype=F64)])
    A.requires_grad_()
    monkeypatch.setattr(decompose_module, "by_matmul", as_on_an_accelerator)
    found = polar(A, torch.eye(9, 5, dtype=F64), "matmul")
    assert torch.as_tensor(found.fallbacks).tolist() == [0, 1]
    assert found.frame.isnan().any((-2, -1)).tolist() == [False, True]
    (gradient,) = torch.autograd.grad(found.frame[0].sum(), A)
    torch.testing.assert_close(gradient[0], exact_vjp(A[0].detach(), torch.ones(9, 5, dtype=F64)))
    assert gradient[1].count_nonzero() == 0


def as_on_an_accelerator(A: Tensor) -> Polar:
    """`by_matmul` as on an accelerator."""
    X, solved = orthonormalised(A)
    return Polar(torch.where(solved[..., None, None], X, torch.nan), Products(solved), fallbacks=(~solved).long())
