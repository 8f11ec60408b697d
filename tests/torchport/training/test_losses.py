"""Training losses against plain loops, finite differences and their known minima."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nearest_etf.torchport.simplex import simplex_etf
from nearest_etf.torchport.training.data.load import training_data
from nearest_etf.torchport.training.etf_train import main
from nearest_etf.torchport.training.losses import LOSSES, LossError, loss_options, training_loss
from nearest_etf.torchport.training.model import build_model
from nearest_etf.torchport.training.run.settings import Settings, SettingsError

TAU = 7.0


def cross_entropy(z: np.ndarray, y: np.ndarray) -> float:
    return float(
        np.mean([math.log(sum(math.exp(z[i, k] - z[i, y[i]]) for k in range(len(z[0])))) for i in range(len(z))])
    )


def dot_regression(z: np.ndarray, y: np.ndarray) -> float:
    return sum((z[i, y[i]] - TAU) ** 2 / (2 * TAU) for i in range(len(z))) / len(z)


def mse(z: np.ndarray, y: np.ndarray) -> float:
    N, K = z.shape
    total = 0.0
    for i in range(N):
        for k in range(K):
            target = TAU if k == y[i] else -TAU / (K - 1)
            total += (z[i, k] - target) ** 2 / (2 * TAU)
    return total / N


def ntce(z: np.ndarray, y: np.ndarray) -> float:
    total = 0.0
    for i in range(len(z)):
        denominator = sum(math.exp(z[j, y[i]]) for j in range(len(z)))
        total -= math.log(math.exp(z[i, y[i]]) / denominator)
    return total / len(z)


def nonl(z: np.ndarray, y: np.ndarray) -> float:
    total = 0.0
    for i in range(len(z)):
        denominator = sum(math.exp(z[j, y[i]]) for j in range(len(z)) if y[j] != y[i])
        total -= math.log(math.exp(z[i, y[i]]) / denominator)
    return total / len(z)


FORMULAS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    **{"cross-entropy": cross_entropy, "dot-regression": dot_regression, "mse": mse, "ntce": ntce, "nonl": nonl}
}


def batch(N: int, K: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, K) and labels of at least two classes; with N < K some classes are absent."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(K, (N,), generator=generator)
    labels[0] = (labels[-1] + 1) % K
    return 3 * torch.randn(N, K, generator=generator, dtype=torch.float64).to(dtype), labels


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(("N", "K"), [(2, 2), (12, 3), (6, 20), (40, 10)])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_every_loss_is_its_formula(kind: str, N: int, K: int, dtype: torch.dtype, rtol: float) -> None:
    for seed in range(3):
        z, y = batch(N, K, seed, dtype)
        found = training_loss(kind, z, y, TAU)
        assert found.dtype == dtype
        assert found.item() == pytest.approx(FORMULAS[kind](z.double().numpy(), y.numpy()), rel=rtol, abs=10 * rtol)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(("N", "K"), [(2, 2), (7, 3), (5, 9)])
def test_gradients(kind: str, N: int, K: int) -> None:
    z, y = batch(N, K, seed=N)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: training_loss(kind, z, y, TAU), (z,), atol=1e-7)
    (found,) = torch.autograd.grad(training_loss(kind, z, y, TAU), z)
    step, differences = 1e-5, torch.zeros_like(found)
    for i in range(N):  # of the plain loops, which share no code with torch
        for k in range(K):
            shift = torch.zeros_like(found)
            shift[i, k] = step
            ends = [FORMULAS[kind]((z.detach() + sign * shift).numpy(), y.numpy()) for sign in (1, -1)]
            differences[i, k] = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(found, differences, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", LOSSES)
def test_large_logits_neither_overflow_nor_lose_their_gradient(kind: str) -> None:
    z = torch.tensor([[300.0, -300.0], [-300.0, 300.0], [299.0, 1.0]], requires_grad=True)
    loss = training_loss(kind, z, torch.tensor([0, 1, 0]), 100.0)
    loss.backward()
    assert loss.isfinite()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_logits_are_computed_in_float32(kind: str, dtype: torch.dtype) -> None:
    z, y = batch(30, 5, 0, dtype)
    found = training_loss(kind, z, y, TAU)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, training_loss(kind, z.float(), y, TAU), rtol=0, atol=0)


def test_mse_is_zero_exactly_at_the_vertices_of_a_simplex_etf() -> None:
    """z = W h with h = τ w_y; and its gradient in z has the size of the cross-entropy's."""
    for K in (2, 5, 30):
        W, y = simplex_etf(K, torch.float64), torch.arange(3 * K) % K
        assert training_loss("mse", TAU * W[y] @ W.T, y, TAU).item() == pytest.approx(0, abs=1e-25)
        z = torch.zeros(3 * K, K, dtype=torch.float64, requires_grad=True)
        sizes = [torch.autograd.grad(training_loss(kind, z, y, TAU), z)[0].norm() for kind in ("mse", "cross-entropy")]
        assert 1 <= sizes[0] / sizes[1] <= K / (K - 1) * 1.01


