"""The ground truth in NumPy and SciPy: the simplex ETF nearest to class means, its derivatives, collapse metrics.

    from nearest_etf.reference import nearest_etf, neural_collapse

A name loads its module on first use, so that `import nearest_etf.reference` and the help of `etf-verify` need no NumPy.
"""

from typing import TYPE_CHECKING

__all__ = [
    "ClassMeans",
    "EqualNormWarning",
    "FrameGeometry",
    "IllConditionedWarning",
    "NearestETF",
    "NearestTightFrame",
    "NeuralCollapse",
    "Status",
    "TrustRegionResult",
    "auroc",
    "canonical_etf",
    "canonical_tight_frame",
    "class_gaussians",
    "class_subspace",
    "classifier_from_tight_frame",
    "energy_score",
    "equal_norm_tight_frame",
    "etf_error",
    "fpr95",
    "frame_geometry",
    "hyperspherical_uniformity",
    "initial_frame",
    "mahalanobis_score",
    "max_logit_score",
    "max_softmax_score",
    "mutual_coherence",
    "nci_score",
    "nearest_etf",
    "nearest_etf_jvp",
    "nearest_etf_vjp",
    "nearest_neighbour_score",
    "nearest_tight_frame",
    "neco_score",
    "neural_collapse",
    "ood_deviation",
    "principal_subspace",
    "simplex_etf",
    "tight_frame_jvp",
    "tight_frame_vjp",
    "trust_region",
]

if TYPE_CHECKING:
    from .class_means import ClassMeans
    from .collapse import NeuralCollapse, neural_collapse
    from .equal_norm import EqualNormWarning, classifier_from_tight_frame, equal_norm_tight_frame
    from .frames import canonical_tight_frame
    from .geometry import FrameGeometry, frame_geometry
    from .hyperspherical import hyperspherical_uniformity, mutual_coherence, ood_deviation
    from .implicit import IllConditionedWarning, nearest_etf_jvp, nearest_etf_vjp
    from .ood import (
        auroc,
        class_subspace,
        energy_score,
        fpr95,
        max_logit_score,
        max_softmax_score,
        nci_score,
        neco_score,
        principal_subspace,
    )
    from .ood_distance import class_gaussians, mahalanobis_score, nearest_neighbour_score
    from .procrustes import NearestETF, initial_frame, nearest_etf
    from .riemannian import Status, TrustRegionResult, trust_region
    from .simplex import canonical_etf, etf_error, simplex_etf
    from .tight_frame import NearestTightFrame, nearest_tight_frame
    from .tight_frame_gradient import tight_frame_jvp, tight_frame_vjp
else:
    _MODULES = {
        "ClassMeans": "class_means",
        "EqualNormWarning": "equal_norm",
        "FrameGeometry": "geometry",
        "IllConditionedWarning": "implicit",
        "NearestETF": "procrustes",
        "NearestTightFrame": "tight_frame",
        "NeuralCollapse": "collapse",
        "Status": "riemannian",
        "TrustRegionResult": "riemannian",
        "auroc": "ood",
        "canonical_etf": "simplex",
        "canonical_tight_frame": "frames",
        "class_gaussians": "ood_distance",
        "class_subspace": "ood",
        "classifier_from_tight_frame": "equal_norm",
        "energy_score": "ood",
        "equal_norm_tight_frame": "equal_norm",
        "etf_error": "simplex",
        "fpr95": "ood",
        "frame_geometry": "geometry",
        "hyperspherical_uniformity": "hyperspherical",
        "initial_frame": "procrustes",
        "mahalanobis_score": "ood_distance",
        "max_logit_score": "ood",
        "max_softmax_score": "ood",
        "mutual_coherence": "hyperspherical",
        "nci_score": "ood",
        "nearest_etf": "procrustes",
        "nearest_etf_jvp": "implicit",
        "nearest_etf_vjp": "implicit",
        "nearest_neighbour_score": "ood_distance",
        "nearest_tight_frame": "tight_frame",
        "neco_score": "ood",
        "neural_collapse": "collapse",
        "ood_deviation": "hyperspherical",
        "principal_subspace": "ood",
        "simplex_etf": "simplex",
        "tight_frame_jvp": "tight_frame_gradient",
        "tight_frame_vjp": "tight_frame_gradient",
        "trust_region": "riemannian",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f".{_MODULES[name]}", __name__), name)

    def __dir__():
        return list(__all__)
