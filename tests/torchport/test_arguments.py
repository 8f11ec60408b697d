"""Every public function of torchport on tensors of any kind, scale and layout: a correct result or a named error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from nearest_etf import reference, torchport
from nearest_etf.torchport.arguments import check_finite, check_floats, is_mapped

D, K, N = 6, 4, 12
RNG = np.random.default_rng(0)
H = torch.tensor(RNG.standard_normal((D, K)), dtype=torch.float32)
WIDE = torch.tensor(RNG.standard_normal((3, 10)), dtype=torch.float32)  # K > d+1
X = torch.tensor(RNG.standard_normal((N, D)), dtype=torch.float32)
Y = torch.arange(N) % K
W = torch.eye(K, D)
FRAME, TIGHT = torch.eye(D, K), torchport.canonical_tight_frame(3, 10)
HEADS = ("LinearHead", "LearnedHead", "FixedETFHead", "ImplicitETFHead", "ClassMeanHead", "TightFrameHead")


def head(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(torchport, name)(D, K, **options)


def meter() -> torchport.NeuralCollapseMeter:
    return torchport.NeuralCollapseMeter(D, K)


def measured(weight: Any = W, bias: Any = None) -> Any:
    filled = meter()
    filled.update(X, Y)
    return filled.compute(weight, bias)


# For every tensor argument of a public function: a call in which only this argument varies, and a valid value.
CALLS: dict[str, tuple[Callable[[Any], Any], Tensor]] = {
    "nearest_etf": (torchport.nearest_etf, H),
    "nearest_etf, proximal": (lambda x: torchport.nearest_etf(H, x), FRAME),
    "nearest_etf, initial": (lambda x: torchport.nearest_etf(H, initial=x), FRAME),
    "solve": (lambda x: torchport.solve(x).optimality_gap, H),
    "solve, basis": (lambda x: torchport.solve(H, FRAME, basis=x), torch.eye(K)),
    "polar": (torchport.polar, H),
    "polar, start": (lambda x: torchport.polar(H, x), H),
    "project_to_etf": (torchport.project_to_etf, W + 0.1),
    "project_to_etf, bias": (lambda x: torchport.project_to_etf(W, x), torch.ones(K)),
    "etf_distance": (torchport.etf_distance, H),
    "nearest_tight_frame": (torchport.nearest_tight_frame, WIDE),
    "nearest_tight_frame, proximal": (lambda x: torchport.nearest_tight_frame(WIDE, x), TIGHT),
    "nearest_tight_frame, initial": (lambda x: torchport.nearest_tight_frame(WIDE, initial=x), TIGHT),
    "classifier_from_tight_frame": (torchport.classifier_from_tight_frame, TIGHT),
    "hyperspherical_uniformity": (torchport.hyperspherical_uniformity, W + 0.1),
    "mutual_coherence": (torchport.mutual_coherence, W + 0.1),
    "mutual_coherence, centre": (lambda x: torchport.mutual_coherence(W, x), torch.ones(D)),
    "ood_deviation": (lambda x: torchport.ood_deviation(x, torch.ones(D)), W),
    "max_softmax_score": (lambda x: torchport.max_softmax_score(x, W), X),
    "max_softmax_score, weight": (lambda x: torchport.max_softmax_score(X, x), W),
    "max_logit_score, bias": (lambda x: torchport.max_logit_score(X, W, x), torch.ones(K)),
    "energy_score": (lambda x: torchport.energy_score(x, W), X),
    "neco_score": (lambda x: torchport.neco_score(x, torch.eye(D, 3)), X),
    "neco_score, subspace": (lambda x: torchport.neco_score(X, x), torch.eye(D, 3)),
    "nci_score": (lambda x: torchport.nci_score(x, W, global_mean=torch.zeros(D)), X),
    "nci_score, global_mean": (lambda x: torchport.nci_score(X, W, global_mean=x), torch.zeros(D)),
    "class_subspace": (torchport.class_subspace, X),
    "principal_subspace": (lambda x: torchport.principal_subspace(x, 2), X),
    "class_gaussians": (lambda x: torchport.class_gaussians(x, Y, K), X),
    "mahalanobis_score": (lambda x: torchport.mahalanobis_score(x, W, torch.eye(D)), X),
    "mahalanobis_score, covariance": (lambda x: torchport.mahalanobis_score(X, W, x), torch.eye(D)),
    "nearest_neighbour_score": (lambda x: torchport.nearest_neighbour_score(x, X, 2), X),
    "NeuralCollapseMeter.update": (lambda x: meter().update(x, Y), X),
    "NeuralCollapseMeter.compute": (measured, W),
    "NeuralCollapseMeter.compute, bias": (lambda x: measured(W, x), torch.ones(K)),
    "ClassMeans": (lambda x: torchport.ClassMeans(D, K)(x, Y), X),
    "ClassMeans.set_means": (lambda x: torchport.ClassMeans(D, K).set_means(x), W),
    "ClassMeans.set_means, counts": (lambda x: torchport.ClassMeans(D, K).set_means(W, x), torch.ones(K)),
}
for _name in HEADS:
    CALLS[_name] = (partial(lambda name, x: head(name)(x, Y), _name), X)
    CALLS[f"{_name}, eval"] = (partial(lambda name, x: head(name).eval()(x), _name), X)
for _name in HEADS[1:]:
    CALLS[f"{_name}.fit"] = (partial(lambda name, x: head(name).fit(x, Y), _name), X)
    CALLS[f"{_name}.set_means"] = (partial(lambda name, x: head(name).set_means(x), _name), W)
for _name in ("FixedETFHead", "ImplicitETFHead", "TightFrameHead"):
    CALLS[f"{_name}, initial"] = (partial(lambda name, x: head(name, initial=x), _name), FRAME)
LABELS: dict[str, Callable[[Any], Any]] = {
    "ClassMeans": lambda y: torchport.ClassMeans(D, K)(X, y),
    "NeuralCollapseMeter.update": lambda y: meter().update(X, y),
    "class_gaussians": lambda y: torchport.class_gaussians(X, y, K),
    **{name: partial(lambda name, y: head(name)(X, y), name) for name in HEADS},
    **{f"{name}.fit": partial(lambda name, y: head(name).fit(X, y), name) for name in HEADS[1:]},
}
MAY_BE_LEFT_OUT = ("proximal", "initial", "basis", "start", "bias", "centre", "counts")
COUNTS_ANY_NUMBERS = "ClassMeans.set_means, counts"


def odd_kinds(x: Tensor) -> Iterator[tuple[str, Any]]:
    """The same entries as objects that no function accepts."""
    yield "numpy", x.numpy()
    yield "list", x.tolist()
    yield "text", "features"
    yield "sparse", x.to_sparse()
    yield "nested", torch.nested.nested_tensor(list(x))
    yield "mkldnn", x.to_mkldnn()
    yield "quantised", torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)
    yield "complex", x.to(torch.complex64)
    yield "conjugate", x.to(torch.complex64).conj()
    yield "float8", x.to(torch.float8_e4m3fn)
    yield "integer", x.to(torch.int64)
    yield "bool", x > 0
    yield "no dimension", x.flatten()[0]
    yield "one dimension more", x[None, None, None]
    if x.ndim == 2:
        yield "compressed rows", x.to_sparse_csr()
        yield "no columns", x[:, :0]


@pytest.mark.parametrize("name", CALLS)
def test_only_dense_floating_point_tensors_are_accepted(name: str) -> None:
    call, good = CALLS[name]
    call(good)
    argument = name.rpartition(", ")[2]
    for kind, odd in odd_kinds(good):
        batches = kind == "one dimension more" and name.startswith(("nearest_etf", "polar", "etf_distance"))
        if batches or (name == COUNTS_ANY_NUMBERS and kind in ("integer", "bool", "float8", "quantised")):
            continue  # batches are valid here, and counts may be integers
        if (name, kind) == ("neco_score, subspace", "no columns"):
            continue  # an empty subspace is valid
        with pytest.raises(ValueError, match=r"expect|needs at least 2 classes|in 0 dimensions") as refusal:
            call(odd)
        if argument in MAY_BE_LEFT_OUT:
            assert argument in str(refusal.value), (kind, str(refusal.value))
    if argument not in MAY_BE_LEFT_OUT:
        with pytest.raises(ValueError, match="NoneType"):
            call(None)


@pytest.mark.parametrize("name", CALLS)
def test_meta_tensors_give_shapes_or_are_refused(name: str) -> None:
    call, good = CALLS[name]
    if name == "solve":
        call = torchport.solve  # without its certificate, which needs values
    try:
        result = call(good.to("meta"))
    except ValueError as refusal:
        result = str(refusal)
    assert "meta" in result if isinstance(result, str) else isinstance(result, Tensor | torch.nn.Module | tuple)


@pytest.mark.parametrize("name", LABELS)
def test_bad_labels_are_refused(name: str) -> None:
    for odd in (
        *(Y.numpy(), Y.tolist(), "labels", Y.to_sparse(), Y.bool(), Y.to(torch.complex64), Y.float(), Y[:-1], Y[0]),
        *(Y.to("meta"), torch.quantize_per_tensor(Y.float(), 1.0, 0, torch.qint8), Y - 1, Y + 1, Y[:, None, None]),
    ):
        with pytest.raises(ValueError, match="label"):
            LABELS[name](odd)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("sizes", [(2.5, 3), ("6", 3), (6, True), (6, None), (-1, 3), (6, 1), ([6], 3)])
def test_sizes_must_be_whole_numbers(name: str, sizes: tuple[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"num_features = |num_classes = "):
        getattr(torchport, name)(*sizes)


@pytest.mark.parametrize("name", HEADS[3:])
@pytest.mark.parametrize("gradient", ["no", 0, None, torch.tensor(True)])
def test_gradient_must_be_true_or_false(name: str, gradient: Any) -> None:
    with pytest.raises(ValueError, match=r"gradient = .*; expected True or False"):
        head(name, gradient=gradient)


@pytest.mark.parametrize("delta", [-1.0, math.nan, math.inf, "0.1", None, torch.ones(2)])
def test_delta_must_be_a_finite_number(delta: Any) -> None:
    for call in (
        lambda: head("ImplicitETFHead", delta=delta),
        lambda: head("TightFrameHead", delta=delta),
        lambda: torchport.nearest_etf(H, delta=delta),
        lambda: torchport.nearest_tight_frame(WIDE, delta=delta),
    ):
        with pytest.raises(ValueError, match=r"(?s)delta = .*; expected a finite number"):
            call()


DTYPES = {torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float32: 1e-3, torch.float64: 1e-6}


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same matrix in another memory layout."""
    if layout == "transposed":
        return x.mT.contiguous().mT
    if layout == "strided":
        wide = x.new_full((x.shape[0], 3 * x.shape[1]), torch.nan)
        wide[:, ::3] = x
        return wide[:, ::3]
    if layout == "negated view" and x.dtype in (torch.float32, torch.float64):
        return torch.complex(torch.zeros_like(x), -x).conj().imag
    if layout == "gradient":
        return x.clone().requires_grad_()
    return x


