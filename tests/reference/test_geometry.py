"""The geometry of known frames, and of frames with a single defect."""

import numpy as np
import pytest

from nearest_etf.reference import canonical_etf, canonical_tight_frame, frame_geometry, nearest_tight_frame
from nearest_etf.reference.geometry import BLOCK
from nearest_etf.reference.stiefel import random_point


def regular_polygon(K):
    angles = 2 * np.pi * np.arange(K) / K
    return np.column_stack([np.cos(angles), np.sin(angles)])


@pytest.mark.parametrize(("d", "K"), [(1, 2), (2, 3), (5, 3), (7, 8), (40, 10)])
@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e150])
def test_simplex(d, K, scale):
    found = frame_geometry(scale * canonical_etf(d, K).T)
    assert found.tightness_error == pytest.approx(0, abs=1e-14)
    assert found.norm_spread == pytest.approx(0, abs=1e-14)
    assert found.largest_cosine == pytest.approx(-1 / (K - 1), abs=1e-14)
    assert found.largest_absolute_cosine == pytest.approx(1 / (K - 1), abs=1e-14)
    assert found.cosine_bound == -1 / (K - 1)
    assert found.welch_bound == pytest.approx(1 / d if d == K - 1 else 0.0)


@pytest.mark.parametrize("d", [2, 3, 8])
def test_orthoplex(d):
    rng = np.random.default_rng(d)
    found = frame_geometry(np.vstack([np.eye(d), -np.eye(d)]) @ random_point(d, d, rng))
    assert found.tightness_error == pytest.approx(0, abs=1e-14)
    assert found.norm_spread == pytest.approx(0, abs=1e-14)
    assert found.largest_cosine == pytest.approx(0, abs=1e-14)
    assert found.cosine_bound == 0.0
    assert found.largest_absolute_cosine == pytest.approx(1)
    assert found.welch_bound == pytest.approx((1 / (2 * d - 1)) ** 0.5)


def test_mercedes_and_polygons():
    mercedes = frame_geometry(regular_polygon(3))
    assert mercedes.largest_cosine == pytest.approx(mercedes.cosine_bound)
    assert mercedes.largest_absolute_cosine == pytest.approx(mercedes.welch_bound)
    for K in (4, 5, 9):
        found = frame_geometry(regular_polygon(K))
        assert found.tightness_error == pytest.approx(0, abs=1e-14)
        assert found.largest_cosine == pytest.approx(np.cos(2 * np.pi / K), abs=1e-14)


def test_six_diagonals_of_the_icosahedron_attain_welchs_bound():
    g = (1 + 5**0.5) / 2
    found = frame_geometry([[0, 1, g], [0, 1, -g], [1, g, 0], [1, -g, 0], [g, 0, 1], [-g, 0, 1]])
    assert found.tightness_error == pytest.approx(0, abs=1e-14)
    assert found.largest_absolute_cosine == pytest.approx(5**-0.5)
    assert found.welch_bound == pytest.approx(5**-0.5)


@pytest.mark.parametrize(("K", "d"), [(7, 4), (4, 7), (5, 4)])
def test_tightness_error_is_the_distance_from_the_nearest_multiple_of_a_projector(K, d):
    """The projector on the leading eigenvectors attains the distance, and no random one is nearer."""
    rng = np.random.default_rng(0)
    W, r = rng.standard_normal((K, d)), min(d, K - 1)
    error, S = frame_geometry(W).tightness_error, W.T @ W

    def distance(basis):
        Pi = basis @ basis.T
        return np.linalg.norm(S - np.vdot(S, Pi) / r * Pi) / np.linalg.norm(S)

    assert distance(np.linalg.eigh(S)[1][:, -r:]) == pytest.approx(error)
    assert min(distance(random_point(d, r, rng)) for _ in range(50)) >= error - 1e-12


def test_each_figure_detects_its_own_defect():
    tight = frame_geometry(canonical_tight_frame(3, 8).T)
    assert tight.tightness_error < 1e-14
    assert tight.norm_spread > 0.1
    rows = np.random.default_rng(0).standard_normal((8, 3))
    unit = frame_geometry(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    assert unit.norm_spread < 1e-14
    assert unit.tightness_error > 0.1
    assert frame_geometry(np.eye(4)).tightness_error == pytest.approx(0.5)  # rank 4 instead of 3


@pytest.mark.parametrize(("d", "K"), [(3, 4), (3, 7), (5, 20), (2, 9)])
def test_bounds_hold_for_random_rows(d, K):
    for seed in range(20):
        found = frame_geometry(np.random.default_rng(seed).standard_normal((K, d)))
        assert found.largest_cosine > found.cosine_bound
        assert found.largest_absolute_cosine > found.welch_bound


def test_blocks_of_the_gram_matrix_agree_with_the_whole():
    rows = np.random.default_rng(0).standard_normal((2 * BLOCK + 10, 6))
    found = frame_geometry(rows)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = (rows @ rows.T)[~np.eye(len(rows), dtype=bool)]
    assert found.largest_cosine == pytest.approx(cosines.max(), abs=1e-14)
    assert found.largest_absolute_cosine == pytest.approx(np.abs(cosines).max(), abs=1e-14)


def test_a_row_of_zeros_has_cosine_zero_and_equal_rows_one():
    assert frame_geometry([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]).largest_cosine == 0.0
    assert frame_geometry([[1.0, 2.0], [2.0, 4.0], [-1.0, 0.0]]).largest_cosine == pytest.approx(1)


def test_geometry_of_a_solution():
    H = np.random.default_rng(0).standard_normal((5, 12))
    for norms in ("unit", "tight", "equal"):
        found = nearest_tight_frame(H, norms=norms).geometry
        assert (found.norm_spread < 1e-10) == (norms != "tight")
        assert (found.tightness_error < 1e-5) == (norms != "unit")


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones(3), r"shape \(3,\); expected a matrix \(K, d\)"),
        (np.ones((1, 3)), "at least two"),
        (np.zeros((3, 2)), "not all zero"),
        (np.full((3, 2), np.nan), "expected finite"),
    ],
)
def test_bad_input_is_refused(weight, message):
    with pytest.raises(ValueError, match=message):
        frame_geometry(weight)
