"""Heads with more classes than dimensions: common properties, and those of each head."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nearest_etf.torchport import ClassMeanHead, Head, ImplicitETFHead, LearnedHead, LinearHead, TightFrameHead
from nearest_etf.torchport import tight_frame as tight_frame_module
from nearest_etf.torchport.heads import AveragingHead
from nearest_etf.torchport.simplex import centred

Make = Callable[..., Any]
MAKERS: list[Make] = [
    ClassMeanHead,
    TightFrameHead,
    partial(TightFrameHead, norms="tight"),
    partial(TightFrameHead, norms="equal"),
]
NAMES = ["class-mean", "unit", "tight", "equal"]
every_head = pytest.mark.parametrize("make", MAKERS, ids=NAMES)
D, K = 6, 16


def batch(step: int, d: int = D, classes: int = K, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, classes, (48,), generator=generator)
    return torch.randn(48, d, dtype=dtype, generator=generator).requires_grad_(), labels


def is_equal(make: Make) -> bool:
    return isinstance(make, partial) and make.keywords["norms"] == "equal"


def loss_of(head: Head, features: Tensor, labels: Tensor, **how: Any) -> Tensor:
    return F.cross_entropy(head(features, labels, **how), labels)


@every_head
def test_the_state_is_complete_and_update_false_stores_nothing(make: Make) -> None:
    head, resumed = make(D, K).double(), make(D, K).double()
    for step in range(3):
        head(*batch(step))
    resumed.load_state_dict(copy.deepcopy(head.state_dict()))
    before = copy.deepcopy(head.state_dict())
    tried = head(*batch(3), update=False)
    assert all(torch.equal(value, head.state_dict()[name]) for name, value in before.items())
    for other in (head, resumed):
        assert torch.equal(other(*batch(3)), tried)
    for step in range(4, 6):
        assert torch.equal(head(*batch(step)), resumed(*batch(step)))
    features, labels = batch(9)
    wanted = head.normalise(features) @ head.weight.T + head.bias
    torch.testing.assert_close(head.eval()(features, labels), wanted)


@every_head
@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("classes", [K, 4])
def test_gradient_through_the_whole_head(make: Make, gradient: bool, classes: int) -> None:
    """Also where fewer than D+1 classes have been seen, too few for a frame."""
    if is_equal(make) and classes < K:
        pytest.skip("alternating projections from such a symmetric start pass a saddle, which amplifies rounding")
    fresh = make(D, K, temperature=5.0, gradient=gradient).double()
    features, labels = batch(1, classes=classes)
    features = features[:12].detach().requires_grad_()
    target = torch.randn(12, K, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for step in range(2):

        def loss(features: Tensor) -> Tensor:
            return (copy.deepcopy(fresh)(features, labels[:12]) * target).sum()

        right = torch.autograd.gradcheck(loss, features, raise_exception=False)
        assert right == gradient  # without the gradient through the solution it is not the derivative
        fresh(*batch(step, classes=classes))


@every_head
def test_set_means_and_refresh_agree(make: Make) -> None:
    head = make(D, K).double()
    head(*batch(0))
    rows = head.normalise(torch.randn(K, D, dtype=torch.float64))
    head.set_means(rows)
    torch.testing.assert_close(head.bias, -head.weight @ rows.mean(0))
    if isinstance(head, ClassMeanHead):
        torch.testing.assert_close(head.weight, F.normalize(rows - rows.mean(0), dim=1))
    weight = head.weight.clone()
    with torch.no_grad():
        head.weight.zero_()
    head.refresh()
    torch.testing.assert_close(head.weight, weight, rtol=0, atol=0.05)  # solved again, with the solution as proximal


@every_head
def test_half_precision_soft_labels_and_meta(make: Make) -> None:
    torch.manual_seed(0)
    single = make(D, K)
    half = copy.deepcopy(single).bfloat16()
    for step in range(2):
        features, labels = batch(step, dtype=torch.bfloat16)
        soft = F.one_hot(labels, K).float()
        logits, wanted = half(features, soft), single(features.float(), labels)
        assert logits.dtype == torch.bfloat16
        assert float((logits.float() - wanted).detach().norm() / wanted.detach().norm()) < 0.02
    assert half.running.class_means.dtype == torch.float32
    with torch.device("meta"):
        deferred = make(D, K)
    deferred.load_state_dict(copy.deepcopy(single.state_dict()), assign=True)
    features, labels = batch(7, dtype=torch.float32)
    torch.testing.assert_close(deferred(features, labels), single(features, labels), rtol=1e-4, atol=1e-4)


@every_head
def test_compiled_steps_agree_with_eager_ones(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tight_frame_module, "ROUNDS", 4)  # a compiler unrolls the rounds
    torch._dynamo.reset()
    head = make(D, K)
    twin = copy.deepcopy(head)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for step in range(3):
        features, labels = batch(step, dtype=torch.float32)
        again = features.detach().clone().requires_grad_()
        head(features, labels).logsumexp(1).sum().backward()
        compiled(again, labels).logsumexp(1).sum().backward()
        torch.testing.assert_close(again.grad, features.grad, rtol=1e-4, atol=1e-5)
    for name, value in head.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], value)


@pytest.mark.parametrize("method", ["svd", "eigh", "matmul", "trust-region"])
def test_every_method_takes_the_same_steps(method: str) -> None:
    head, other = TightFrameHead(D, K).double(), TightFrameHead(D, K, method=method).double()
    for step in range(4):
        features, labels = batch(step)
        torch.testing.assert_close(other(features, labels), head(features, labels), rtol=1e-7, atol=1e-9)
    health = head.solution_health()
    assert abs(health["gap"]) < 1e-12
    assert health["orthogonality"] < 1e-12
    assert health["fallbacks"] == 0
    assert health["milliseconds"] > 0


def test_warm_starts_stay_exact() -> None:
    d, classes = 70, 200
    warm, exact = TightFrameHead(d, classes), TightFrameHead(d, classes, method="svd").double()
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, d, generator=generator)
    for head in (warm, exact):
        head.set_means(head.normalise(centres))
        head.running.steps.fill_(5000)
    reused = 0
    for _ in range(10):
        labels = torch.randint(classes, (512,), generator=generator)
        features = centres[labels] + 0.3 * torch.randn(512, d, generator=generator)
        basis = warm.warm_start
        warm(features, labels)
        exact(features.double(), labels)
        reused += basis is not None and warm.warm_start is not None and torch.equal(basis, warm.warm_start)
        assert float((warm.weight - exact.weight).norm() / exact.weight.norm()) < 1e-4
    assert reused > 3
    assert int(warm.fallbacks) == 0


@pytest.mark.parametrize("norms", ["unit", "tight", "equal"])
def test_for_few_classes_the_tight_frame_head_agrees_with_the_implicit_one(norms: Any) -> None:
    tight, implicit = (
        TightFrameHead(8, 5, norms=norms).double(),
        ImplicitETFHead(8, 5, formulation="gauge-free").double(),
    )
    for step in range(4):
        features, labels = batch(step, 8, 5)
        again = features.detach().clone().requires_grad_()
        loss_of(tight, features, labels).backward()
        loss_of(implicit, again, labels).backward()
        torch.testing.assert_close(features.grad, again.grad, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(tight.weight, implicit.weight, rtol=0, atol=1e-12)
        torch.testing.assert_close(tight.frame, centred(implicit.frame), rtol=0, atol=1e-12)


@every_head
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["batch of one", "one class", "constant features", "nearly constant features"])
@pytest.mark.filterwarnings("ignore:the polar factor")
def test_equal_class_means_give_finite_gradients(make: Make, dtype: torch.dtype, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    head = make(D, K).to(dtype)
    for _ in range(3):
        features = torch.randn(32, D, dtype=dtype, generator=generator)
        labels = torch.randint(0, K, (32,), generator=generator)
        if kind == "batch of one":
            features, labels = features[:1], labels[:1]
        elif kind == "one class":
            labels = torch.full((32,), 2)
        elif kind == "constant features":
            features = torch.full((32, D), 3.7, dtype=dtype)
        else:
            features = 3.7 * (1 + torch.finfo(dtype).eps * torch.randn(32, D, dtype=dtype, generator=generator))
        leaf = features.requires_grad_()
        loss_of(head, leaf, labels).backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert float(leaf.grad.norm()) < 100.0
        assert head.weight.isfinite().all()


def test_an_unseen_class_has_a_zero_row_in_the_class_mean_head() -> None:
    head = ClassMeanHead(D, K).double()
    features, labels = batch(0, classes=5)
    loss_of(head, features, labels).backward()
    assert not head.weight[5:].any()
    assert not head.bias[5:].any()
    torch.testing.assert_close(head.weight[:5].norm(dim=1), torch.ones(5, dtype=torch.float64))
    assert features.grad is not None
    assert features.grad.isfinite().all()
    H = head.running.class_means
    torch.testing.assert_close(head.weight[:5], F.normalize(H.T[:5], dim=1))


def test_an_unseen_class_decays_in_the_tight_frame_head_without_large_gradients() -> None:
    head = TightFrameHead(D, K).double()
    for step in range(6):
        features, labels = batch(step, classes=12 if step else 4)  # at first, the start determines all other columns
        loss_of(head, features, labels).backward()
        assert features.grad is not None
        assert float(features.grad.norm()) < 10.0
        if step == 0:
            torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(K, dtype=torch.float64))
    assert not head.weight[12:].any()
    assert head.weight[:12].norm(dim=1).allclose(torch.ones(12, dtype=torch.float64))


@every_head
def test_one_head_learns_more_classes_than_dimensions(make: Make) -> None:
    """Twelve classes in two dimensions: after one fit, every sample is classified correctly."""
    angles = 2 * torch.pi * torch.arange(12) / 12
    features = torch.stack([angles.cos(), angles.sin()], 1).repeat(4, 1)
    labels = torch.arange(12).repeat(4)
    head = make(2, 12, temperature=20.0).fit(features, labels).eval()
    assert bool((head(features).argmax(1) == labels).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "at least 1 and 2"),
        ({"delta": -1.0}, "delta"),
        ({"method": "fast"}, "method = 'fast'"),
        ({"norms": "length"}, "norms = 'length'"),
        ({"num_classes": 7, "norms": "equal", "num_features": 5}, "sums to zero"),
        ({"initial": "feature-polar"}, "'canonical', 'random'"),
        ({"initial": torch.zeros(9, 4)}, r"expected \(4, 9\)"),
        ({"initial": torch.zeros(4, 9)}, "not a tight frame"),
        ({"initial": torch.full((4, 9), torch.nan)}, "not a tight frame"),
        ({"temperature": 0.0}, "positive"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TightFrameHead(**{"num_features": 4, "num_classes": 9, **options})


def test_settings_are_shown_and_a_state_with_others_warns() -> None:
    head = TightFrameHead(4, 9, temperature=7.5, delta=0.25, norms="tight", gradient=False, method="svd")
    for part in ("temperature=7.5", "delta=0.25", "norms='tight'", "gradient=False", "method='svd'"):
        assert part in repr(head)
    assert "gradient=False" in repr(ClassMeanHead(4, 9, gradient=False))
    with pytest.warns(UserWarning, match="delta = 0.25 and not 0.001, tight = 1 and not 0"):
        TightFrameHead(4, 9, temperature=7.5).load_state_dict(head.state_dict())


@pytest.mark.parametrize("kind", [LinearHead, LearnedHead, ClassMeanHead, TightFrameHead])
def test_the_size_of_imagenet_with_a_narrow_network(kind: type[Head]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head = kind(512, 1000)
        features, labels = torch.randn(64, 512, requires_grad=True), torch.randint(1000, (64,))
        loss_of(head, features, labels).backward()
    assert head.weight.shape == (1000, 512)
    assert not isinstance(head, AveragingHead) or head.weight.isfinite().all()