@st.composite
def matrices(draw: st.DrawFn, *, wide: bool = False) -> tuple[Tensor, Tensor]:
    """A matrix (d, K) of any dtype, scale and layout, and the same one in float64 at scale 1."""
    K = draw(st.integers(2, 9))
    d = draw(st.integers(1, 9) if wide else st.integers(K - 1, 12))
    dtype = draw(st.sampled_from(list(DTYPES)))
    seed = draw(st.integers(0, 2**32 - 1))
    top = {torch.float16: 3, torch.bfloat16: 30, torch.float32: 30, torch.float64: 300}[dtype]
    exponent = draw(st.one_of(st.just(0), st.integers(-top, top)))
    unit = torch.ldexp(torch.tensor(1.0, dtype=torch.float64), torch.tensor(int(exponent * math.log2(10))))
    plain = torch.tensor(np.random.default_rng(seed).standard_normal((d, K))).to(dtype)
    given = (plain.double() * unit).to(dtype)
    layout = draw(st.sampled_from(["contiguous", "transposed", "strided", "negated view", "gradient"]))
    exact = given.double() / unit  # from `given`, since half precision rounds small entries
    return laid_out(given, layout), exact


METHODS = st.sampled_from(["auto", "svd", "eigh", "matmul", "trust-region"])


