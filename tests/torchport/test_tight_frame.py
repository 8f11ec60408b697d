"""The nearest tight frame: formulas in another form, derivatives, degenerate class means, norms, memory."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import solve_continuous_lyapunov
from torch import Tensor

from nearest_etf.torchport import (
    canonical_tight_frame,
    classifier_from_tight_frame,
    nearest_etf,
    nearest_tight_frame,
    solve_tight_frame,
)
from nearest_etf.torchport.simplex import centred
from nearest_etf.torchport.tight_frame import named_or_given_tight_frame

F64 = torch.float64
METHODS = ["svd", "eigh", "matmul", "trust-region"]
FEW = [(9, 4), (5, 5), (4, 5), (2, 2)]  # K < d+1 and K = d+1
MANY = [(3, 5), (4, 9), (2, 7), (1, 4), (8, 40)]  # K > d+1


def problem(d: int, K: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Class means, a tight frame and a cotangent, (d, K) each."""
    generator = torch.Generator().manual_seed(seed)
    H, F0, G = torch.randn(3, d, K, dtype=F64, generator=generator)
    return H / H.norm(), nearest_tight_frame(F0), G


def is_tight(F: Tensor, tolerance: float) -> bool:
    """Whether F (d, K), K > d+1, has orthonormal rows that sum to zero."""
    error = max((F @ F.mT - torch.eye(len(F), dtype=F.dtype)).abs().max().item(), F.sum(1).abs().max().item())
    return error < tolerance


@pytest.mark.parametrize(("d", "K"), MANY)
def test_the_frame_is_the_whitened_class_means(d: int, K: int) -> None:
    H, F0, _ = problem(d, K)
    cases = [
        (nearest_tight_frame(H), centred(H)),
        (nearest_tight_frame(H, F0, 0.3), 2 / d**0.5 * centred(H) + 0.3 * F0),
    ]
    for found, A in cases:
        values, V = torch.linalg.eigh(A @ A.mT)
        whitened = (V / values.sqrt()) @ V.mT @ A
        torch.testing.assert_close(found, whitened, rtol=0, atol=1e-12)
        assert is_tight(found, 1e-12)


@pytest.mark.parametrize(("d", "K"), MANY)
def test_the_gradient_solves_the_lyapunov_equation(d: int, K: int) -> None:
    """`PΦ + ΦP = GFᵀ − FGᵀ`, `C̄ = ΦF + P⁻¹G(I − FᵀF)`, with SciPy's solver."""
    H, _, G = problem(d, K)
    F = nearest_tight_frame(H.requires_grad_())
    (found,) = torch.autograd.grad(F, H, G)
    C, N, G_ = centred(H.detach()).numpy(), F.detach().numpy(), centred(G).numpy()
    P = C @ N.T
    Phi = solve_continuous_lyapunov(P, G_ @ N.T - N @ G_.T)
    C_bar = Phi @ N + np.linalg.solve(P, G_ - G_ @ N.T @ N)
    np.testing.assert_allclose(found.numpy(), C_bar - C_bar.mean(1, keepdims=True), atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("d", "K"), [(5, 4), (4, 4), (3, 4), (3, 5), (2, 6), (1, 3)])
@pytest.mark.parametrize("pinned", [True, False])
def test_gradcheck(method: str, d: int, K: int, pinned: bool) -> None:
    H, F0, _ = problem(d, K)

    def frame(H: Tensor, F0: Tensor) -> Tensor:
        return nearest_tight_frame(H, F0 if pinned else None, 0.3, method=method)

    assert torch.autograd.gradcheck(frame, (H.requires_grad_(), F0.requires_grad_()), check_forward_ad=pinned)


@pytest.mark.parametrize(("d", "K"), [(4, 4), (3, 4), (3, 6)])
def test_second_derivatives(d: int, K: int) -> None:
    H, F0, _ = problem(d, K)
    assert torch.autograd.gradgradcheck(lambda H: nearest_tight_frame(H, F0, 0.3), H.requires_grad_())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("d", "K"), FEW)
