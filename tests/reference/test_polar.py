"""Polar factors: both methods agree, report the rank, and are completed if the matrix is singular."""

import numpy as np
import pytest
from scipy.linalg import polar

from nearest_etf.reference.polar import complete_frame, polar_by_svd, polar_by_trust_region
from nearest_etf.reference.stiefel import check_point, random_point


@pytest.mark.parametrize(("d", "m"), [(7, 3), (4, 4), (5, 1)])
def test_both_methods_agree_with_scipy(d, m):
    rng = np.random.default_rng(0)
    B = rng.standard_normal((d, m))
    B /= np.linalg.norm(B)
    for found in (polar_by_svd(B), polar_by_trust_region(B, random_point(d, m, rng))):
        assert found.factor == pytest.approx(polar(B)[0], abs=1e-9)
        assert found.left @ found.right.T == pytest.approx(found.factor, abs=1e-12)
        assert found.status.ok


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_both_report_the_range_of_a_singular_matrix(rank):
    rng = np.random.default_rng(0)
    B = random_point(6, rank, rng) @ random_point(3, rank, rng).T if rank else np.zeros((6, 3))
    B /= max(np.linalg.norm(B), 1.0)
    by_svd, by_trust_region = polar_by_svd(B), polar_by_trust_region(B, random_point(6, 3, rng))
    assert by_svd.right.shape == by_trust_region.right.shape == (3, rank)
    assert by_svd.left @ by_svd.right.T == pytest.approx(by_trust_region.left @ by_trust_region.right.T, abs=1e-7)


def test_completed_frames_keep_the_given_columns():
    rng = np.random.default_rng(0)
    left, right = random_point(8, 2, rng), random_point(4, 2, rng)
    for target in (rng.standard_normal((8, 4)), np.zeros((8, 4)), left @ right.T):
        U = complete_frame(left, right, target)
        assert check_point(U)[0]
        assert U @ right == pytest.approx(left, abs=1e-12)
