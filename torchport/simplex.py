"""The simplex equiangular tight frame in torch: canonical frames, and coordinates in its K−1 dimensions.

Source: Papyan, Han & Donoho 2020 (neural collapse); Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 3.
`M = I − 11ᵀ/K` is the centring projector. A Householder reflection `R = I − 2vvᵀ` takes the first axis to
`1/√K`; its other columns are an orthonormal basis `Q` of `1^⊥`, and multiplying by it costs only O(dK).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..common.arguments import whole_number
from .arguments import check_floats


def centred(B: Tensor) -> Tensor:
    """`B M`: every row of B (..., d, K) minus its mean."""
    K = B.shape[-1]
    if _by_product(B, K):
        return B @ (torch.eye(K, dtype=B.dtype, device=B.device) - 1.0 / K)
    return B - B.mean(-1, keepdim=True)


def simplex_etf(num_classes: int, dtype: torch.dtype | None = None) -> Tensor:
    """The standard simplex ETF `√(K/(K−1)) · M`, (K, K), with unit columns.

    Examples
    --------
    >>> E = simplex_etf(3)
    >>> (E.T @ E).round(decimals=3).tolist()
    [[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]]
    """
    check_sizes(num_classes, num_classes, "gauge-free")
    return math.sqrt(num_classes / (num_classes - 1)) * centred(torch.eye(num_classes, dtype=dtype))


def canonical_frame(
    num_features: int,
    num_classes: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """The start of the paper's solver and the frame of the fixed head, (d, K): `eye(d, K)`.

    For d = K−1, where there are no K orthonormal columns, it is the partial isometry `eye(d, K−1) Qᵀ` with Helmert's
    basis Q, as in `nearest_etf.reference`.
    """
    check_sizes(num_features, num_classes, "gauge-free")
    if num_features >= num_classes:
        return torch.eye(num_features, num_classes, dtype=dtype, device=device)
    j = torch.arange(1, num_classes, dtype=torch.float64)
    # Row j: j ones, then −j, then zeros, over √(j(j+1)).
    ones = torch.ones(num_classes - 1, num_classes, dtype=torch.float64).tril()
    helmert = (ones - torch.diag_embed(j, 1)[:-1]) / (j * (j + 1)).sqrt()[:, None]
    return helmert.to(device=device, dtype=dtype or torch.get_default_dtype())


def classifier_from_frame(U: Tensor) -> Tensor:
    """`W = √(K/r) M Uᵀ`, (K, d) with r = min(d, K−1), from a frame U (d, K); unit rows for a simplex ETF."""
    d, K = U.shape[-2:]
    return math.sqrt(K / min(d, K - 1)) * centred(U).mT


def to_coordinates(B: Tensor) -> tuple[Tensor, Tensor]:
    """`B Q` (..., d, K−1), and the part along the gauge direction, `B 1/√K` (..., d, 1)."""
    if _by_product(B, B.shape[-1]):
        R = _reflection(B, B.shape[-1])
        return B @ R[:, 1:], B @ R[:, :1]
    reflected = _reflect(B)
    return reflected[..., 1:], reflected[..., :1]


def from_coordinates(X: Tensor, gauge: Tensor | None = None) -> Tensor:
    """`X Qᵀ + gauge 1ᵀ/√K` (..., d, K), the inverse of `to_coordinates`; None is a gauge of zero."""
    if _by_product(X, X.shape[-1] + 1):
        along = X @ _reflection(X, X.shape[-1] + 1)[1:]
        return along if gauge is None else along + gauge / math.sqrt(along.shape[-1])
    gauge = torch.zeros_like(X[..., :1]) if gauge is None else gauge
    return _reflect(torch.cat([gauge, X], -1))


def _reflect(B: Tensor) -> Tensor:
    """`B (I − 2vvᵀ)` for the unit vector v along `1/√K − e₁`."""
    K = B.shape[-1]
    root = math.sqrt(K)
    # v is (1/√K − 1, 1/√K, …, 1/√K) over its length, whose square is 2 − 2/√K.
    along = (B.sum(-1, keepdim=True) / root - B[..., :1]) / (1.0 - 1.0 / root)  # 2 Bv/‖v‖ before scaling
    first = B[..., :1] + along * (1.0 - 1.0 / root)
    rest = B[..., 1:] - along / root
    return torch.cat([first, rest], -1)


def _reflection(like: Tensor, K: int) -> Tensor:
    """The reflection R (K, K)."""
    return _reflect(torch.eye(K, dtype=like.dtype, device=like.device))


def _by_product(B: Tensor, K: int) -> bool:
    """Whether B (..., d, K) is a batch of small matrices, for which a product is faster than several passes."""
    return B.ndim > 2 and K <= 64


def check_sizes(num_features: int, num_classes: int, formulation: str) -> None:
    """Refuse sizes for which there is no simplex ETF, or for which the formulation has no solution."""
    d, K = whole_number("num_features", num_features), whole_number("num_classes", num_classes)
    if K < 2:
        raise ValueError(f"num_classes = {K}; a simplex ETF needs at least 2 classes.")
    if d < K - 1:
        raise ValueError(
            f"{K} classes with {d} features: a simplex ETF of {K} classes spans {K - 1} dimensions and does not fit "
            f"into {d}. Put a linear layer with at least {K} outputs before the head, or use a head for any number of "
            "classes: TightFrameHead, ClassMeanHead or LearnedHead."
        )
    if d < K and formulation == "paper":
        raise ValueError(
            f"{K} classes with {d} features: the paper's formulation needs {K} orthonormal columns in {d} "
            'dimensions. Use formulation="gauge-free", which needs only K−1 features, or more features.'
        )


def check_class_means_shape(class_means: Tensor, formulation: str) -> None:
    """Refuse class means that are not a matrix (d, K) or a batch of them, or that look transposed."""
    expected = "a floating-point matrix (d, K) whose columns are classes"
    check_floats("class_means", class_means, expected)
    if class_means.ndim < 2:
        raise ValueError(
            f"class_means is {class_means.dtype} of shape {tuple(class_means.shape)}; expected {expected}."
        )
    d, K = class_means.shape[-2:]
    if d + 1 < K and d >= 2:
        raise ValueError(
            f"class_means has shape {tuple(class_means.shape)}; expected (d, K), columns are classes: a simplex "
            f"ETF of {K} classes does not fit into {d} dimensions. Pass class_means.T if its rows are the classes."
        )
    check_sizes(d, K, formulation)


def check_frame(name: str, U: Tensor, shape: tuple[int, int]) -> None:
    """Refuse a matrix that is not a frame: `U M` must have the Gram matrix M."""
    if U.shape != shape:
        raise ValueError(f"{name} has shape {tuple(U.shape)}; expected {shape}.")
    if U.is_meta:
        return
    etf = centred(U.double())
    gram = etf.mT @ etf
    error = float((gram - centred(torch.eye(shape[1], dtype=gram.dtype, device=gram.device))).abs().max())
    if not error <= 1e-3:
        raise ValueError(
            f"{name} is not a frame: (U M)ᵀ(U M) differs from M by {error:.1e}. Pass a solution of nearest_etf, or the "
            "polar factor of your matrix."
        )
