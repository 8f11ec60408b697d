"""torchport.ood and torchport.hyperspherical against the reference: both precisions, blocks, gradients, the GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import nearest_etf.reference as reference
import nearest_etf.torchport as torchport
from nearest_etf.torchport.targets import INTEGERS

RELATIVE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 1e-4}
SIZES = [(40, 5, 9), (30, 12, 6), (20, 2, 3)]


def problem(seed: int, N: int, K: int, d: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(*shape, generator=generator) for shape in ((N, d), (K, d), (K,), (d,))]
    return tuple(t.to(dtype) for t in tensors)


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [t.double().numpy() for t in tensors]


@pytest.mark.parametrize(("N", "K", "d"), SIZES)
@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("seed", range(2))
def test_scores(N: int, K: int, d: int, dtype: torch.dtype, seed: int) -> None:
    tensors = problem(seed, N, K, d, dtype)
    X, W, b, mean = tensors
    Xn, Wn, bn, mn = arrays(*tensors)
    V = torchport.class_subspace(W)
    pairs = [
        (torchport.max_softmax_score(X, W, b), reference.max_softmax_score(Xn, Wn, bn)),
        (torchport.max_logit_score(X, W), reference.max_logit_score(Xn, Wn)),
        (torchport.energy_score(X, W, b, 0.5), reference.energy_score(Xn, Wn, bn, 0.5)),
        (torchport.neco_score(X, V, mean), reference.neco_score(Xn, reference.class_subspace(Wn), mn)),
        (
            torchport.nci_score(X, W, b, global_mean=mean, norm_weight=0.2),
            reference.nci_score(Xn, Wn, bn, global_mean=mn, norm_weight=0.2),
        ),
        (
            torchport.nci_score(X, W, b, global_mean=mean, norm_weight=0.2, order=2),
            reference.nci_score(Xn, Wn, bn, global_mean=mn, norm_weight=0.2, order=2),
        ),
    ]
    for found, expected in pairs:
        assert found.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
        np.testing.assert_allclose(found.double().numpy(), expected, rtol=RELATIVE[dtype], atol=RELATIVE[dtype])


@pytest.mark.parametrize(("N", "K", "d"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_subspaces(N: int, K: int, d: int, dtype: torch.dtype) -> None:
    X, W, *_ = problem(5, N, K, d, dtype)
    rank = min(K - 1, d)
    pairs = (
        (torchport.class_subspace(W), reference.class_subspace(*arrays(W))),
        (torchport.principal_subspace(X, rank), reference.principal_subspace(X.double().numpy(), rank)),
    )
    for found, expected in pairs:
        assert found.shape == expected.shape == (d, rank)
        V = found.double().numpy()
        np.testing.assert_allclose(V @ V.T, expected @ expected.T, atol=1e-11 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize(("N", "K", "d"), SIZES)
@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("seed", range(2))
def test_distances(N: int, K: int, d: int, dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    X, means, *_ = problem(seed, N, K, d, dtype)
    labels = torch.arange(6 * K) % K
    training = (means[labels] + problem(seed + 9, 6 * K, K, d, dtype)[0]).to(dtype)
    Xn, Tn = arrays(X, training)
    monkeypatch.setattr("nearest_etf.torchport.ood_distance.BLOCK_ENTRIES", 5 * len(training))
    found_means, covariance = torchport.class_gaussians(training, labels, K)
    expected_means, expected_covariance = reference.class_gaussians(Tn, labels.numpy(), K)
    np.testing.assert_allclose(found_means.numpy(), expected_means, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(covariance.numpy(), expected_covariance, rtol=1e-11, atol=1e-11)
    for integer in INTEGERS:
        torch.testing.assert_close(torchport.class_gaussians(training, labels.to(integer), K)[1], covariance)
    pairs = [
        (
            torchport.mahalanobis_score(X, found_means, covariance),
            reference.mahalanobis_score(Xn, expected_means, expected_covariance),
        ),
        *(
            (torchport.nearest_neighbour_score(X, training, k), reference.nearest_neighbour_score(Xn, Tn, k))
            for k in (1, 7)
        ),
    ]
    for found, expected in pairs:
        assert found.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
        np.testing.assert_allclose(found.double().numpy(), expected, rtol=RELATIVE[dtype], atol=RELATIVE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_degenerate_distances_agree(dtype: torch.dtype) -> None:
    X = problem(4, 30, 3, 6, dtype)[0]
    X[:, -2:], X[0] = 0.0, 0.0  # two dead units, and a zero feature vector
    labels = torch.arange(30) % 3
    foreign = problem(5, 9, 3, 6, dtype)[0]
    Xn, Fn = arrays(X, foreign)
    found = torchport.mahalanobis_score(foreign, *torchport.class_gaussians(X, labels, 3))
    expected = reference.mahalanobis_score(Fn, *reference.class_gaussians(Xn, labels.numpy(), 3))
    np.testing.assert_allclose(found.numpy(), expected, rtol=RELATIVE[dtype])
    for scale in (1.0, 1e-30, 1e30):
        found = torchport.nearest_neighbour_score(scale * torch.cat([foreign, X]), X, 3)
        expected = reference.nearest_neighbour_score(np.concatenate([Fn, Xn]), Xn, 3)
        np.testing.assert_allclose(found.double().numpy(), expected, rtol=RELATIVE[dtype], atol=RELATIVE[dtype])


@pytest.mark.parametrize(("K", "d"), [(2, 3), (7, 4), (300, 5), (600, 20)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_spread_on_the_sphere_in_blocks(K: int, d: int, dtype: torch.dtype) -> None:
    _, W, _, v = problem(K, 1, K, d, dtype)
    Wn, vn = arrays(W, v)
    for name in ("hyperspherical_uniformity", "mutual_coherence"):
        ours, theirs = getattr(torchport, name), getattr(reference, name)
        assert ours(W) == pytest.approx(theirs(Wn), rel=1e-11)
        assert ours(W, v) == pytest.approx(theirs(Wn, vn), rel=1e-11)
    assert torchport.ood_deviation(W, v) == pytest.approx(reference.ood_deviation(Wn, vn), rel=1e-11)


def test_degenerate_inputs_agree() -> None:
    near = torch.tensor([[1.0, 0.0], [1.0, 1e-9]], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    for rows in (
        near,
        near[[0, 0]],
        torch.zeros(3, 2),
        torch.full((3, 2), 0.1),
        torch.tensor([[1.0, 0], [-1, 0], [0, 0]]),
    ):
        for name in ("hyperspherical_uniformity", "mutual_coherence"):
            for centre in (None, zero):
                expected = getattr(reference, name)(rows.double().numpy(), None if centre is None else centre.numpy())
                found = getattr(torchport, name)(rows, centre)
                assert found == pytest.approx(expected, rel=1e-12, nan_ok=True), (name, rows, centre)
    X, W, b, mean = problem(1, 4, 3, 5, torch.float64)
    X[0] = mean
    assert torchport.neco_score(X, torchport.class_subspace(W), mean)[0] == 0.0
    assert torchport.nci_score(X, W, b, global_mean=mean)[0] == 0.0
    with pytest.raises(ValueError, match="all rows coincide"):
        torchport.class_subspace(torch.full((3, 2), 0.1))
    for scale in (1e-30, 1e30):  # squares leave the range of float32
        x, m = (scale * X.float()), (scale * mean.float())
        xn, wn, mn = arrays(x, W, m)
        expected = reference.neco_score(xn, reference.class_subspace(wn), mn)
        found = torchport.neco_score(x, torchport.class_subspace(W), m)
        np.testing.assert_allclose(found[1:].numpy(), expected[1:], rtol=1e-5)


def test_scores_have_gradients() -> None:
    X, W, b, mean = problem(3, 4, 3, 5, torch.float64)
    X.requires_grad_()
    V = torchport.class_subspace(W)
    for score in (
        lambda x: torchport.max_softmax_score(x, W, b),
        lambda x: torchport.energy_score(x, W, b),
        lambda x: torchport.neco_score(x, V, mean),
        lambda x: torchport.nci_score(x, W, b, global_mean=mean, norm_weight=0.1),
    ):
        assert torch.autograd.gradcheck(score, X)


X, W, B, MEAN = problem(0, 6, 4, 5, torch.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: torchport.max_softmax_score(X, W[:, :3]), r"features \(6, 5\) and weight \(4, 3\)"),
        (lambda: torchport.energy_score(X, W, B[:2]), r"bias: shape \(2,\); expected \(4,\)"),
        (lambda: torchport.energy_score(X, W, B, -1.0), "temperature = -1.0"),
        (lambda: torchport.nci_score(X, W, B, global_mean=MEAN[:3]), r"global_mean: shape \(3,\)"),
        (lambda: torchport.nci_score(X, W, B, global_mean=MEAN, order=0.5), "order = 0.5"),
        (lambda: torchport.neco_score(X, torch.eye(4)), r"subspace \(4, 4\)"),
        (lambda: torchport.principal_subspace(X, 6), "rank = 6"),
        (lambda: torchport.class_gaussians(X, torch.zeros(5), 2), r"labels \(5,\) torch.float32"),
        (lambda: torchport.class_gaussians(X, torch.full((6,), 2), 2), r"labels are in 2…2; expected 0…1"),
        (lambda: torchport.class_gaussians(X, torch.zeros(6, dtype=torch.int64), 2), "class 1 has no sample"),
        (lambda: torchport.mahalanobis_score(X, W[:, :3], torch.eye(5)), r"class_mean_rows \(4, 3\)"),
        (lambda: torchport.mahalanobis_score(X, W, torch.eye(4)), r"covariance has shape \(4, 4\); expected \(5, 5\)"),
        (lambda: torchport.mahalanobis_score(X, W, torch.zeros(5, 5)), "covariance is zero"),
        (lambda: torchport.nearest_neighbour_score(X, W[:, :3]), r"training_features \(4, 3\)"),
        (lambda: torchport.nearest_neighbour_score(X, W, 5), r"k = 5; expected 1…4"),
        (lambda: torchport.class_subspace(X[0]), r"rows have shape \(5,\)"),
        (lambda: torchport.mutual_coherence(X[:1]), "at least two"),
        (lambda: torchport.ood_deviation(W, B), r"ood_mean has shape \(4,\); expected \(5,\)"),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.gpu
def test_scores_on_the_gpu() -> None:
    X, W, b, mean = (t.cuda() for t in problem(0, 40, 5, 9, torch.float64))
    found = torchport.neco_score(X, torchport.class_subspace(W), mean)
    expected = torchport.neco_score(X.cpu(), torchport.class_subspace(W.cpu()), mean.cpu())
    torch.testing.assert_close(found.cpu(), expected)
    found = torchport.nci_score(X, W, b, global_mean=mean)
    torch.testing.assert_close(found.cpu(), torchport.nci_score(X.cpu(), W.cpu(), b.cpu(), global_mean=mean.cpu()))
    assert torchport.hyperspherical_uniformity(W) == pytest.approx(torchport.hyperspherical_uniformity(W.cpu()))