@given(matrices(), METHODS)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_the_nearest_etf_of_any_matrix_is_optimal(drawn: tuple[Tensor, Tensor], method: str) -> None:
    means, exact = drawn
    U = torchport.nearest_etf(means, method=method, formulation="gauge-free").detach().double()
    K = U.shape[1]
    assert torch.allclose(U.mT @ U, torch.eye(K, dtype=U.dtype) - 1 / K, atol=DTYPES[means.dtype])
    best = torch.linalg.matrix_norm(exact - exact.mean(1, keepdim=True), "nuc")
    value = (U * exact).sum()
    assert value >= (1 - DTYPES[means.dtype]) * best - 1e-12


@given(matrices(), METHODS)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_gradients_scale_inversely(drawn: tuple[Tensor, Tensor], method: str) -> None:
    means, exact = drawn
    sigma = torch.linalg.svdvals(exact - exact.mean(1, keepdim=True))[: means.shape[1] - 1]
    if means.dtype not in (torch.float32, torch.float64) or sigma[-1] < 0.1 * sigma[0]:
        return
    cotangent = torch.cos(torch.arange(exact.numel(), dtype=torch.float64)).reshape(exact.shape)
    x, y = means.detach().requires_grad_(), exact.clone().requires_grad_()
    (torchport.nearest_etf(x, method=method, formulation="gauge-free") * cotangent.to(x)).sum().backward()
    (torchport.nearest_etf(y, method="svd", formulation="gauge-free") * cotangent).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    ratio = float(means.detach().double().abs().max() / exact.abs().max())
    error = (x.grad.double() * ratio - y.grad).abs().max()
    rounding = 100 * torch.finfo(x.dtype).eps * cotangent.norm() / sigma[-1]  # for d = 1 the gradient vanishes
    assert error <= 20 * DTYPES[x.dtype] * y.grad.abs().max() + rounding


