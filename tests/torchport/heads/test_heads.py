"""The heads: classifiers, stored state, and resumption."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nearest_etf.reference import ClassMeans as ReferenceClassMeans
from nearest_etf.reference import etf_error, initial_frame
from nearest_etf.reference import nearest_etf as reference_nearest_etf
from nearest_etf.torchport import (
    Classifier,
    ClassMeanHead,
    FixedETFHead,
    Head,
    ImplicitETFHead,
    LearnedHead,
    TightFrameHead,
)
from nearest_etf.torchport.class_means import MEANS_AS_OLD_AS, ClassMeans
from nearest_etf.torchport.heads import AveragingHead
from nearest_etf.torchport.heads import solving as solving_module
from nearest_etf.torchport.methods import decompose as decompose_module
from nearest_etf.torchport.methods.factor import Polar
from nearest_etf.torchport.methods.matmul import Products

HEADS = [LearnedHead, FixedETFHead, ImplicitETFHead, ClassMeanHead, TightFrameHead]


def batch(step: int, d: int = 16, K: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, K, (20,), generator=generator)
    return torch.randn(20, d, dtype=dtype, generator=generator).requires_grad_(), labels


@pytest.mark.parametrize("kind", HEADS)
def test_eval_mode_uses_the_stored_classifier(kind: type[Head]) -> None:
    head = kind(16, 6).double()
    for step in range(3):
        head(*batch(step))
    features, _ = batch(9)
    h = head.normalise(features)
    assert head.temperature is not None
    torch.testing.assert_close(h.norm(dim=1), torch.full((20,), head.temperature, dtype=torch.float64))
    wanted = h @ head.weight.T + head.bias
    torch.testing.assert_close(head(features), wanted)
    torch.testing.assert_close(head.eval()(features, batch(9)[1]), wanted)


def test_learned_rows_have_unit_length_after_optimizer_steps() -> None:
    head = LearnedHead(16, 6).double()
    features, labels = batch(0)
    before = head(features, labels)
    with torch.no_grad():
        head.rows.mul_(3.0)
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(head(features, labels), before)
    head(features, labels).square().sum().backward()
    assert head.rows.grad is not None
    torch.testing.assert_close((head.rows.grad * head.rows).sum(1), torch.zeros(6, dtype=torch.float64))


def test_fixed_head_subtracts_the_batch_mean_in_training() -> None:
    head = FixedETFHead(16, 6).double()
    weight = head.weight.clone()
    features, labels = batch(0)
    h = head.normalise(features)
    torch.testing.assert_close(head(features, labels), (h - h.mean(0)) @ weight.T)
    assert torch.equal(head.weight, weight)


@pytest.mark.parametrize("formulation", ["paper", "gauge-free"])
@pytest.mark.parametrize(("d", "K"), [(16, 6), (80, 70)])
def test_implicit_head_follows_the_reference_step_by_step(
    formulation: Any, d: int, K: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solving_module, "SMALLEST_FOR_WARM_START", 50)
    head = ImplicitETFHead(d, K, formulation=formulation).double()
    means = ReferenceClassMeans(d, K)
    previous, frame = None, None
    for step in range(3):
        previous = frame
        features, labels = batch(step, d, K)
        logits = head(features, labels)
        h = head.normalise(features).detach().numpy()
        means.update(h, labels.numpy())
        solution = reference_nearest_etf(means.normalised(), frame, method="svd", formulation=formulation)
        frame = solution.frame
        wanted = (h - means.global_mean) @ solution.classifier.T
        np.testing.assert_allclose(logits.detach().numpy(), wanted, atol=1e-9)
        assert etf_error(head.weight.numpy()) < 1e-12
    health = head.solution_health()
    assert abs(health["gap"]) < 1e-12
    assert health["orthogonality"] < 1e-10
    assert frame is not None
    assert previous is not None
    sigma = solution.singular_values
    np.testing.assert_allclose([health["sigma_max"], health["sigma_min"]], sigma[[0, -1]], rtol=1e-8)
    assert health["condition"] == pytest.approx(sigma[0] / sigma[-1], rel=1e-8)
    assert health["drift"] == pytest.approx(np.linalg.norm(frame - previous) / np.sqrt(K), rel=1e-8)
    assert health["milliseconds"] > 0
    assert health["fallbacks"] == 0


def test_warm_starts_stay_exact_over_many_steps() -> None:
    """Float32 with stale eigenbases against float64 singular values, on features that drift as in training."""
    d, K = 96, 70
    warm, exact = ImplicitETFHead(d, K), ImplicitETFHead(d, K, method="svd").double()
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(K, d, generator=generator)
    for head in (warm, exact):  # as late in a run: settled means, and batches with a weight of 1e-3
        head.running.set_means(head.normalise(centres))
        head.running.steps.fill_(2000)
    reused = 0
    for _ in range(60):
        labels = torch.randint(K, (256,), generator=generator)
        f = centres[labels] + 0.3 * torch.randn(256, d, generator=generator)
        f32, f64, basis = f.clone().requires_grad_(), f.double().requires_grad_(), warm.warm_start
        G = torch.randn(256, K, generator=generator)
        (warm(f32, labels) * G).sum().backward()
        (exact(f64, labels) * G).sum().backward()
        after = warm.warm_start
        reused += basis is not None and after is not None and torch.equal(basis, after)
        assert f32.grad is not None
        assert f64.grad is not None
        assert float((warm.weight - exact.weight).norm() / exact.weight.norm()) < 1e-4
        assert float((f32.grad - f64.grad).norm() / f64.grad.norm()) < 1e-4
    assert reused > 10
    assert int(warm.fallbacks) == 0


@pytest.mark.parametrize("method", ["svd", "matmul", "trust-region"])
def test_every_method_takes_the_same_steps(method: str) -> None:
    head, other = ImplicitETFHead(16, 6).double(), ImplicitETFHead(16, 6, method=method).double()
    for step in range(4):
        features, labels = batch(step)
        torch.testing.assert_close(other(features, labels), head(features, labels), rtol=1e-7, atol=1e-9)


def test_an_unsolved_step_on_an_accelerator_keeps_the_last_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    head = ImplicitETFHead(16, 6, method="matmul").double()
    for step in range(2):
        head(*batch(step))
    frame = head.frame.clone()

    def unsolved(A: Tensor) -> Polar:  # as by_matmul on an accelerator
        return Polar(torch.full_like(A, torch.nan), Products(torch.tensor(False)), None, torch.tensor(1))

    monkeypatch.setattr(decompose_module, "by_matmul", unsolved)
    monkeypatch.setattr(decompose_module, "_warned", {"matmul"})
    features, labels = batch(2)
    head(features, labels).square().sum().backward()
    assert torch.equal(head.frame, frame)
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
    assert int(head.fallbacks) == 1
    monkeypatch.undo()
    head(*batch(3))
    assert not torch.equal(head.frame, frame)
    assert etf_error(head.weight.numpy()) < 1e-12


@pytest.mark.parametrize("gradient", [True, False])
def test_gradient_through_the_whole_head(gradient: bool) -> None:
    fresh = ImplicitETFHead(8, 3, gradient=gradient, delta=0.1).double()
    fresh(*batch(0, 8, 3))
    features, labels = batch(1, 8, 3)
    target = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def loss(features: Tensor) -> Tensor:
        return (copy.deepcopy(fresh)(features, labels) * target).sum()

    right = torch.autograd.gradcheck(loss, features, raise_exception=False)
    assert right == gradient  # without the gradient through the solution it is not the derivative


@pytest.mark.parametrize("kind", HEADS)
def test_state_dict_resumes_exactly(kind: type[Head], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving_module, "SMALLEST_FOR_WARM_START", 50)
    head, resumed = kind(80, 70), kind(80, 70)
    for step in range(3):
        head(*batch(step, 80, 70, torch.float32))
    resumed.load_state_dict(copy.deepcopy(head.state_dict()))
    if isinstance(head, ImplicitETFHead | TightFrameHead):
        assert isinstance(resumed, ImplicitETFHead | TightFrameHead)
        resumed.warm_start = head.warm_start  # besides the state, only this changes the last bits
    for step in range(3, 6):
        features, labels = batch(step, 80, 70, torch.float32)
        assert torch.equal(head(features, labels), resumed(features, labels))
    for name, value in head.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_set_means_solves_exactly() -> None:
    head = ImplicitETFHead(16, 6).double()
    head(*batch(0))
    frame = head.frame.clone()
    class_means = torch.randn(6, 16, dtype=torch.float64)
    head.set_means(class_means)
    H = (class_means - class_means.mean(0)).T.numpy()
    wanted = reference_nearest_etf(H / np.linalg.norm(H), frame.numpy(), method="svd")
    np.testing.assert_allclose(head.weight.numpy(), wanted.classifier, atol=1e-10)
    torch.testing.assert_close(head.bias, -head.weight @ class_means.mean(0))


@pytest.mark.parametrize("formulation", ["paper", "gauge-free"])
@pytest.mark.parametrize("delta", [0.0, 1e-3])
def test_health_is_unknown_before_the_first_step_and_known_after_each(
    formulation: Any, delta: float, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(decompose_module, "_warned", set())
    head = ImplicitETFHead(80, 70, formulation=formulation, delta=delta)
    assert all(math.isnan(value) for value in head.solution_health().values())
    for step in range(3):
        head(*batch(step, 80, 70, torch.float32))
        health = head.solution_health()
        assert abs(health["gap"]) < 1e-5
        assert health["orthogonality"] < 1e-4
        said = [w for w in recwarn if issubclass(w.category, RuntimeWarning)]
        assert bool(said) == (health["fallbacks"] > 0)  # the diagnostics themselves do not warn


@pytest.mark.parametrize("kind", [ImplicitETFHead, ClassMeanHead, TightFrameHead])
def test_compiled_steps_agree_with_eager_ones(kind: type[Head]) -> None:
    torch._dynamo.reset()
    head = kind(16, 6)
    twin = copy.deepcopy(head)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for step in range(3):
        features, labels = batch(step, dtype=torch.float32)
        again = features.detach().clone().requires_grad_()
        head(features, labels).logsumexp(1).sum().backward()
        compiled(again, labels).logsumexp(1).sum().backward()
        torch.testing.assert_close(again.grad, features.grad)
    for name, value in head.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], value)


@pytest.mark.parametrize("kind", HEADS)
def test_autocast_keeps_the_classifier_in_float32(kind: type[Head]) -> None:
    head = kind(16, 6)
    features, labels = batch(0, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(features, labels)
    logits.float().sum().backward()
    assert logits.dtype == features.dtype
    assert head.weight.dtype == torch.float32
    assert features.grad is not None


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_in_half_precision_keeps_its_averages_in_float32(kind: type[Head]) -> None:
    head = kind(16, 6).bfloat16()
    features, labels = batch(0, dtype=torch.bfloat16)
    assert head(features, labels).dtype == torch.bfloat16
    assert head.weight.dtype == torch.bfloat16
    if isinstance(head, AveragingHead):
        assert head.running.class_means.dtype == torch.float32


@pytest.mark.parametrize("kind", [FixedETFHead, ImplicitETFHead, TightFrameHead])
def test_fewest_features_for_a_simplex(kind: type[Head]) -> None:
    head = kind(5, 6, formulation="gauge-free") if kind is ImplicitETFHead else kind(5, 6)
    for step in range(2):
        head(*batch(step, 5, 6, torch.float32))
    assert etf_error(head.weight.double().numpy()) < 1e-6


def test_classifier_puts_a_head_on_a_backbone() -> None:
    model = Classifier(nn.Flatten(), ImplicitETFHead(12, 4))
    images = torch.randn(5, 3, 2, 2)
    assert model(images, torch.tensor([0, 1, 2, 3, 0])).shape == (5, 4)
    assert model.backbone(images).shape == (5, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": 3}, "linear layer"),
        ({"num_features": 4}, "gauge-free"),
        ({"num_classes": 1}, "at least 2"),
        ({"temperature": 0.0}, "positive"),
        ({"delta": math.nan}, "delta"),
        ({"method": "fast"}, "method = 'fast'"),
        ({"initial": "feature-polar"}, "'canonical', 'random'"),
        ({"initial": torch.zeros(5, 8)}, r"expected \(8, 5\)"),
        ({"initial": torch.zeros(8, 5)}, "not a frame"),
        ({"initial": torch.full((8, 5), torch.nan)}, "not a frame"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImplicitETFHead(**{"num_features": 8, "num_classes": 5, **options})


def test_a_bad_batch_changes_nothing() -> None:
    head = ImplicitETFHead(16, 6)
    before = copy.deepcopy(head.state_dict())
    features, labels = batch(0, dtype=torch.float32)
    for bad in ((torch.full_like(features, torch.nan), labels), (features, labels + 6)):
        with pytest.raises(ValueError, match=r"NaN|expected 0…5"):
            head(*bad)
    assert all(torch.equal(value, head.state_dict()[name]) for name, value in before.items())


def test_means_of_the_wrong_orientation_are_refused_and_change_nothing() -> None:
    head = ImplicitETFHead(16, 6)
    before = copy.deepcopy(head.state_dict())
    with pytest.raises(ValueError, match=r"class_mean_rows has shape \(16, 6\); expected \(6, 16\).*class_mean_rows.T"):
        head.set_means(torch.randn(16, 6))
    with pytest.raises(ValueError, match="NaN"):
        head.set_means(torch.full((6, 16), torch.nan))
    with pytest.raises(ValueError, match=r"counts has shape \(5,\)"):
        head.set_means(torch.randn(6, 16), counts=torch.ones(5))
    with pytest.raises(ValueError, match=r"global_mean has shape \(6,\); expected \(16,\)"):
        head.set_means(torch.randn(6, 16), global_mean=torch.ones(6))
    assert all(torch.equal(value, head.state_dict()[name]) for name, value in before.items())


def test_the_next_batches_change_set_means_little() -> None:
    head = ImplicitETFHead(16, 6)
    rows = head.normalise(torch.randn(6, 16, generator=torch.Generator().manual_seed(0)))
    head.set_means(rows)
    wanted = (rows - rows.mean(0)).T
    fresh = ClassMeans(16, 6)
    features, labels = batch(0, dtype=torch.float32)
    of_batch, _ = fresh(head.normalise(features), labels)
    assert set(labels.tolist()) == set(range(6))
    head(features, labels)
    rate = 2 / (MEANS_AS_OLD_AS + 2)
    torch.testing.assert_close(head.running.class_means, (1 - rate) * wanted + rate * of_batch)
    assert int(head.running.steps) == MEANS_AS_OLD_AS + 1


def test_counts_weight_the_global_mean_and_exclude_classes_without_samples() -> None:
    head = FixedETFHead(4, 3)
    rows = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [torch.nan] * 4])
    head.set_means(rows, counts=torch.tensor([3, 1, 0]))
    torch.testing.assert_close(head.running.global_mean, torch.tensor([0.75, 0.25, 0, 0]))
    torch.testing.assert_close(head.running.class_means[:, 0], torch.tensor([0.25, -0.25, 0, 0]))
    assert head.running.seen.tolist() == [True, True, False]
    assert not head.running.class_means[:, 2].any()
    torch.testing.assert_close(head.bias, -head.weight @ head.running.global_mean)


@pytest.mark.parametrize("kind", HEADS)
def test_a_forward_without_update_stores_nothing_and_computes_the_same(kind: type[Head]) -> None:
    head = kind(16, 6).double()
    for step in range(2):
        head(*batch(step))
    before = copy.deepcopy(head.state_dict())
    tried = head(*batch(2), update=False)
    assert all(torch.equal(value, head.state_dict()[name]) for name, value in before.items())
    torch.testing.assert_close(head(*batch(2)), tried, rtol=0, atol=0)


def test_a_forward_without_update_is_not_the_first_step() -> None:
    head, other = ImplicitETFHead(16, 6).double(), ImplicitETFHead(16, 6).double()
    head(*batch(0), update=False)
    for step in range(3):
        assert torch.equal(head(*batch(step)), other(*batch(step)))


def test_refresh_of_averaged_heads_gives_an_etf() -> None:
    heads = [ImplicitETFHead(16, 6).double() for _ in range(2)]
    for i, head in enumerate(heads):
        for step in range(3):
            head(*batch(10 * i + step))
    averaged = copy.deepcopy(heads[0])
    for name, value in averaged.named_buffers():
        if value.is_floating_point():
            value.copy_(torch.stack([dict(head.named_buffers())[name] for head in heads]).mean(0))
    assert etf_error(averaged.weight.numpy()) > 1e-2
    averaged.refresh()
    assert etf_error(averaged.weight.numpy()) < 1e-12
    torch.testing.assert_close(averaged.bias, -averaged.weight @ averaged.running.global_mean)


def test_a_random_initial_frame_agrees_with_the_reference() -> None:
    head = ImplicitETFHead(16, 6, initial="random")
    wanted = initial_frame("random", np.zeros((16, 6)))
    np.testing.assert_allclose(head.frame.numpy(), wanted, atol=1e-6)


def test_a_head_shows_its_settings() -> None:
    shown = repr(ImplicitETFHead(16, 6, temperature=7.5, delta=0.25, formulation="gauge-free", method="svd"))
    for part in ("temperature=7.5", "delta=0.25", "formulation='gauge-free'", "gradient=True", "method='svd'"):
        assert part in shown
