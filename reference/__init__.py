"""The ground truth, in NumPy and SciPy: the simplex ETF, the nearest one to given class means, its derivatives.

    from nearest_etf.reference import nearest_etf, neural_collapse

A name loads its module on first use, so that `import nearest_etf.reference` and the help of `etf-verify` need no NumPy.
"""

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from .class_means import ClassMeans
    from .collapse import NeuralCollapse, neural_collapse
    from .implicit import IllConditionedWarning, nearest_etf_jvp, nearest_etf_vjp
    from .procrustes import NearestETF, initial_frame, nearest_etf
    from .riemannian import Status, TrustRegionResult, trust_region
    from .simplex import canonical_etf, etf_error, simplex_etf
else:
    _MODULES = {
        "ClassMeans": "class_means",
        "IllConditionedWarning": "implicit",
        "NearestETF": "procrustes",
        "NeuralCollapse": "collapse",
        "Status": "riemannian",
        "TrustRegionResult": "riemannian",
        "canonical_etf": "simplex",
        "etf_error": "simplex",
        "initial_frame": "procrustes",
        "nearest_etf": "procrustes",
        "nearest_etf_jvp": "implicit",
        "nearest_etf_vjp": "implicit",
        "neural_collapse": "collapse",
        "simplex_etf": "simplex",
        "trust_region": "riemannian",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f".{_MODULES[name]}", __name__), name)

    def __dir__():
        return list(__all__)
