"""The layer, in PyTorch: a differentiable nearest simplex ETF, classifier heads based on it, and collapse metrics.

The names load on first use, so that the torch-free parts of the training system (`training.run`) load quickly.
"""

from typing import TYPE_CHECKING

__all__ = [
    "ClassMeanHead",
    "ClassMeans",
    "Classifier",
    "FixedETFHead",
    "Head",
    "ImplicitETFHead",
    "LearnedHead",
    "LinearHead",
    "NeuralCollapseMeter",
    "Solution",
    "TightFrameHead",
    "canonical_tight_frame",
    "class_gaussians",
    "class_subspace",
    "classifier_from_tight_frame",
    "energy_score",
    "etf_distance",
    "hyperspherical_uniformity",
    "mahalanobis_score",
    "max_logit_score",
    "max_softmax_score",
    "measure_collapse",
    "mutual_coherence",
    "nci_score",
    "nearest_etf",
    "nearest_neighbour_score",
    "nearest_tight_frame",
    "neco_score",
    "ood_deviation",
    "polar",
    "principal_subspace",
    "project_to_etf",
    "solve",
    "solve_tight_frame",
]

if TYPE_CHECKING:
    from .any_model import measure_collapse
    from .class_means import ClassMeans
    from .collapse import NeuralCollapseMeter
    from .heads import (
        Classifier,
        ClassMeanHead,
        FixedETFHead,
        Head,
        ImplicitETFHead,
        LearnedHead,
        LinearHead,
        TightFrameHead,
    )
    from .hyperspherical import hyperspherical_uniformity, mutual_coherence, ood_deviation
    from .ood import (
        class_subspace,
        energy_score,
        max_logit_score,
        max_softmax_score,
        nci_score,
        neco_score,
        principal_subspace,
    )
    from .ood_distance import class_gaussians, mahalanobis_score, nearest_neighbour_score
    from .polar_factor import polar
    from .procrustes import Solution, nearest_etf, solve
    from .projection import etf_distance, project_to_etf
    from .tight_frame import (
        canonical_tight_frame,
        classifier_from_tight_frame,
        nearest_tight_frame,
        solve_tight_frame,
    )
else:
    _MODULES = {
        "ClassMeanHead": "heads",
        "ClassMeans": "class_means",
        "Classifier": "heads",
        "FixedETFHead": "heads",
        "Head": "heads",
        "ImplicitETFHead": "heads",
        "LearnedHead": "heads",
        "LinearHead": "heads",
        "NeuralCollapseMeter": "collapse",
        "Solution": "procrustes",
        "TightFrameHead": "heads",
        "canonical_tight_frame": "tight_frame",
        "class_gaussians": "ood_distance",
        "class_subspace": "ood",
        "classifier_from_tight_frame": "tight_frame",
        "energy_score": "ood",
        "etf_distance": "projection",
        "hyperspherical_uniformity": "hyperspherical",
        "mahalanobis_score": "ood_distance",
        "max_logit_score": "ood",
        "max_softmax_score": "ood",
        "measure_collapse": "any_model",
        "mutual_coherence": "hyperspherical",
        "nci_score": "ood",
        "nearest_etf": "procrustes",
        "nearest_neighbour_score": "ood_distance",
        "nearest_tight_frame": "tight_frame",
        "neco_score": "ood",
        "ood_deviation": "hyperspherical",
        "polar": "polar_factor",
        "principal_subspace": "ood",
        "project_to_etf": "projection",
        "solve": "procrustes",
        "solve_tight_frame": "tight_frame",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        try:
            return getattr(import_module(f".{_MODULES[name]}", __name__), name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise ModuleNotFoundError(f"{name} needs torch: pip install 'nearest-etf[train]'", name="torch") from error

    def __dir__():
        return list(__all__)
