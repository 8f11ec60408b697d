"""Transposed matrices are refused wherever their shape differs, with the remedy."""

import numpy as np
import pytest

from nearest_etf.reference import initial_frame, nearest_etf, nearest_etf_jvp, nearest_etf_vjp
from nearest_etf.reference.problems import class_means_of_condition

H = class_means_of_condition(12, 4, 10, np.random.default_rng(0))
LOOKS_TRANSPOSED = (
    r"class_means has shape \(4, 12\); expected \(d, K\) with d ≥ K−1\. It looks like a transposed matrix: columns "
    r"are classes; pass class_means\.T if your rows are classes\. .* use at least 11 features"
)


@pytest.mark.parametrize("formulation", ["paper", "gauge-free"])
@pytest.mark.parametrize("method", ["trust-region", "svd"])
def test_transposed_class_means_are_refused_by_the_solver(method, formulation):
    with pytest.raises(ValueError, match=LOOKS_TRANSPOSED):
        nearest_etf(H.T, method=method, formulation=formulation)


@pytest.mark.parametrize("kind", ["canonical", "random", "feature-polar"])
def test_transposed_class_means_are_refused_for_a_start(kind):
    with pytest.raises(ValueError, match=LOOKS_TRANSPOSED):
        initial_frame(kind, H.T)


def test_one_class_more_than_features_is_refused_in_the_papers_form_only():
    with pytest.raises(
        ValueError, match=r'd ≥ K\. Columns are classes; pass class_means\.T .*formulation="gauge-free"'
    ):
        nearest_etf(np.ones((3, 4)))
    assert nearest_etf(np.eye(3, 4), formulation="gauge-free").status.ok


@pytest.mark.parametrize("name", ["proximal", "initial"])
def test_transposed_frames_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} has shape \(4, 12\); expected \(12, 4\), .*Pass {name}\.T"):
        nearest_etf(H, **{name: np.eye(4, 12)})


def test_transposed_tangents_and_cotangents_are_refused():
    solution = nearest_etf(H)
    with pytest.raises(ValueError, match=r"Pass cotangent\.T"):
        nearest_etf_vjp(solution, H.T)
    with pytest.raises(ValueError, match=r"Pass class_means_dot\.T"):
        nearest_etf_jvp(solution, H.T)
    with pytest.raises(ValueError, match=r"Pass proximal_dot\.T"):
        nearest_etf_jvp(solution, H, H.T)