def test_mse_of_a_linear_layer_is_half_the_mean_squared_error_to_one_hot_targets() -> None:
    z, y = batch(20, 6, 0)
    expected = 0.5 * (z - torch.eye(6, dtype=torch.float64)[y]).square().sum(1).mean()
    torch.testing.assert_close(training_loss("mse", z, y), expected)


@pytest.mark.parametrize("kind", ["cross-entropy", "mse"])
@pytest.mark.parametrize("temperature", [TAU, None])
def test_soft_labels_that_are_one_hot_are_hard_labels(kind: str, temperature: float | None) -> None:
    z, y = batch(20, 6, 1)
    one_hot = F.one_hot(y, 6).double()
    torch.testing.assert_close(
        training_loss(kind, z, one_hot, temperature), training_loss(kind, z, y, temperature), rtol=1e-12, atol=1e-12
    )
    mixed = 0.7 * one_hot + 0.3 * one_hot.roll(1, 0)
    assert training_loss(kind, z, mixed, temperature) != training_loss(kind, z, y, temperature)


def test_ntce_and_nonl_are_independent_of_a_bias() -> None:
    z, y = batch(30, 6, 2)
    bias = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for kind in ("ntce", "nonl"):
        loss = training_loss(kind, z + bias, y)
        torch.testing.assert_close(loss, training_loss(kind, z, y))
        (gradient,) = torch.autograd.grad(loss, bias)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["ntce", "nonl"])
@pytest.mark.parametrize("balanced", [True, False])
def test_collapse_is_a_stationary_point_of_ntce_and_nonl(kind: str, balanced: bool) -> None:
    """At τ = 10, the authors' temperature 0.1, with features and rows on one simplex ETF, along the sphere.

    The gradient in the unit features is radial: W is its own mean, and every other class weighs the same. The minimum
    is the formula's value there. Without balance the classes no longer weigh the same.
    """
    K, n, tau = 5, 4, 10.0
    W = simplex_etf(K, torch.float64)
    y = torch.arange(K).repeat_interleave(torch.tensor([n] * K if balanced else [1, 2, 4, 6, 7]))
    features = W[y].clone().requires_grad_()
    loss = training_loss(kind, tau * F.normalize(features, dim=1) @ W.T, y)
    (gradient,) = torch.autograd.grad(loss, features)
    assert (gradient.norm() < 1e-12) == balanced
    if balanced:
        others = math.log(n * (K - 1)) - tau / (K - 1)
        expected = others - tau if kind == "nonl" else math.log(n + n * (K - 1) * math.exp(-tau * K / (K - 1)))
        assert loss.item() == pytest.approx(expected, rel=1e-12)
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        moved = F.normalize(features + 0.1 * noise, dim=1)
        assert training_loss(kind, tau * moved @ W.T, y) > loss


def test_ntce_of_one_class_only_compares_its_samples() -> None:
    z = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert training_loss("ntce", z, torch.zeros(2, dtype=torch.int64)).item() == pytest.approx(
        1 + math.log1p(math.exp(-2))
    )
    assert training_loss("ntce", z[:1], torch.zeros(1, dtype=torch.int64)).item() == 0


def test_nonl_refuses_a_batch_of_one_class() -> None:
    for N in (1, 3):
        with pytest.raises(LossError, match=rf"all {N} of this batch have one class: use a larger batch_size"):
            training_loss("nonl", torch.randn(N, 4), torch.full((N,), 2))


@pytest.mark.parametrize("kind", ["dot-regression", "ntce", "nonl"])
def test_soft_labels_are_refused_where_a_loss_has_none(kind: str) -> None:
    with pytest.raises(LossError, match=rf"{kind} is not defined for soft labels \(2, 3\): use cross-entropy or mse"):
        training_loss(kind, torch.zeros(2, 3), torch.full((2, 3), 1 / 3), TAU)


