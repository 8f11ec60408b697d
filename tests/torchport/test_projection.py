"""Simplex ETFs without training: the projection of trained weights, and the distance of class means."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nearest_etf.reference import nearest_etf as reference_nearest_etf
from nearest_etf.reference import neural_collapse
from nearest_etf.torchport import NeuralCollapseMeter, etf_distance, nearest_etf, project_to_etf
from nearest_etf.torchport.simplex import centred, simplex_etf

F64 = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def centred_rows(W: Tensor) -> Tensor:
    return W - W.mean(0)


@pytest.mark.parametrize(("d", "K"), [(9, 4), (4, 4), (3, 4), (5, 2), (64, 10)])
def test_the_projection_is_the_nearest_scaled_etf(d: int, K: int) -> None:
    W = random(K, d)
    projected, bias = project_to_etf(W)
    assert bias is None
    # An ETF: equal norms, and −1/(K−1) of their square between any two rows.
    gram = projected @ projected.T
    torch.testing.assert_close(gram, gram[0, 0] * (K * torch.eye(K, dtype=F64) - 1) / (K - 1))
    # The direction is the reference's, and no other scale is better.
    frame = reference_nearest_etf(W.T.numpy(), method="svd", formulation="gauge-free").frame
    np.testing.assert_allclose((projected / projected.norm()).numpy(), frame.T / np.sqrt(K - 1), atol=1e-10)
    error = (centred_rows(W) - projected).norm()
    for scale in (0.999, 1.001):
        assert (centred_rows(W) - scale * projected).norm() > error
    for seed in range(20):  # nor any other ETF at its best scale
        other = centred(torch.linalg.qr(random(d, K, seed=seed))[0] if d >= K else nearest_etf_of(seed, d, K)).T
        other = other * (W * other).sum() / other.square().sum()
        assert (centred_rows(W) - other).norm() > error - 1e-12


def nearest_etf_of(seed: int, d: int, K: int) -> Tensor:
    return nearest_etf(random(d, K, seed=seed), formulation="gauge-free")


def test_a_layer_becomes_a_new_layer_of_its_kind() -> None:
    layer = nn.Linear(9, 4).eval()
    layer.weight.requires_grad_(False)
    before = [x.clone() for x in layer.parameters()]
    etf = project_to_etf(layer)
    assert type(etf) is nn.Linear
    assert (etf.in_features, etf.out_features, etf.training) == (9, 4, False)
    assert isinstance(etf.weight, nn.Parameter)
    assert (etf.weight.requires_grad, etf.bias.requires_grad) == (False, True)
    assert etf.bias.data_ptr() != layer.bias.data_ptr()
    torch.testing.assert_close(etf.bias, layer.bias)
    weight, bias = project_to_etf(layer.weight, layer.bias)
    assert torch.equal(etf.weight, weight)
    assert bias is not None
    assert torch.equal(etf.bias, bias)
    assert all(torch.equal(x, y) for x, y in zip(before, layer.parameters(), strict=True))
    etf(torch.randn(2, 9)).sum().backward()
    assert etf.weight.grad is None
    assert project_to_etf(nn.Linear(9, 4, bias=False)).bias is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, F64])
def test_tensors_keep_their_dtype_and_requires_grad(dtype: torch.dtype) -> None:
    W, b = random(4, 9).to(dtype).requires_grad_(), random(4).to(dtype)
    weight, bias = project_to_etf(W, b)
    assert bias is not None
    assert (weight.dtype, weight.requires_grad, weight.is_leaf, weight.shape) == (dtype, True, True, (4, 9))
    assert (bias.dtype, bias.requires_grad) == (dtype, False)
    torch.testing.assert_close(weight.detach().double(), project_to_etf(W.double())[0].detach(), atol=1e-2, rtol=1e-2)


def test_projecting_twice_is_projecting_once() -> None:
    once = project_to_etf(random(5, 7))[0]
    torch.testing.assert_close(project_to_etf(once)[0], once)


@pytest.mark.parametrize("K", [2, 5])
def test_no_prediction_changes_if_the_rows_are_an_etf(K: int) -> None:
    """As two rows always are: the logits of all classes shift equally, for any bias."""
    features, b, common = random(50, 7, seed=1), random(K, seed=2), random(1, 7, seed=3)
    etf = 3.7 * simplex_etf(K, F64) @ torch.linalg.qr(random(7, K))[0].T
    W = random(2, 7) if K == 2 else etf + common
    weight, bias = project_to_etf(W, b)
    assert bias is not None
    change = features @ (weight - W).T + (bias - b)
    torch.testing.assert_close(change, change[:, :1].expand(-1, K))
    torch.testing.assert_close(centred_rows(W), weight)


@pytest.mark.parametrize("biased", [True, False])
def test_some_prediction_changes_for_any_other_weights(biased: bool) -> None:
    W, b, features = random(4, 7), random(4, seed=2) * biased, random(4000, 7, seed=1)
    weight, bias = project_to_etf(W, b)
    assert bias is not None
    changed = (features @ W.T + b).argmax(1) != (features @ weight.T + bias).argmax(1)
    assert 0 < int(changed.sum()) < len(features) / 2


def test_rank_deficient_weights_are_completed_canonically() -> None:
    W = random(4, 7)
    W[2] = W[1]  # two classes that the trained classifier does not distinguish
    projected = project_to_etf(W)[0]
    frame = reference_nearest_etf(W.T.numpy(), method="svd", formulation="gauge-free", initial="canonical").frame
    np.testing.assert_allclose((projected / projected.norm()).numpy(), frame.T / np.sqrt(3), atol=1e-10)
    assert (projected[1] - projected[2]).norm() > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(6, 3),), r"weight has shape \(6, 3\): 6 classes in 3 dimensions.*has 4 at most.*tight frame"),
        ((torch.zeros(2, 6, 7),), r"expected a floating-point matrix \(K, d\)"),
        ((torch.zeros(3, 6, dtype=torch.int64),), "floating-point"),
        ((torch.randn(1, 6),), "at least 2 classes"),
        ((torch.ones(3, 6),), "equal rows"),
        ((torch.zeros(3, 6),), "equal rows"),
        ((torch.full((3, 6), torch.inf),), "NaN or infinite"),
        ((torch.randn(3, 6), torch.zeros(6)), r"bias has shape \(6,\); expected \(3,\)"),
    ],
)
def test_bad_weights_are_refused(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        project_to_etf(*arguments)


@pytest.mark.parametrize(("d", "K"), [(9, 4), (4, 4), (3, 4), (5, 2), (64, 10)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_distance_agrees_with_the_metric(d: int, K: int, seed: int) -> None:
    rows = random(K, d, seed=seed) + 3.0  # not centred
    labels = torch.arange(K).repeat(2)
    features = rows[labels] + torch.cat([random(K, d, seed=9), -random(K, d, seed=9)])  # whose class means are the rows
    meter = NeuralCollapseMeter(num_features=d, num_classes=K)
    meter.update(features, labels)
    W = random(K, d, seed=seed + 5)
    ours = float(etf_distance(rows.T))
    assert ours == pytest.approx(meter.compute(W).etf_distance_means, abs=1e-12)
    assert ours == pytest.approx(neural_collapse(features, labels, W).etf_distance_means, abs=1e-12)
    centred_weight = centred_rows(W)
    measured = meter.compute(centred_weight).etf_distance_weight
    assert float(etf_distance(W.T)) == pytest.approx(measured, abs=1e-12)
    nuclear = torch.linalg.svdvals(centred(rows.T)).sum() / centred(rows.T).norm()
    assert ours == pytest.approx(float(2 - 2 * nuclear / (K - 1) ** 0.5), abs=1e-12)


def test_it_is_zero_for_an_etf_and_largest_for_rank_one() -> None:
    etf = torch.linalg.qr(random(9, 5))[0] @ simplex_etf(5, F64)
    assert float(etf_distance(4.0 * etf + random(9, 1))) < 1e-25
    assert float(etf_distance(random(9, 1) * random(1, 5, seed=1))) == pytest.approx(2 - 2 / 4**0.5)
    assert float(etf_distance(random(9, 2))) < 1e-25


def test_half_and_single_precision() -> None:
    H = random(9, 4)
    for dtype, expected, bound in ((torch.float32, torch.float32, 1e-6), (torch.bfloat16, torch.float32, 1e-2)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            distance = etf_distance(H.to(dtype))
        assert distance.dtype == expected
        assert float(distance) == pytest.approx(float(etf_distance(H)), abs=bound)


@pytest.mark.parametrize("shape", [(6, 4), (3, 4), (2, 5, 3)])
def test_all_derivatives(shape: tuple[int, ...]) -> None:
    H = random(*shape).requires_grad_()
    assert torch.autograd.gradcheck(etf_distance, H, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(etf_distance, H)


def test_the_gradient_agrees_with_that_of_the_nuclear_norm() -> None:
    H = random(9, 4).requires_grad_()
    gradient = torch.autograd.grad(etf_distance(H), H)[0]
    C = H - H.mean(1, keepdim=True)
    formula = 2 - 2 * torch.linalg.svdvals(C).sum() / (C.norm() * 3**0.5)
    torch.testing.assert_close(gradient, torch.autograd.grad(formula, H)[0])


def test_the_gradient_is_finite_at_repeated_and_zero_singular_values() -> None:
    etf = torch.linalg.qr(random(9, 4))[0] @ simplex_etf(4, F64)
    short = random(9, 4)
    short[:, 1] = short[:, 2]
    H = torch.stack([etf, short, random(9, 1) * random(1, 4), random(9, 1).expand(9, 4), torch.zeros(9, 4, dtype=F64)])
    H.requires_grad_()
    distance = etf_distance(H)
    gradient = torch.autograd.grad(distance.sum(), H)[0]
    assert gradient.isfinite().all()
    assert float(gradient[0].norm()) < 1e-12  # the minimum
    assert float(gradient[1].norm()) > 1e-2
    assert gradient[3:].count_nonzero() == 0  # all classes coincide
    assert distance[3:].tolist() == [1.0, 1.0]
    for ours, single, value in zip(gradient, H.detach(), distance.detach(), strict=True):
        single.requires_grad_()
        torch.testing.assert_close(value, etf_distance(single).detach())
        torch.testing.assert_close(ours, torch.autograd.grad(etf_distance(single), single)[0])


@pytest.mark.parametrize("scale", [1e-15, 1e15])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_the_distance_does_not_depend_on_the_scale(scale: float, dtype: torch.dtype) -> None:
    H = random(9, 4).to(dtype)
    torch.testing.assert_close(etf_distance(scale * H), etf_distance(H))


def test_batches_vmap_and_compilers() -> None:
    H = random(2, 3, 9, 4)
    distances = etf_distance(H)
    assert distances.shape == (2, 3)
    assert etf_distance(H[:0]).shape == (0, 3)
    torch.testing.assert_close(torch.func.vmap(torch.func.vmap(etf_distance))(H), distances)
    gradient = torch.func.grad(lambda H: etf_distance(H).sum())(H)
    torch.testing.assert_close(torch.func.vmap(torch.func.vmap(torch.func.grad(etf_distance)))(H), gradient)
    torch._dynamo.reset()
    leaf = H.clone().requires_grad_()
    torch.compile(etf_distance, fullgraph=True, backend="aot_eager")(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, gradient)


def test_minimising_the_distance_gives_an_etf() -> None:
    H = random(6, 4).requires_grad_()
    optimizer = torch.optim.SGD([H], lr=2.0)
    for _ in range(200):
        optimizer.zero_grad()
        etf_distance(H).backward()
        optimizer.step()
    assert float(etf_distance(H.detach())) < 1e-8


@pytest.mark.parametrize(
    ("class_means", "message"),
    [
        (torch.zeros(3, 6), r"class_means has shape \(3, 6\): 6 classes in 3 dimensions.*tight frame"),
        (torch.zeros(4), r"expected a floating-point matrix \(d, K\)"),
        (torch.zeros(4, 3, dtype=torch.int64), "floating-point"),
        (torch.zeros(4, 1), "at least 2 classes"),
    ],
)
def test_bad_class_means_are_refused(class_means: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        etf_distance(class_means)
