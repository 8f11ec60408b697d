"""torchport against reference: same problems, same answers."""

import numpy as np
import pytest
import torch

import nearest_etf.reference as reference
import nearest_etf.torchport as torchport
from nearest_etf.reference.problems import problem_bank
from nearest_etf.reference.simplex import centring

SIZES = [(3, 2), (4, 4), (3, 4), (12, 5), (20, 20), (64, 10)]
BANK = list(problem_bank(SIZES))
MILD = [problem for problem in BANK if "κ=1e+04" not in problem.name]


def relative(found, expected):
    return float(np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected))


def solved_by_torch(problem, dtype, method, cotangent):
    H = torch.tensor(problem.class_means, dtype=dtype, requires_grad=True)
    U0 = None if problem.proximal is None else torch.tensor(problem.proximal, dtype=dtype, requires_grad=True)
    U = torchport.nearest_etf(H, U0, problem.delta, method=method, formulation=problem.formulation)
    U.backward(torch.tensor(cotangent, dtype=dtype))
    return U.detach().numpy(), H.grad.numpy(), None if U0 is None else U0.grad.numpy()


@pytest.mark.parametrize("method", ["auto", "svd", "eigh", "matmul", "trust-region"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_solution_and_both_gradients_on_the_bank(method, dtype, tolerance):
    single = dtype == torch.float32
    for problem in MILD if single else BANK:
        solution = problem.solve(method="svd")
        if solution.condition_number > (1e2 if single else 1e5):
            continue  # in the paper's form, δ is a singular value of A
        M = centring(problem.class_means.shape[1])
        G = np.random.default_rng(0).standard_normal(M.shape[0] * len(problem.class_means)).reshape(-1, len(M)) @ M
        U, H_bar, U0_bar = solved_by_torch(problem, dtype, method, G)
        name = "float32" if single else "float64"
        assert relative(U @ M, solution.frame @ M) < tolerance(f"frame, {name}"), problem.name
        expected_H_bar, expected_U0_bar = reference.nearest_etf_vjp(solution, G)
        assert relative(H_bar, expected_H_bar) < tolerance(f"gradient, {name}"), problem.name
        if U0_bar is not None:
            assert relative(U0_bar, expected_U0_bar) < tolerance(f"gradient, {name}"), problem.name


@pytest.mark.parametrize("formulation", ["paper", "gauge-free"])
@pytest.mark.parametrize("delta", [0.0, 0.3])
def test_gradcheck(formulation, delta):
    rng = np.random.default_rng(0)
    H = torch.tensor(rng.standard_normal((6, 3)), requires_grad=True)
    U0 = torch.tensor(np.linalg.qr(rng.standard_normal((6, 3)))[0])

    def frame(H):
        return torchport.nearest_etf(H, U0, delta, formulation=formulation)

    assert torch.autograd.gradcheck(frame, (H,))


def test_class_means_over_steps(tolerance):
    rng = np.random.default_rng(0)
    ours, theirs = torchport.ClassMeans(6, 5).double(), reference.ClassMeans(6, 5)
    for step in range(6):
        labels = rng.integers(0, 3 + step % 3, size=9)  # some classes absent, one not seen at first
        features = rng.standard_normal((9, 6))
        ours(torch.tensor(features), torch.tensor(labels))
        theirs.update(features, labels)
        assert relative(ours.class_means, theirs.class_means) < tolerance("class means, float64")
        assert relative(ours.global_mean, theirs.global_mean) < tolerance("class means, float64")
    assert ours.seen.tolist() == theirs.seen.tolist()


@pytest.mark.parametrize("formulation", ["paper", "gauge-free"])
def test_implicit_head_follows_the_reference_through_training_steps(formulation, tolerance):
    """Ten steps with drifting features: class means, normalisation, a proximal term from the second step on."""
    rng = np.random.default_rng(0)
    d, K, tau, delta = 8, 4, 5.0, 1e-3
    head = torchport.ImplicitETFHead(d, K, tau, delta=delta, formulation=formulation).double()
    running, frame = reference.ClassMeans(d, K), None
    centres = rng.standard_normal((K, d))
    for _ in range(10):
        centres += 0.05 * rng.standard_normal((K, d))
        labels = rng.permutation(np.arange(16) % K)
        features = centres[labels] + 0.5 * rng.standard_normal((16, d))
        logits = head(torch.tensor(features), torch.tensor(labels))

        h = tau * features / np.linalg.norm(features, axis=1, keepdims=True)
        running.update(h, labels)
        solution = reference.nearest_etf(running.normalised(), frame, delta, formulation=formulation)
        frame = solution.frame
        W, b = solution.classifier, -solution.classifier @ running.global_mean
        assert relative(logits.detach(), h @ W.T + b) < tolerance("head over steps, float64")
        assert relative(head.weight, W) < tolerance("head over steps, float64")


def test_metrics(tolerance):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, size=300)
    features = rng.standard_normal((4, 7))[labels] + 0.3 * rng.standard_normal((300, 7))
    W, b = rng.standard_normal((4, 7)), rng.standard_normal(4)
    meter = torchport.NeuralCollapseMeter(num_features=7, num_classes=4)
    for start in range(0, 300, 64):
        meter.update(torch.tensor(features[start : start + 64]), torch.tensor(labels[start : start + 64]))
    ours = meter.compute(torch.tensor(W), torch.tensor(b))
    theirs = reference.neural_collapse(features, labels, W, b)
    compared = 0
    for name, expected in vars(theirs).items():
        found = getattr(ours, name)
        if isinstance(expected, float) and not np.isnan(found):  # nan before a second pass
            assert found == pytest.approx(expected, rel=tolerance("metrics, float64")), name
            compared += 1
    assert compared >= 10
