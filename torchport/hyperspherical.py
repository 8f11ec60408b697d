"""The spread of class means or classifier rows over the sphere, for any number of classes, on their device.

The figures are those of `reference.hyperspherical`, which has their formulas and sources. They are computed in float64,
in blocks, with memory O(Kd).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..reference.collapse import CUTOFF
from .arguments import check_floats


@torch.no_grad()
def hyperspherical_uniformity(rows: Tensor, centre: Tensor | None = None) -> float:
    """Mean over pairs of classes of `log(1/‖ν_c − ν_c′‖)`, as `reference.hyperspherical_uniformity`.

    Parameters
    ----------
    rows : (K, d)
        Class means (`NeuralCollapseMeter.class_mean_rows()`) or rows of W, not centred; rows are classes, K ≥ 2.
    centre : (d,), optional
        Default: the mean of the rows.

    Raises
    ------
    ValueError
        If a shape is wrong.

    Examples
    --------
    >>> import math
    >>> etf = torch.eye(4) - 1 / 4
    >>> math.isclose(hyperspherical_uniformity(etf), -0.5 * math.log(2 * 4 / 3))
    True
    """
    directions = _directions(rows, centre)
    K = len(directions)
    total = directions.new_zeros(())
    for start, block in _blocks(directions):
        # Not by inner products, which lose the distance of near neighbours to cancellation.
        distances = torch.cdist(block, directions, compute_mode="donot_use_mm_for_euclid_dist")
        distances.diagonal(start).fill_(1.0)
        total -= distances.log().sum()
    return float(total) / (K * (K - 1))


@torch.no_grad()
def mutual_coherence(rows: Tensor, centre: Tensor | None = None) -> float:
    """Largest `|cos(ν_c, ν_c′)|` over pairs of classes, as `reference.mutual_coherence`.

    Parameters
    ----------
    rows, centre : (K, d) and (d,)
        As for `hyperspherical_uniformity`.

    Raises
    ------
    ValueError
        If a shape is wrong.

    Examples
    --------
    >>> round(mutual_coherence(torch.eye(5)), 12)
    0.25
    """
    directions = _directions(rows, centre)
    largest = directions.new_zeros(())
    for start, block in _blocks(directions):
        cosines = (block @ directions.T).abs()
        cosines.diagonal(start).fill_(0.0)
        largest = torch.maximum(largest, cosines.amax())  # nan stays nan
    return float(largest.clamp(max=1.0))


@torch.no_grad()
def ood_deviation(class_mean_rows: Tensor, ood_mean: Tensor) -> float:
    """NC5: mean over classes of `|cos(μ_c, μ_OOD)|`, as `reference.ood_deviation`.

    Parameters
    ----------
    class_mean_rows : (K, d)
        Not centred; rows are classes.
    ood_mean : (d,)
        Mean of the features of data that belong to no class, not centred.

    Raises
    ------
    ValueError
        If a shape is wrong.

    Examples
    --------
    >>> ood_deviation(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([0.0, 3.0]))
    0.0
    """
    _check(class_mean_rows, ood_mean, "ood_mean")
    return float((unit_rows(class_mean_rows.double()) @ unit_rows(ood_mean[None].double())[0]).abs().mean())


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length 1; a zero row stays zero."""
    top = rows.abs().amax(1, keepdim=True)
    rows = rows / top.where(top > 0, 1.0)  # so that no square overflows or underflows
    lengths = rows.norm(dim=1, keepdim=True)
    return rows / lengths.where(lengths > 0, 1.0)


def _directions(rows: Tensor, centre: Tensor | None) -> Tensor:
    """Unit vectors from the centre to the rows (K, d) in float64; nan for a row at the centre, up to rounding."""
    _check(rows, centre, "centre")
    if len(rows) < 2:
        raise ValueError(f"rows are of {len(rows)} class; expected at least two, to compare their directions.")
    X = rows.detach().double()
    top = X.abs().amax() if centre is None else torch.maximum(X.abs().amax(), centre.abs().amax().to(X))
    top = top.where(top > 0, 1.0)
    X = X / top
    centred = X - (X.mean(0) if centre is None else centre.to(X) / top)
    at_centre = centred.norm(dim=1) <= CUTOFF * X.norm(dim=1).amax()
    return unit_rows(centred).where(~at_centre[:, None], torch.nan)


def _blocks(directions: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Blocks of max(d, 256) rows, each with the index of its first row."""
    size = max(directions.shape[1], 256)
    yield from ((size * i, block) for i, block in enumerate(directions.split(size)))


def _check(rows: Tensor, vector: Tensor | None, name: str) -> None:
    check_floats("rows", rows, "a floating-point matrix (K, d) whose rows are classes", values=True)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"rows have shape {tuple(rows.shape)}; expected (K, d), rows are classes.")
    if vector is not None:
        check_floats(name, vector, "a floating-point vector (d,)", beside=rows)
    if vector is not None and vector.shape != rows.shape[1:]:
        raise ValueError(
            f"{name} has shape {tuple(vector.shape)}; expected ({rows.shape[1]},), for rows of shape "
            f"{tuple(rows.shape)}."
        )
