"""How each metric of a run is drawn over the epochs: title, axis, scale."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """How a metric is drawn."""

    metric: str  # without the name of a split
    title: str
    axis: str
    logarithmic: bool = False
    factor: float = 1.0
    by_split: bool = True  # measured on each split


CURVES = (
    Curve("accuracy", "Top-1 accuracy", "share of images (%)", factor=100),
    Curve("top5", "Top-5 accuracy", "share of images (%)", factor=100),
    Curve("loss", "Loss", "cross-entropy (nats)", logarithmic=True),
    Curve("nc1", "NC1: spread within classes", "within / between variance (no unit)", logarithmic=True),
    Curve("nc2", "NC2: classifier to simplex ETF", "Gram distance (no unit)", logarithmic=True),
    Curve("nc2_means", "NC2: class means to simplex ETF", "Gram distance (no unit)", logarithmic=True),
    Curve("nc3", "NC3: classifier to class means", "distance of W·means to ETF (no unit)", logarithmic=True),
    Curve("nc4", "NC4: nearest class mean disagrees", "share of images (%)", factor=100),
    Curve("cosine_margin", "Cosine margin", "mean difference of cosines"),
    Curve("cosine_margin_std", "Spread of the cosine margin", "standard deviation"),
    Curve("etf_distance_weight", "Classifier to nearest ETF", "squared distance", logarithmic=True),
    Curve("etf_distance_means", "Class means to nearest ETF", "squared distance", logarithmic=True),
    Curve("etf_distance_between", "Between those two ETFs", "squared distance", logarithmic=True),
    Curve("equinorm_weight", "Equal norms: classifier", "std / mean of row norms"),
    Curve("equinorm_means", "Equal norms: class means", "std / mean of norms"),
    Curve("equinorm_difference", "Equal norms: difference", "absolute difference"),
    Curve("bias_offset", "Bias against the global mean", "logits at the global mean (norm)", logarithmic=True),
    Curve("variability_collapse", "Variability-collapse index", "index, 0 is collapse (no unit)", logarithmic=True),
    Curve("cdnv", "Class-distance normalised variance", "CDNV (no unit)", logarithmic=True),
    Curve("numerical_rank", "Numerical rank of a class", "dimensions, mean over classes"),
    Curve("lr", "Learning rate", "step size", by_split=False),
    Curve("images_per_second", "Speed", "training images per second", by_split=False),
)
SOLVER_CURVES = (
    Curve("solver_gap", "Solver: optimality gap", "share of the optimum missed", logarithmic=True, by_split=False),
    Curve(
        "solver_condition",
        "Solver: condition of A",
        "largest / smallest singular value",
        logarithmic=True,
        by_split=False,
    ),
    Curve("solver_orthogonality", "Solver: orthogonality", "norm of UᵀU − I", logarithmic=True, by_split=False),
    Curve("solver_fallbacks", "Solver: fallbacks", "steps since the start", by_split=False),
)
BY_NAME = {curve.metric: curve for curve in CURVES}
PICTURE = ("accuracy", "nc1", "nc2_means", "nc3", "loss", "etf_distance_means")  # the panels of the summary