@pytest.mark.parametrize("kind", LOSSES)
def test_ignored_rows_are_for_cross_entropy_alone(kind: str) -> None:
    z, y = torch.randn(3, 4), torch.tensor([0, -100, 2])
    if kind == "cross-entropy":
        torch.testing.assert_close(training_loss(kind, z, y), training_loss(kind, z[::2], y[::2]))
        return
    with pytest.raises(LossError, match=rf"labels hold -100, which loss {kind} does not ignore: leave these rows out"):
        training_loss(kind, z, y, TAU)


def test_unknown_losses_and_a_missing_temperature_are_refused() -> None:
    with pytest.raises(LossError, match="loss is 'hinge'; expected one of cross-entropy, dot-regression"):
        training_loss("hinge", torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(LossError, match="there is none: pass temperature"):
        training_loss("dot-regression", torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("head", Settings.__dataclass_fields__["head"].metadata["choices"])
def test_every_loss_trains_every_compatible_head(head: str, loss: str) -> None:
    """After a hundred steps the stored classifier is right on most training digits, or the settings are refused."""
    refused = {("linear", "dot-regression"), ("linear", "ntce"), ("linear", "nonl"), ("class-mean", "dot-regression")}
    if (head, loss) in refused:
        with pytest.raises(SettingsError, match=rf"loss {loss} .*use head"):
            Settings(head=head, loss=loss)
        return
    torch.manual_seed(0)
    settings = Settings(head=head, loss=loss, backbone="mlp", num_features=32, features="signed", temperature=10.0)
    data = training_data(replace(settings, samples_per_class=20)).train
    x, y = torch.from_numpy(data.images).permute(0, 3, 1, 2) / 255 - 0.3, torch.from_numpy(data.labels)
    model = build_model(settings, (8, 8, 1), 10)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(100):
        value = training_loss(loss, model(x, y), y, model.head.temperature)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < losses[0]
    assert (model.eval()(x).argmax(1) == y).double().mean() > 0.7


@pytest.mark.parametrize("loss", ["dot-regression", "mse", "nonl"])
def test_a_learned_temperature_is_refused_where_the_minimum_moves_with_it(loss: str) -> None:
    with pytest.raises(SettingsError, match=rf"loss {loss} needs a fixed temperature.*set temperature to a number"):
        Settings(loss=loss, temperature="learned")
    for allowed in ("cross-entropy", "ntce"):
        Settings(loss=allowed, temperature="learned")
    Settings(loss="mse", head="linear", temperature="learned")  # which the linear head does not have


def test_a_batch_of_one_class_stops_a_run_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Microbatches of two images sometimes hold a single class."""
    command = ["digits", "--backbone", "mlp", "--loss", "nonl", "--batch-size", "40", "--grad-accum-steps", "20"]
    assert main([*command, "--head", "fixed", "--device", "cpu", "--output", str(tmp_path / "run"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "all 2 of this batch have one class: use a larger batch_size, fewer grad_accum_steps" in error
    assert error.count("\n") == 1


def test_the_settings_name_every_loss() -> None:
    assert Settings.__dataclass_fields__["loss"].metadata["choices"] == LOSSES


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_smoothing_and_class_weights_follow_their_formulas(soft: bool, weighted: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    z, y = torch.randn(7, 4, generator=rng, dtype=torch.float64), torch.randint(4, (7,), generator=rng)
    targets = (
        torch.softmax(torch.randn(7, 4, generator=rng, dtype=torch.float64), 1) if soft else torch.eye(4)[y].double()
    )
    weights = torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64)
    found = training_loss(
        "cross-entropy", z, targets if soft else y, smoothing=0.3, class_weights=weights if weighted else None
    )
    expected = 0.0
    for i in range(7):
        logs = [float(z[i, k]) - math.log(sum(math.exp(float(v)) for v in z[i])) for k in range(4)]
        for k in range(4):
            share = 0.7 * float(targets[i, k]) + 0.3 / 4
            expected -= share * logs[k] * (float(weights[k]) if weighted else 1.0) / 7
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_options_of_the_loss_follow_the_settings() -> None:
    data = training_data(Settings(imbalance="exponential", imbalance_ratio=10.0))
    options = loss_options(Settings(class_weights="balanced", smoothing=0.1), data, torch.device("cpu"))
    counts = np.bincount(data.train.labels)
    np.testing.assert_allclose(options["class_weights"].numpy() * counts, np.full(10, len(data.train) / 10), rtol=1e-6)
    assert options["smoothing"] == 0.1
    assert loss_options(Settings(), data, torch.device("cpu")) == {"smoothing": 0.0, "class_weights": None}
    assert loss_options(Settings(loss="mse"), data, torch.device("cpu")) == {}
