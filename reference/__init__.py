"""The ground truth, in NumPy and SciPy: the simplex ETF, the nearest one to given class means, its derivatives."""

from .class_means import ClassMeans
from .collapse import NeuralCollapse, neural_collapse
from .implicit import IllConditionedWarning, nearest_etf_jvp, nearest_etf_vjp
from .procrustes import NearestETF, initial_frame, nearest_etf
from .simplex import canonical_etf, etf_error, simplex_etf
from .riemannian import Status, TrustRegionResult, trust_region

__all__ = [
    "ClassMeans",
    "IllConditionedWarning",
    "NearestETF",
    "NeuralCollapse",
    "Status",
    "TrustRegionResult",
    "canonical_etf",
    "etf_error",
    "initial_frame",
    "nearest_etf",
    "nearest_etf_jvp",
    "nearest_etf_vjp",
    "neural_collapse",
    "simplex_etf",
    "trust_region",
]
