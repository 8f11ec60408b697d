import numpy as np
import pytest

from nearest_etf.reference import canonical_etf, etf_error, simplex_etf
from nearest_etf.reference.simplex import canonical_frame, centred_basis, centring


@pytest.mark.parametrize("K", [2, 3, 10, 100])
def test_columns_are_unit_vectors_at_equal_angles(K):
    E = simplex_etf(K)
    assert pytest.approx((K * np.eye(K) - 1) / (K - 1), abs=1e-14) == E.T @ E
    assert np.linalg.matrix_rank(E) == K - 1


@pytest.mark.parametrize("K", [2, 3, 17])
def test_basis_spans_the_range_of_the_centring_projector(K):
    Q = centred_basis(K)
    assert pytest.approx(np.eye(K - 1), abs=1e-14) == Q.T @ Q
    assert pytest.approx(centring(K), abs=1e-14) == Q @ Q.T


@pytest.mark.parametrize(("d", "K"), [(3, 2), (4, 4), (3, 4), (50, 10)])
def test_canonical_etf_is_an_etf_with_unit_columns(d, K):
    E = canonical_etf(d, K)
    assert E.shape == (d, K)
    assert np.linalg.norm(E, axis=0) == pytest.approx(np.ones(K))
    assert etf_error(E.T) < 1e-14
    U = canonical_frame(d, K)
    assert centring(K) @ U.T @ U @ centring(K) == pytest.approx(centring(K), abs=1e-14)


def test_error_is_invariant_under_rotation_and_scale_and_detects_a_moved_vertex():
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    W = canonical_etf(6, 4).T
    assert etf_error(1e-200 * W @ rotation) < 1e-14
    W[0] *= 1.1
    assert etf_error(W) == pytest.approx(etf_error(7e200 * W @ rotation))
    assert etf_error(W) > 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simplex_etf(1), "at least 2 classes"),
        (lambda: canonical_etf(2, 4), "Use at least 3 features"),
        (lambda: etf_error(np.ones(3)), r"expected a matrix \(K, d\)"),
        (lambda: etf_error(np.zeros((3, 4))), "not all zero"),
        (lambda: etf_error([[1.0, np.nan], [0.0, 1.0]]), "finite"),
        (lambda: etf_error(np.ones((1, 4))), "at least 2 classes"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