@given(matrices(wide=True), st.sampled_from(["polar", "tight", "distance", "uniformity", "coherence"]))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_scale_invariant_functions_do_not_depend_on_the_scale(drawn: tuple[Tensor, Tensor], which: str) -> None:
    x, exact = drawn
    d, K = x.shape
    atol = DTYPES[x.dtype]
    if which == "polar":
        U = torchport.polar(x).detach().double()
        best = torch.linalg.matrix_norm(exact, "nuc")
        assert torch.isclose((U * exact).sum(), best, rtol=atol, atol=1e-12)
    elif which == "tight":
        F = torchport.nearest_tight_frame(x).detach().double()
        best = torch.linalg.matrix_norm(exact - exact.mean(1, keepdim=True), "nuc")
        assert torch.isclose((F * exact).sum(), best, rtol=atol, atol=1e-12)
    elif which == "distance" and d >= K - 1:
        measured = reference.neural_collapse(exact.T, np.arange(K), np.eye(K, d) + 1).etf_distance_means
        assert float(torchport.etf_distance(x)) == pytest.approx(measured, rel=1e-4, abs=1e-5)
    elif which == "uniformity" and d > 1:
        expected = reference.hyperspherical_uniformity(exact.T)
        assert torchport.hyperspherical_uniformity(x.detach().mT) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    elif which == "coherence":
        assert torchport.mutual_coherence(x.detach().mT) == pytest.approx(reference.mutual_coherence(exact.T), abs=1e-6)


