"""Coordinates and frames of torchport.simplex."""

import pytest
import torch

from nearest_etf.reference import canonical_etf
from nearest_etf.torchport.simplex import (
    canonical_frame,
    centred,
    classifier_from_frame,
    from_coordinates,
    simplex_etf,
    to_coordinates,
)

F64 = torch.float64


@pytest.mark.parametrize("K", [2, 3, 10])
def test_coordinates_are_an_isometry_of_the_centred_part(K: int) -> None:
    B = torch.randn(5, K, dtype=F64, generator=torch.Generator().manual_seed(K))
    inside, gauge = to_coordinates(B)
    torch.testing.assert_close(from_coordinates(inside, gauge), B)
    torch.testing.assert_close(from_coordinates(inside), centred(B))
    torch.testing.assert_close(gauge[:, 0], B.sum(1) / K**0.5)


@pytest.mark.parametrize(("d", "K"), [(7, 4), (4, 4), (3, 4), (1, 2)])
def test_canonical_classifier_agrees_with_the_reference(d: int, K: int) -> None:
    W = classifier_from_frame(canonical_frame(d, K, dtype=F64))
    torch.testing.assert_close(W.T, torch.from_numpy(canonical_etf(d, K)))
    torch.testing.assert_close(W @ W.T, simplex_etf(K, dtype=F64) * (K / (K - 1)) ** 0.5)


@pytest.mark.parametrize(("d", "K", "message"), [(3, 1, "at least 2 classes"), (3, 5, "linear layer")])
def test_sizes_without_a_simplex_are_refused(d: int, K: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        canonical_frame(d, K)