@pytest.mark.parametrize("pinned", [True, False])
def test_for_few_classes_it_agrees_with_the_gauge_free_etf(method: str, d: int, K: int, pinned: bool) -> None:
    H, F0, G = problem(d, K)
    answers = []
    for function in (nearest_tight_frame, lambda *a, **k: nearest_etf(*a, formulation="gauge-free", **k)):
        leaf = H.clone().requires_grad_()
        F = function(leaf, F0 if pinned else None, 1e-3, method=method)
        F.backward(G)
        answers.append((F.detach(), leaf.grad, classifier_from_tight_frame(F.detach())))
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    W = answers[0][2]
    torch.testing.assert_close(W @ W.mT, K / (K - 1) * centred(torch.eye(K, dtype=F64)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_methods_and_precisions_agree_and_the_certificate_holds(method: str, dtype: torch.dtype) -> None:
    tolerance = 1e-10 if dtype == F64 else 2e-5
    for seed in range(3):
        for d, K in MANY:
            H, F0, _ = problem(d, K, seed)
            wanted = nearest_tight_frame(H, F0, 0.1, method="svd")
            solution = solve_tight_frame(H.to(dtype), F0.to(dtype), 0.1, method=method)
            torch.testing.assert_close(solution.frame.double(), wanted, rtol=0, atol=tolerance)
            assert abs(solution.optimality_gap) < tolerance
            assert solution.gradient_norm < tolerance
            assert solution.orthogonality < tolerance
            other = nearest_tight_frame(torch.randn(d, K, dtype=F64))
            A = 2 / d**0.5 * centred(H) + 0.1 * F0
            assert float((other * A).sum()) <= float((wanted * A).sum()) + 1e-12


def test_a_warm_start_reuses_the_basis_of_an_earlier_problem() -> None:
    H, F0, _ = problem(70, 300)
    first = solve_tight_frame(H, F0)
    later = solve_tight_frame(H + 1e-9 * torch.randn_like(H), F0, basis=first.basis)
    assert later.basis is not None
    assert torch.equal(later.basis, first.basis)  # type: ignore[arg-type]
    assert is_tight(later.frame, 1e-10)


@pytest.mark.parametrize("method", ["auto", *METHODS])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("kind", ["zero", "one class", "few classes", "one direction"])
@pytest.mark.filterwarnings("ignore:the polar factor")
def test_rank_deficient_class_means_are_completed(method: str, dtype: torch.dtype, kind: str) -> None:
    d, K = 4, 9
    H, F0, G = (x.to(dtype) for x in problem(d, K))
    H = H.clone()
    if kind == "zero":
        H.zero_()
    elif kind == "one class":
        H[:, 1:] = 0.0
    elif kind == "few classes":
        H[:, 3:] = 0.0
    else:
        H[1:] = 0.0
    tolerance = 1e-10 if dtype == F64 else 1e-4
    for proximal, initial in ((None, F0), (None, None), (F0, None)):
        leaf = H.clone().requires_grad_()
        F = nearest_tight_frame(leaf, proximal, method=method, initial=initial)
        F.backward(G)
        assert is_tight(F.detach(), tolerance)
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        if kind == "zero":
            start = F0 if proximal is not None or initial is not None else canonical_tight_frame(d, K, dtype=dtype)
            torch.testing.assert_close(F.detach(), start, rtol=0, atol=tolerance)
    rank = int(torch.linalg.matrix_rank(centred(H).double(), rtol=1e-6))
    wanted = torch.linalg.svdvals(centred(H).double()).sum()  # the value of every completion
    found = (nearest_tight_frame(H, method=method).double() * centred(H).double()).sum()
    assert rank < d
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("seen", [1, 2, 3])
@pytest.mark.parametrize("initial", ["canonical", "random"])
def test_gradcheck_with_missing_classes(seen: int, initial: str) -> None:
    X = problem(4, 9)[0][:, :seen].clone().requires_grad_()

    def frame(X: Tensor) -> Tensor:
        return nearest_tight_frame(torch.cat([X, X.new_zeros(4, 9 - seen)], 1), method="svd", initial=initial)

    assert torch.autograd.gradcheck(frame, X, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(frame, X)


@pytest.mark.parametrize("method", ["eigh", "matmul"])
def test_compiles_without_a_graph_break(method: str) -> None:
    H, F0, G = (x.float() for x in problem(3, 8))

    def loss(H: Tensor) -> Tensor:
        return (classifier_from_tight_frame(nearest_tight_frame(H, F0, 0.3, method=method)) * G.mT).sum()

    torch._dynamo.reset()
    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = H.clone().requires_grad_()
        function(leaf).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_vmap_and_meta_tensors() -> None:
    H = torch.stack([problem(3, 8, seed)[0] for seed in range(4)])
    one_by_one = torch.stack([nearest_tight_frame(h) for h in H])
    torch.testing.assert_close(torch.func.vmap(nearest_tight_frame)(H), one_by_one)
    deferred = torch.empty(3, 8, device="meta", requires_grad=True)
    nearest_tight_frame(deferred).sum().backward()
    assert deferred.grad is not None
    assert deferred.grad.shape == (3, 8)


def test_half_precision_is_solved_in_float32_and_returned_in_its_dtype() -> None:
    half = problem(4, 9)[0].bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        F = nearest_tight_frame(half)
    assert F.dtype == torch.bfloat16
    torch.testing.assert_close(F, nearest_tight_frame(half.float()).bfloat16())
    assert classifier_from_tight_frame(F, "equal").dtype == torch.bfloat16


@pytest.mark.parametrize(("d", "K"), [*FEW, *MANY])
def test_canonical_and_random_frames_are_tight(d: int, K: int) -> None:
    F = canonical_tight_frame(d, K, dtype=F64)
    zero = torch.zeros(d, K, dtype=F64)
    torch.testing.assert_close(nearest_tight_frame(zero), F, rtol=0, atol=1e-12)
    for frame in (F, nearest_tight_frame(zero, initial="random"), nearest_tight_frame(F, initial="feature-polar")):
        squares = torch.linalg.svdvals(centred(frame))
        torch.testing.assert_close(squares[: min(d, K - 1)], torch.ones(min(d, K - 1), dtype=F64))
        assert float(squares[min(d, K - 1) :].abs().sum()) < 1e-12
    assert named_or_given_tight_frame("random", d, K).dtype == torch.float32


def test_feature_polar_is_the_solution_itself() -> None:
    H, _, _ = problem(4, 9)
    start = nearest_tight_frame(torch.zeros_like(H), initial=nearest_tight_frame(H))
    torch.testing.assert_close(nearest_tight_frame(H, initial="feature-polar"), start)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_norms_of_the_classifier(dtype: torch.dtype) -> None:
    tolerance = 1e-12 if dtype == F64 else 1e-5
    d, K = 8, 48
    F = problem(d, K)[1].to(dtype)
    unit, tight, equal = (classifier_from_tight_frame(F, norms) for norms in ("unit", "tight", "equal"))  # type: ignore[arg-type]
    identity = K / d * torch.eye(d, dtype=dtype)
    for W in (unit, equal):
        torch.testing.assert_close(W.norm(dim=1), torch.ones(K, dtype=dtype))
    torch.testing.assert_close(tight.norm() / K**0.5, torch.ones((), dtype=dtype))
    torch.testing.assert_close(unit * tight.norm(dim=1, keepdim=True), tight)
    for W in (tight, equal):
        torch.testing.assert_close(W.mT @ W, identity, rtol=0, atol=5 * K / d * tolerance)
    assert float((unit.mT @ unit - identity).norm()) > 0.1
    assert float((equal - unit).norm() / unit.norm()) < 0.2  # alternating projections change little


@pytest.mark.parametrize("norms", ["unit", "tight", "equal"])
def test_gradcheck_of_the_classifier(norms: Any) -> None:
    F = problem(3, 12)[1].requires_grad_()
    assert torch.autograd.gradcheck(lambda F: classifier_from_tight_frame(F, norms), F, atol=1e-4)


@pytest.mark.parametrize("norms", ["unit", "equal"])
def test_negligible_columns_give_zero_rows_without_gradient(norms: Any) -> None:
    F = torch.cat([problem(3, 10)[1], torch.zeros(3, 2, dtype=F64)], 1)
    F[:, 11] = 1e-12
    W = classifier_from_tight_frame(F.requires_grad_(), norms)
    (gradient,) = torch.autograd.grad(W.square().sum() + W.sum(), F)
    assert not W[10:].any()
    assert not gradient[:, 11].abs().max() > 10
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_means": torch.zeros(4)}, r"expected a floating-point matrix \(d, K\)"),
        ({"class_means": torch.zeros(4, 9, dtype=torch.int64)}, "floating-point"),
        ({"class_means": torch.zeros(4, 1)}, "expected at least 1 and 2"),
        ({"class_means": torch.full((4, 9), torch.inf)}, "NaN or infinite"),
        ({"initial": "identity"}, "'canonical', 'random', 'feature-polar'"),
        ({"initial": torch.zeros(9, 4)}, r"initial has shape \(9, 4\); expected \(4, 9\)"),
        ({"proximal": torch.zeros(9, 4)}, r"proximal has shape \(9, 4\); expected \(4, 9\)"),
        ({"delta": -1.0}, "not negative"),
        ({"method": "qr"}, "'svd', 'eigh', 'matmul'"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_tight_frame(**{"class_means": torch.randn(4, 9), **change})


@pytest.mark.parametrize(("d", "K"), [(1, 3), (3, 5), (5, 7), (1, 5)])
def test_sizes_without_equal_norms_are_refused(d: int, K: int) -> None:
    with pytest.raises(ValueError, match=f"no tight frame of {K} unit vectors sums to zero"):
        classifier_from_tight_frame(canonical_tight_frame(d, K), "equal")


def test_unknown_norms_are_refused() -> None:
    with pytest.raises(ValueError, match="norms = 'length'; expected one of 'unit', 'tight', 'equal'"):
        classifier_from_tight_frame(torch.zeros(4, 9), "length")  # type: ignore[arg-type]


MEASURED = """
import sys, torch
from nearest_etf.torchport import nearest_tight_frame
def kilobytes(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
torch.set_num_threads(1)
d, K = 128, 100_000
H, G = torch.randn(2, d, K, generator=torch.Generator().manual_seed(0))
H = (H / H.norm()).requires_grad_()
nearest_tight_frame(H[:, :100]).sum().backward()
H.grad = None
open("/proc/self/clear_refs", "w").write("5")  # resets the high-water mark
before = kilobytes("VmRSS")
nearest_tight_frame(H).backward(G)
print((kilobytes("VmHWM") - before) * 1024 / (H.numel() * H.element_size()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_hundred_thousand_classes() -> None:
    """At d = 128; the bound, relative to the size of the class means, is 2 GB at d = 512."""
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    assert 1 < float(done.stdout) < 2e9 / (512 * 100_000 * 4)