@given(st.sampled_from(HEADS[1:]), st.sampled_from([torch.float32, torch.float64]), st.integers(-300, 300))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_a_head_with_normalised_features_does_not_depend_on_their_scale(
    name: str, dtype: torch.dtype, exponent: int
) -> None:
    exponent = exponent // 10 if dtype == torch.float32 else exponent
    features = X.to(dtype)
    scaled = features * torch.tensor(10.0**exponent, dtype=dtype)
    results = []
    for x in (features, scaled):
        x = x.clone().requires_grad_()
        own = head(name).to(dtype)
        logits = own(x, Y)
        cross_entropy(logits, Y).backward()
        results.append((logits.detach(), gradient_of(x) * float(x.detach().abs().max()), own.weight.detach()))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-3 if dtype == torch.float32 else 1e-8, atol=1e-4)


def gradient_of(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad.double()


def test_zero_and_subnormal_rows_are_normalised_correctly() -> None:
    features = X.clone()
    features[0], features[1] = 0.0, X[1] * 1e-40  # below the smallest normal float32
    for name in HEADS[1:]:
        own = head(name).eval()
        h = own.normalise(features)
        assert not h[0].any()
        assert h[1:].norm(dim=1).allclose(torch.tensor(own.temperature))
        assert torch.cosine_similarity(h[1], X[1], dim=0) > 0.999


def test_sums_that_overflow_are_refused_and_change_nothing() -> None:
    running = torchport.ClassMeans(D, K)
    running(X, Y)
    before = running.class_means.clone()
    with pytest.raises(ValueError, match="too large"):
        running(torch.full((N, D), 3e38), Y)
    assert torch.equal(running.class_means, before)


def test_a_basis_must_be_an_orthonormal_matrix() -> None:
    first = torchport.solve(H, FRAME)
    for basis in (
        2 * torch.eye(K),
        torch.full((K, K), torch.nan),
        torch.zeros(K, K),
        torch.eye(K, K - 1),
        torch.eye(9),
    ):
        with pytest.raises(ValueError, match="basis"):
            torchport.solve(H, FRAME, basis=basis)
    assert torchport.solve(H, FRAME, basis=torch.eye(K - 1)).frame.allclose(
        first.frame, atol=1e-5
    )  # size K−1, as after a first step


def test_batches_with_constant_or_empty_leading_dimensions() -> None:
    U = torchport.nearest_etf(H.expand(3, D, K), initial="canonical")
    assert torch.allclose(U, torchport.nearest_etf(H).expand(3, D, K), atol=1e-5)
    assert torchport.nearest_etf(torch.empty(0, D, K)).shape == (0, D, K)
    constant = torch.ones(D, 1).expand(D, K)  # stride 0: all class means coincide
    assert torchport.etf_distance(constant) == 1.0
    assert torch.linalg.matrix_norm(torchport.nearest_etf(constant)).isclose(torch.tensor(2.0))


def test_checks_do_not_read_values_under_vmap() -> None:
    seen: list[bool] = []

    def look(x: Tensor) -> Tensor:
        check_floats("x", x, "a vector")
        check_finite("x", x)
        seen.append(is_mapped(x))
        return x

    torch.func.vmap(look)(torch.tensor([[1.0], [math.nan]]))
    torch.func.grad(lambda x: look(x).sum())(torch.ones(2))
    assert seen == [True, False]
    with pytest.raises(ValueError, match="x contains NaN"):
        check_finite("x", torch.tensor([math.nan]))
    with pytest.raises(ValueError, match=r"y is on meta; expected cpu.*y\.to\('cpu'\)"):
        check_floats("y", torch.empty(1, device="meta"), "a vector", beside=torch.ones(1))
