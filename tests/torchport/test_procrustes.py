"""The differentiable nearest ETF against the reference's: solutions, gradients, precisions, compilers, refusals."""

from typing import Any

import numpy as np
import pytest
import torch

from nearest_etf.reference import nearest_etf as reference_nearest_etf
from nearest_etf.reference import nearest_etf_jvp, nearest_etf_vjp
from nearest_etf.torchport import nearest_etf, solve
from nearest_etf.torchport.simplex import from_coordinates, to_coordinates

F64 = torch.float64
CASES = [(d, K, form) for d, K in ((9, 4), (5, 5), (6, 2)) for form in ("paper", "gauge-free")] + [(4, 5, "gauge-free")]


def problem(d: int, K: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Class means, a frame and a cotangent, (d, K) each."""
    generator = torch.Generator().manual_seed(d + K)
    H, G = torch.randn(2, d, K, dtype=F64, generator=generator)
    frame = torch.linalg.qr(torch.randn(d, min(d, K), dtype=F64, generator=generator))[0]
    return H / H.norm(), frame if d >= K else from_coordinates(frame), G


@pytest.mark.parametrize("method", ["svd", "eigh", "matmul", "trust-region"])
@pytest.mark.parametrize(("d", "K", "formulation"), CASES)
@pytest.mark.parametrize("pinned", [True, False])
def test_solution_and_derivatives_are_the_references(
    method: str, d: int, K: int, formulation: Any, pinned: bool
) -> None:
    H, frame, G = (x.requires_grad_() for x in problem(d, K))
    initial = None if pinned else frame.detach()
    solution = reference_nearest_etf(
        H.detach().numpy(),
        frame.detach().numpy() if pinned else None,
        0.1,
        method="svd",
        formulation=formulation,
        initial=None if initial is None else initial.numpy(),
    )

    def solve(H: torch.Tensor) -> torch.Tensor:
        return nearest_etf(H, frame if pinned else None, 0.1, method=method, formulation=formulation, initial=initial)

    U = solve(H)
    U.backward(G)
    H_bar, frame_bar = nearest_etf_vjp(solution, G.detach().numpy())
    assert H.grad is not None
    np.testing.assert_allclose(U.detach().numpy(), solution.frame, atol=1e-10)
    np.testing.assert_allclose(H.grad.numpy(), H_bar, atol=1e-8)
    if pinned:
        assert frame.grad is not None
        np.testing.assert_allclose(frame.grad.numpy(), frame_bar, atol=1e-8)
    pushed = torch.func.jvp(solve, (H.detach(),), (G.detach(),))[1]
    np.testing.assert_allclose(pushed.detach().numpy(), nearest_etf_jvp(solution, G.detach().numpy()), atol=1e-8)


@pytest.mark.parametrize("formulation", ["paper", "gauge-free"])
@pytest.mark.parametrize("absent", [[0], [1, 3, 4]])
def test_absent_classes_follow_the_references_rule(formulation: Any, absent: list[int]) -> None:
    H, frame, _ = problem(9, 6)
    H[:, absent] = 0.0
    wanted = reference_nearest_etf(H.numpy(), method="svd", formulation=formulation, initial=frame.numpy()).frame
    for dtype, tolerance in ((F64, 1e-10), (torch.float32, 1e-5)):
        U = nearest_etf(H.to(dtype), formulation=formulation, method="svd", initial=frame.to(dtype))
        np.testing.assert_allclose(U.numpy(), wanted, atol=tolerance)


def test_half_precision_is_solved_in_single_and_returned_as_it_came() -> None:
    H, frame, _ = problem(9, 4)
    half = H.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        U = nearest_etf(half, frame.float())
    assert U.dtype == torch.bfloat16
    wanted = nearest_etf(half.float(), frame.float())
    torch.testing.assert_close(U, wanted.bfloat16())


@pytest.mark.parametrize("method", ["eigh", "matmul", "trust-region"])
def test_compiles_without_a_graph_break(method: str) -> None:
    H, frame, G = (x.float() for x in problem(9, 4))

    def loss(H: torch.Tensor) -> torch.Tensor:
        return (nearest_etf(H, frame, 0.3, method=method) * G).sum()  # δ that keeps A well conditioned

    torch._dynamo.reset()
    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = H.clone().requires_grad_()
        function(leaf).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_meta_tensors_have_shapes() -> None:
    H = torch.empty(9, 4, device="meta", requires_grad=True)
    U = nearest_etf(H)
    U.sum().backward()
    assert U.shape == (9, 4)
    assert H.grad is not None
    assert H.grad.shape == (9, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_means": torch.zeros(4)}, r"expected a floating-point matrix \(d, K\)"),
        ({"class_means": torch.zeros(4, 2, dtype=torch.int64)}, "floating-point"),
        ({"class_means": torch.zeros(4, 1)}, "at least 2 classes"),
        ({"class_means": torch.zeros(3, 6)}, r"has shape \(3, 6\); expected \(d, K\).*class_means.T"),
        ({"initial": "identity"}, "'canonical', 'random', 'feature-polar'"),
        ({"class_means": torch.zeros(4, 5)}, 'formulation="gauge-free"'),
        ({"class_means": torch.full((6, 3), torch.inf)}, "NaN or infinite"),
        ({"proximal": torch.zeros(3, 6)}, r"expected \(6, 3\)"),
        ({"delta": -1.0}, "not negative"),
        ({"method": "qr"}, "'svd', 'eigh', 'matmul'"),
        ({"formulation": "theirs"}, "'paper' or 'gauge-free'"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_etf(**{"class_means": torch.eye(6, 3), **change})


@pytest.mark.parametrize("initial", ["canonical", "random", "feature-polar"])
def test_initial_frames_by_name_are_the_references(initial: Any) -> None:
    H, _, _ = problem(9, 4)
    H[:, 2] = 0.0  # the frame is not unique, and `initial` decides
    wanted = reference_nearest_etf(H.numpy(), method="svd", initial=initial)
    np.testing.assert_allclose(nearest_etf(H, initial=initial).numpy(), wanted.frame, atol=1e-10)


@pytest.mark.parametrize("formulation", ["paper", "gauge-free"])
def test_a_solution_certifies_itself_as_the_references_does(formulation: Any) -> None:
    H, frame, _ = problem(9, 4)
    ours = solve(H, frame, 0.1, formulation=formulation)
    theirs = reference_nearest_etf(H.numpy(), frame.numpy(), 0.1, formulation=formulation)
    np.testing.assert_allclose(ours.classifier.numpy(), theirs.classifier, atol=1e-10)
    np.testing.assert_allclose(ours.singular_values.numpy(), theirs.singular_values, rtol=1e-10)
    assert ours.condition_number == pytest.approx(theirs.condition_number, rel=1e-9)
    assert ours.value == pytest.approx(float(theirs.singular_values.sum()), rel=1e-12)
    for solution in (ours, theirs):
        assert abs(solution.optimality_gap) < 1e-12
        assert solution.gradient_norm < 1e-12
    assert ours.orthogonality < 1e-12
    worse = ours._replace(variable=frame if formulation == "paper" else to_coordinates(frame)[0])
    assert worse.optimality_gap > 1e-3
    assert worse.gradient_norm > 1e-3
