"""Nearest tight frames: torchport against reference."""

import warnings

import numpy as np
import pytest
import torch

import nearest_etf.reference as reference
import nearest_etf.torchport as torchport
from nearest_etf.reference.implicit import IllConditionedWarning

SIZES = [(9, 4), (5, 5), (4, 5), (3, 5), (2, 7), (1, 4), (4, 9), (16, 40)]
METHODS = ["auto", "svd", "eigh", "matmul", "trust-region"]


def relative(found, expected):
    return float(np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected))


def problem(d, K, seed=0):
    """Class means of unit norm, a tight frame and a cotangent, (d, K) each."""
    rng = np.random.default_rng(seed)
    H, F0, G = rng.standard_normal((3, d, K))
    return H / np.linalg.norm(H), reference.nearest_tight_frame(F0, method="svd").frame, G


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("delta", [0.0, 0.1])
def test_solution_and_both_gradients(method, dtype, delta, tolerance):
    name = "float64" if dtype == torch.float64 else "float32"
    for seed in range(3):
        for d, K in SIZES:
            H, F0, G = problem(d, K, seed)
            solution = reference.nearest_tight_frame(H, F0 if delta else None, delta)
            assert solution.optimality_gap < 1e-10
            if solution.condition_number > 100:
                continue
            H_, F0_ = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in (H, F0))
            F = torchport.nearest_tight_frame(H_, F0_ if delta else None, delta, method=method)
            F.backward(torch.tensor(G, dtype=dtype))
            H_bar, F0_bar = reference.tight_frame_vjp(solution, G)
            assert relative(F.detach(), solution.frame) < tolerance(f"frame, {name}"), (d, K)
            scale = np.linalg.norm(G) / solution.singular_values[-1]  # instead of the gradient's norm, which may vanish
            assert np.linalg.norm(H_.grad.numpy() - H_bar) < tolerance(f"gradient, {name}") * scale
            if delta:
                assert np.linalg.norm(F0_.grad.numpy() - F0_bar) < tolerance(f"gradient, {name}") * scale


@pytest.mark.parametrize("seen", [0, 1, 2, 3])
def test_missing_classes_follow_the_reference(seen, tolerance):
    d, K = 4, 9
    H, F0, G = problem(d, K)
    H[:, seen:] = 0.0
    solution = reference.nearest_tight_frame(H, method="svd", initial=F0)
    H_ = torch.tensor(H, requires_grad=True)
    F = torchport.nearest_tight_frame(H_, method="svd", initial=torch.tensor(F0))
    F.backward(torch.tensor(G))
    assert relative(F.detach(), solution.frame) < tolerance("frame, float64")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)
        H_bar, _ = reference.tight_frame_vjp(solution, G)
    assert np.linalg.norm(H_.grad.numpy() - H_bar) <= tolerance("gradient, float64") * np.linalg.norm(G)


@pytest.mark.parametrize(("d", "K"), SIZES)
def test_canonical_frames(d, K):
    np.testing.assert_allclose(
        torchport.canonical_tight_frame(d, K, dtype=torch.float64).numpy(),
        reference.canonical_tight_frame(d, K),
        atol=1e-14,
    )


@pytest.mark.parametrize("norms", ["unit", "tight", "equal"])
@pytest.mark.parametrize(("d", "K"), [(9, 4), (4, 5), (8, 48), (16, 80)])
def test_classifiers(norms, d, K):
    F = problem(d, K)[1]
    wanted = reference.classifier_from_tight_frame(F, norms)
    found = torchport.classifier_from_tight_frame(torch.tensor(F), norms)
    # The alternating projections stop differently: the reference's at a spread of the norms of 1e-6.
    assert relative(found, wanted) < (1e-5 if norms == "equal" else 1e-12)


@pytest.mark.parametrize("norms", ["unit", "tight", "equal"])
@pytest.mark.parametrize(("d", "K"), [(3, 12), (6, 5)])
def test_the_head_follows_the_reference_through_training_steps(norms, d, K, tolerance):
    """Ten steps with drifting features; the first three lack two classes."""
    rng = np.random.default_rng(0)
    tau, delta = 5.0, 1e-2
    head = torchport.TightFrameHead(d, K, tau, delta=delta, norms=norms).double()
    running, frame = reference.ClassMeans(d, K), None
    centres = rng.standard_normal((K, d))
    for step in range(10):
        centres += 0.05 * rng.standard_normal((K, d))
        labels = rng.permutation(np.arange(36) % (K if step > 2 else K - 2))
        features = centres[labels] + 0.5 * rng.standard_normal((36, d))
        logits = head(torch.tensor(features), torch.tensor(labels))

        h = tau * features / np.linalg.norm(features, axis=1, keepdims=True)
        running.update(h, labels)
        H = running.normalised()
        if d + 1 < K:  # centred over the classes seen so far
            H = np.where(running.seen, H - H[:, running.seen].mean(1, keepdims=True), 0.0)
        solution = reference.nearest_tight_frame(H, frame, delta, method="svd", norms=norms)
        frame = solution.frame
        np.testing.assert_allclose(head.frame.numpy(), frame, atol=tolerance("head over steps, float64"))
        W = solution.classifier
        if norms == "equal" and d + 1 < K and step < 3:
            continue  # a zero row starts along an axis in the reference, and stays zero in torchport
        near = 1e-4 if norms == "equal" else tolerance("head over steps, float64")
        assert relative(head.weight, W) < near
        assert relative(logits.detach(), h @ W.T - W @ running.global_mean) < near
