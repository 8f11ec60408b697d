"""The differentiable nearest ETF against the reference: solutions, gradients, precisions, compilers, bad input."""

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
def test_solution_and_derivatives_agree_with_the_reference(
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
def test_absent_classes_follow_the_reference(formulation: Any, absent: list[int]) -> None:
    H, frame, _ = problem(9, 6)
    H[:, absent] = 0.0
    wanted = reference_nearest_etf(H.numpy(), method="svd", formulation=formulation, initial=frame.numpy()).frame
    for dtype, tolerance in ((F64, 1e-10), (torch.float32, 1e-5)):
        U = nearest_etf(H.to(dtype), formulation=formulation, method="svd", initial=frame.to(dtype))
        np.testing.assert_allclose(U.numpy(), wanted, atol=tolerance)


def test_half_precision_is_solved_in_float32_and_returned_in_its_dtype() -> None:
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
        return (nearest_etf(H, frame, 0.3, method=method) * G).sum()  # this δ keeps A well conditioned

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
def test_bad_input_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_etf(**{"class_means": torch.eye(6, 3), **change})


@pytest.mark.parametrize("initial", ["canonical", "random", "feature-polar"])
def test_initial_frames_by_name_agree_with_the_reference(initial: Any) -> None:
    H, _, _ = problem(9, 4)
    H[:, 2] = 0.0  # the frame is not unique: `initial` determines it
    wanted = reference_nearest_etf(H.numpy(), method="svd", initial=initial)
    np.testing.assert_allclose(nearest_etf(H, initial=initial).numpy(), wanted.frame, atol=1e-10)


@pytest.mark.parametrize("formulation", ["paper", "gauge-free"])
def test_the_certificate_agrees_with_the_reference(formulation: Any) -> None:
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


SHAPES = [(6, 9, 4), (2, 3, 9, 4), (5, 5, 5), (6, 7, 2), (6, 4, 5), (0, 6, 3), (0, 2, 6, 3)]
# Bounds of a float32 frame and its gradient, relative to single solves, as in the table of tests/cross.
SINGLE = (1e-5, 1e-3)


def batch_of_problems(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Class means, frames and cotangents; the first members lack all classes, one, all but one, or are badly scaled."""
    generator = torch.Generator().manual_seed(sum(shape))
    H, frames, G = torch.randn(3, *shape, dtype=F64, generator=generator)
    members = H.view(-1, *shape[-2:])
    if len(members) >= 5:
        members[0] = 0.0
        members[1, :, 0] = 0.0
        members[2, :, :-1] = 0.0
        members[3] *= 1e-15
        members[4] *= 1e15
    d, K = shape[-2:]
    frames = torch.linalg.qr(frames[..., : min(d, K)])[0]
    return H, frames if d >= K else from_coordinates(frames), G


def frame_and_gradients(
    H: torch.Tensor, frames: torch.Tensor, G: torch.Tensor, *, pinned: bool, formulation: Any, method: str = "auto"
) -> list[torch.Tensor]:
    H, frames = H.clone().requires_grad_(), frames.clone().requires_grad_(pinned)
    proximal, initial = (frames, None) if pinned else (None, frames)
    U = nearest_etf(H, proximal, 0.1, method=method, formulation=formulation, initial=initial)
    return [U.detach(), *torch.autograd.grad(U, (H, frames) if pinned else H, G)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("formulation", ["paper", "gauge-free"])
@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_batch_agrees_with_single_solves(
    shape: tuple[int, ...], formulation: Any, pinned: bool, dtype: torch.dtype
) -> None:
    formulation = formulation if shape[-2] >= shape[-1] else "gauge-free"
    problems = [x.to(dtype) for x in batch_of_problems(shape)]
    found = frame_and_gradients(*problems, pinned=pinned, formulation=formulation)
    assert [tuple(x.shape) for x in found] == [shape] * (2 + pinned)
    for index in np.ndindex(shape[:-2]):
        singles = frame_and_gradients(*(x[index] for x in problems), pinned=pinned, formulation=formulation)
        for order, (ours, single) in enumerate(zip(found, singles, strict=True)):
            bound = 1e-12 if dtype == F64 else SINGLE[min(order, 1)]
            assert float((ours[index] - single).norm()) <= bound * float(single.norm()), (index, order)


@pytest.mark.parametrize("method", ["svd", "eigh", "matmul", "trust-region"])
@pytest.mark.parametrize("pinned", [True, False])
def test_every_method_solves_batches(method: str, pinned: bool) -> None:
    H, frames, G = batch_of_problems((3, 9, 4))
    wanted = frame_and_gradients(H, frames, G, pinned=pinned, formulation="paper")
    for dtype, bound in ((F64, 1e-9), (torch.float32, 1e-4)):
        cast = (x.to(dtype) for x in (H, frames, G))
        found = frame_and_gradients(*cast, pinned=pinned, formulation="paper", method=method)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours.double(), theirs, atol=bound, rtol=bound)


@pytest.mark.parametrize("delta", [0.0, 0.3])
@pytest.mark.parametrize("formulation", ["paper", "gauge-free"])
def test_all_derivatives_of_a_batch(delta: float, formulation: Any) -> None:
    H, frames, _ = batch_of_problems((2, 2, 5, 3))
    H, frame = H.requires_grad_(), frames[0, 0].clone().requires_grad_(delta > 0)  # one proximal point for all

    def solved(H: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
        return nearest_etf(H, frame, delta, formulation=formulation)

    assert torch.autograd.gradcheck(solved, (H, frame), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(solved, (H, frame), check_fwd_over_rev=True)


def test_leading_dimensions_broadcast() -> None:
    H, frames, _ = batch_of_problems((2, 3, 9, 4))
    first, second = H[0, 0], frames[:, :1]
    torch.testing.assert_close(nearest_etf(first, second)[1, 0], nearest_etf(first, second[1, 0]))
    torch.testing.assert_close(nearest_etf(H, frames[1, 2])[0, 1], nearest_etf(H[0, 1], frames[1, 2]))
    mixed = nearest_etf(H[:1], frames, initial=frames[:, 2:])
    assert mixed.shape == (2, 3, 9, 4)
    torch.testing.assert_close(mixed[1, 0], nearest_etf(H[0, 0], frames[1, 0]))


@pytest.mark.parametrize("initial", ["canonical", "random", "feature-polar"])
@pytest.mark.parametrize(("d", "K"), [(9, 4), (3, 4)])
def test_initial_frames_by_name_for_batches(initial: str, d: int, K: int) -> None:
    H = batch_of_problems((5, d, K))[0]
    formulation: Any = "paper" if d >= K else "gauge-free"
    together = nearest_etf(H, initial=initial, formulation=formulation)
    for U, single in zip(together, H, strict=True):
        torch.testing.assert_close(U, nearest_etf(single, initial=initial, formulation=formulation))


@pytest.mark.parametrize("pinned", [True, False])
def test_vmap_agrees_with_a_batch(pinned: bool) -> None:
    H, frames, G = batch_of_problems((3, 6, 4))

    def loss(H: torch.Tensor, frame: torch.Tensor, G: torch.Tensor) -> torch.Tensor:
        return (nearest_etf(H, frame if pinned else None, 0.1) * G).sum()

    mapped = torch.func.vmap(torch.func.grad(loss))(H, frames, G)
    torch.testing.assert_close(mapped, torch.func.grad(loss)(H, frames, G))
    within = torch.func.vmap(lambda frame: nearest_etf(H, frame, 0.1))(frames)  # a batch for each frame
    torch.testing.assert_close(within, nearest_etf(H, frames[:, None], 0.1))


@pytest.mark.parametrize("method", ["eigh", "matmul"])
@pytest.mark.parametrize("pinned", [True, False])
def test_a_batch_compiles_without_a_graph_break(method: str, pinned: bool) -> None:
    H, frames, G = (x.float() for x in batch_of_problems((3, 9, 4)))

    def loss(H: torch.Tensor) -> torch.Tensor:
        return (nearest_etf(H, frames if pinned else None, 0.3, method=method) * G).sum()

    torch._dynamo.reset()
    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = H.clone().requires_grad_()
        function(leaf).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_means": torch.zeros(2, 3, 6)}, r"has shape \(2, 3, 6\); expected \(d, K\).*class_means.T"),
        ({"proximal": torch.zeros(3, 6, 3)}, r"has shape \(3, 6, 3\); expected \(2, 6, 3\).*broadcast"),
        ({"initial": torch.zeros(2, 3, 6)}, r"expected \(2, 6, 3\)"),
        ({"class_means": torch.full((2, 6, 3), torch.nan)}, "NaN or infinite"),
    ],
)
def test_bad_batches_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_etf(**{"class_means": torch.zeros(2, 6, 3), **change})


def test_solve_refuses_batches() -> None:
    with pytest.raises(ValueError, match=r"class_means has shape \(2, 6, 3\); solve expects one problem.*nearest_etf"):
        solve(torch.zeros(2, 6, 3))
    with pytest.raises(ValueError, match="proximal has shape"):
        solve(torch.eye(6, 3), torch.zeros(2, 6, 3))
