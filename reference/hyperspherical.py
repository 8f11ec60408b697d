"""The spread of class means or classifier rows over the sphere, for any number of classes.

Sources: Liu et al. 2023, arXiv 2303.06484 (generalised neural collapse as hyperspherical uniformity, Riesz kernels with
the logarithmic one at s = 0); Wu & Papyan 2024, arXiv 2405.17767 (the logarithmic kernel on centred class means); Welch
1974, doi 10.1109/TIT.1974.1055219 (the bound on the coherence); Ben Ammar et al. 2023, arXiv 2310.06823 (NC5).

For K > d+1 there is no simplex ETF, and NC2 cannot vanish; these figures still measure the separation of the classes.
All three are invariant under rotation and scale.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import pdist

from .arrays import real_array
from .collapse import CUTOFF
from .stiefel import Array


def hyperspherical_uniformity(rows: ArrayLike, centre: ArrayLike | None = None) -> float:
    """Mean over pairs of classes of `log(1/‖ν_c − ν_c′‖)`, `ν_c` the unit vector from the centre to row c.

    The logarithmic energy: smaller is more uniform. For any d it is at least `−½ log(2K/(K−1))`, with equality only for
    a simplex ETF: squared distances of unit vectors average at most 2K/(K−1), and the logarithm is concave.

    Parameters
    ----------
    rows : (K, d)
        Class means or rows of W, not centred; rows are classes, K ≥ 2.
    centre : (d,), optional
        Default: the mean of the rows.

    Returns
    -------
    float
        Infinite if two directions coincide; nan if a row lies at the centre and has no direction.

    Raises
    ------
    ValueError
        If a shape is wrong or an entry is not finite.

    Examples
    --------
    >>> from nearest_etf.reference import simplex_etf
    >>> bool(np.isclose(hyperspherical_uniformity(simplex_etf(5)), -0.5 * np.log(2 * 5 / 4)))
    True
    """
    with np.errstate(divide="ignore"):
        return float(-np.log(pdist(_directions(rows, centre))).mean())


def mutual_coherence(rows: ArrayLike, centre: ArrayLike | None = None) -> float:
    """Largest `|cos(ν_c, ν_c′)|` over pairs of classes, `ν_c` the unit vector from the centre to row c.

    It is 1/(K−1) for a simplex ETF, and for K > d at least the Welch bound `√((K−d)/(d(K−1)))`.

    Parameters
    ----------
    rows, centre
        As for `hyperspherical_uniformity`.

    Returns
    -------
    float
        In 0…1; nan if a row lies at the centre.

    Raises
    ------
    ValueError
        As `hyperspherical_uniformity`.

    Examples
    --------
    >>> from nearest_etf.reference import simplex_etf
    >>> round(mutual_coherence(simplex_etf(5)), 12)
    0.25
    """
    directions = _directions(rows, centre)
    cosines = np.abs(directions @ directions.T)
    np.fill_diagonal(cosines, 0.0)
    return min(1.0, float(cosines.max())) if np.isfinite(cosines).all() else float("nan")


def ood_deviation(class_mean_rows: ArrayLike, ood_mean: ArrayLike) -> float:
    """NC5: mean over classes of `|cos(μ_c, μ_OOD)|`, of class means and the mean of OOD data, not centred.

    Zero if the mean of the OOD features is orthogonal to every class mean. The cosine of a zero vector is 0.

    Parameters
    ----------
    class_mean_rows : (K, d)
        Rows are classes.
    ood_mean : (d,)
        Mean of the features of data that belong to no class.

    Raises
    ------
    ValueError
        If a shape is wrong or an entry is not finite.

    Examples
    --------
    >>> ood_deviation([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [0.0, 0.0, 3.0])
    0.0
    """
    rows, foreign = _checked(class_mean_rows, ood_mean, "ood_mean")
    return float(np.abs(unit_rows(rows) @ unit_rows(foreign[None])[0]).mean())


def unit_rows(rows: Array) -> Array:
    """Rows of length 1; a zero row stays zero."""
    top = np.abs(rows).max(axis=1, keepdims=True)
    rows = rows / np.where(top > 0, top, 1.0)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


def _directions(rows: ArrayLike, centre: ArrayLike | None) -> Array:
    """Unit vectors from the centre to the rows (K, d); nan for a row at the centre, up to rounding."""
    X, origin = _checked(rows, centre, "centre")
    if len(X) < 2:
        raise ValueError(f"rows are of {len(X)} class; expected at least two, to compare their directions.")
    top = max(np.abs(X).max(), np.abs(origin).max()) or 1.0  # so that no square overflows or underflows
    X, origin = X / top, origin / top
    if centre is None:
        origin = X.mean(axis=0)
    centred = X - origin
    at_centre = np.linalg.norm(centred, axis=1) <= CUTOFF * np.linalg.norm(X, axis=1).max()
    return np.where(at_centre[:, None], np.nan, unit_rows(centred))


def _checked(rows: ArrayLike, vector: ArrayLike | None, name: str) -> tuple[Array, Array]:
    """The rows (K, d) and the vector (d,), zero by default."""
    X = real_array("rows", rows)
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"rows have shape {X.shape}; expected (K, d), rows are classes.")
    v = np.zeros(X.shape[1]) if vector is None else real_array(name, vector)
    if v.shape != X.shape[1:]:
        raise ValueError(f"{name} has shape {v.shape}; expected ({X.shape[1]},), for rows of shape {X.shape}.")
    if not (np.isfinite(X).all() and np.isfinite(v).all()):
        raise ValueError(f"rows or {name} contain NaN or infinite entries.")
    return X, v
