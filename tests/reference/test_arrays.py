"""Every public function of the reference on arrays of any kind and scale: a correct result or a named error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearest_etf import reference
from nearest_etf.reference.arrays import as_array, real_array
from nearest_etf.reference.stiefel import Array

D, K, N = 6, 4, 12
RNG = np.random.default_rng(0)
H, WIDE = RNG.standard_normal((D, K)), RNG.standard_normal((3, 10))
X, Y = RNG.standard_normal((N, D)), np.arange(N) % K
W = np.eye(K, D) + 0.1
FRAME, TIGHT = np.eye(D, K), reference.canonical_tight_frame(3, 10)
SOLVED, SOLVED_WIDE = reference.nearest_etf(H), reference.nearest_tight_frame(WIDE)

CALLS: dict[str, tuple[Callable[[Any], Any], Array]] = {
    "nearest_etf": (reference.nearest_etf, H),
    "nearest_etf, proximal": (lambda x: reference.nearest_etf(H, x), FRAME),
    "nearest_etf, initial": (lambda x: reference.nearest_etf(H, initial=x), FRAME),
    "nearest_etf_vjp": (lambda x: reference.nearest_etf_vjp(SOLVED, x), H),
    "nearest_etf_jvp": (lambda x: reference.nearest_etf_jvp(SOLVED, x), H),
    "nearest_tight_frame": (reference.nearest_tight_frame, WIDE),
    "tight_frame_vjp": (lambda x: reference.tight_frame_vjp(SOLVED_WIDE, x), WIDE),
    "tight_frame_jvp": (lambda x: reference.tight_frame_jvp(SOLVED_WIDE, x), WIDE),
    "classifier_from_tight_frame": (reference.classifier_from_tight_frame, TIGHT),
    "equal_norm_tight_frame": (reference.equal_norm_tight_frame, TIGHT),
    "initial_frame": (lambda x: reference.initial_frame("feature-polar", x), H),
    "etf_error": (reference.etf_error, W),
    "frame_geometry": (reference.frame_geometry, W),
    "hyperspherical_uniformity": (reference.hyperspherical_uniformity, W),
    "mutual_coherence": (reference.mutual_coherence, W),
    "ood_deviation": (lambda x: reference.ood_deviation(x, np.ones(D)), W),
    "neural_collapse": (lambda x: reference.neural_collapse(x, Y, W), X),
    "neural_collapse, weight": (lambda x: reference.neural_collapse(X, Y, x), W),
    "ClassMeans.update": (lambda x: reference.ClassMeans(D, K).update(x, Y), X),
    "ClassMeans.set_means": (lambda x: reference.ClassMeans(D, K).set_means(x), W),
    "max_softmax_score": (lambda x: reference.max_softmax_score(x, W), X),
    "energy_score, weight": (lambda x: reference.energy_score(X, x), W),
    "neco_score": (lambda x: reference.neco_score(x, np.eye(D, 2)), X),
    "neco_score, subspace": (lambda x: reference.neco_score(X, x), np.eye(D, 2)),
    "nci_score": (lambda x: reference.nci_score(x, W, global_mean=np.ones(D)), X),
    "class_subspace": (reference.class_subspace, W),
    "principal_subspace": (lambda x: reference.principal_subspace(x, 2), X),
    "class_gaussians": (lambda x: reference.class_gaussians(x, Y, K), X),
    "mahalanobis_score": (lambda x: reference.mahalanobis_score(X, W, x), np.eye(D)),
    "nearest_neighbour_score": (lambda x: reference.nearest_neighbour_score(X, x, 2), X),
}
LABELS: dict[str, Callable[[Any], Any]] = {
    "neural_collapse": lambda y: reference.neural_collapse(X, y, W),
    "ClassMeans.update": lambda y: reference.ClassMeans(D, K).update(X, y),
    "class_gaussians": lambda y: reference.class_gaussians(X, y, K),
}


def odd_kinds(x: Array) -> Iterator[Any]:
    """The same entries as objects that no function accepts."""
    tensor = torch.tensor(x)
    yield from (tensor.clone().requires_grad_(), tensor.to_sparse(), tensor.to("meta"), tensor.bfloat16())
    yield from (scipy.sparse.csr_matrix(x), x + 0j, x.astype(str), "text", np.full(x.shape, None), x.astype("M8[s]"))
    yield from (np.ma.masked_array(x, x > 0.05), [[1.0, 2.0], [3.0]], x[0, 0], x[0], x[None], x[:0], x[:, :0])
    yield from (
        np.full_like(x, np.nan),
        np.full_like(x, np.inf),
        x.astype(np.longdouble) * np.longdouble("1e400") + np.longdouble("1e400"),
    )


@pytest.mark.parametrize("name", CALLS)
def test_only_arrays_of_real_numbers_are_accepted(name: str) -> None:
    call, good = CALLS[name]
    for same in (
        good,
        good.tolist(),
        torch.tensor(good),
        good.astype(object),
        np.asfortranarray(good),
        np.asmatrix(good),
    ):
        call(same)
    for odd in odd_kinds(good):
        if name == "neco_score, subspace" and getattr(odd, "shape", None) == (D, 0):
            continue  # an empty subspace is valid
        with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"expect|NaN|needs at least|not orthonormal"):
            call(odd)


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_another_kind_are_refused(name: str) -> None:
    LABELS[name](Y.tolist())
    LABELS[name](Y.astype(np.uint8))
    for odd in (Y.astype(float), Y.astype(str), Y > 0, Y + 0j, Y[:-1], Y[:, None], Y[0], Y - 1, Y + 1, "labels", None):
        with pytest.raises(ValueError, match="label"):
            LABELS[name](odd)


def test_conversion_keeps_the_entries() -> None:
    assert real_array("x", np.array([1, 2], np.float32)).dtype == np.float64
    exact = np.arange(3.0)
    assert real_array("x", exact) is exact
    assert as_array("labels", [1, 2]).dtype.kind == "i"
    with pytest.raises(ValueError, match="x has masked entries"):
        as_array("x", np.ma.masked_array([1.0, 2.0], [False, True]))


@pytest.mark.parametrize("delta", [-1.0, float("nan"), float("inf"), "0.1", None])
def test_delta_is_a_number(delta: Any) -> None:
    with pytest.raises(ValueError, match=r"delta = .*; expected a finite number"):
        reference.nearest_etf(H, delta=delta)


@pytest.mark.parametrize("size", [2.5, "3", None, True, [3]])
def test_sizes_are_whole_numbers(size: Any) -> None:
    for call in (
        lambda: reference.simplex_etf(size),
        lambda: reference.canonical_etf(size, 3),
        lambda: reference.canonical_tight_frame(3, size),
        lambda: reference.ClassMeans(3, size),
    ):
        with pytest.raises(ValueError, match="expected an integer"):
            call()


SCALE_FREE: dict[str, tuple[Callable[[Array], Any], Array]] = {
    "trust region": (lambda x: reference.nearest_etf(x).frame, H),
    "svd": (lambda x: reference.nearest_etf(x, method="svd", formulation="gauge-free").frame, H),
    "tight": (lambda x: reference.nearest_tight_frame(x).frame, WIDE),
    "equal norms": (reference.equal_norm_tight_frame, WIDE),
    "etf_error": (reference.etf_error, W),
    "geometry": (lambda x: astuple(reference.frame_geometry(x)), W),
    "uniformity": (reference.hyperspherical_uniformity, W),
    "coherence": (reference.mutual_coherence, W),
    "ood_deviation": (lambda x: reference.ood_deviation(x, np.ones(D)), W),
    "collapse": (lambda x: astuple(replace(reference.neural_collapse(x, Y, W), bias_offset=0.0))[:-1], X),
    "collapse, weight": (lambda x: astuple(replace(reference.neural_collapse(X, Y, x), bias_offset=0.0))[:-1], W),
    "subspace": (reference.class_subspace, W),
    "neighbours": (lambda x: reference.nearest_neighbour_score(x, X, 2), X),
    "neco": (lambda x: reference.neco_score(x, np.eye(D, 2)), X),
    "running means": (lambda x: normalised_means(x), X),
}


def normalised_means(features: Array) -> Array:
    running = reference.ClassMeans(D, K)
    running.update(features, Y)
    return running.normalised()


@given(st.sampled_from(sorted(SCALE_FREE)), st.integers(-1000, 1000))
@settings(max_examples=120, deadline=None, derandomize=True)
def test_scale_invariant_functions_do_not_depend_on_the_scale(name: str, exponent: int) -> None:
    call, x = SCALE_FREE[name]
    np.testing.assert_allclose(call(np.ldexp(x, exponent)), call(x), rtol=1e-7, atol=1e-9)


def test_gradients_scale_inversely() -> None:
    expected = reference.nearest_etf_vjp(reference.nearest_etf(H), FRAME)[0]
    for exponent in (-900, -100, 100, 900):
        found = reference.nearest_etf_vjp(reference.nearest_etf(np.ldexp(H, exponent)), FRAME)[0]
        np.testing.assert_allclose(np.ldexp(found, exponent), expected, atol=1e-9)


def test_sums_that_overflow_are_refused_and_change_nothing() -> None:
    running = reference.ClassMeans(D, K)
    running.update(X, Y)
    before = running.class_means.copy()
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="too large"):
        running.update(np.full((N, D), 1.7e308), Y)
    assert running.steps == 1
    assert np.array_equal(running.class_means, before)
