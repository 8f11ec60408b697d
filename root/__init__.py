"""nearest-etf: the exact, fast simplex-ETF classifier head, from the proof of its mathematics to its deployment.

    from nearest_etf import Classifier, ImplicitETFHead, NeuralCollapseMeter    # the layer, in PyTorch

The names below come from `nearest_etf.torchport` and load on first use, so that `import nearest_etf` needs no torch.
The other rooms are `nearest_etf.reference` (the ground truth, in NumPy and SciPy), `nearest_etf.torchport.training`
(what `etf-train` runs) and `nearest_etf.export` (one checked ONNX file, and its prediction without torch).
"""

from typing import TYPE_CHECKING

__version__ = "0.2.0"

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
    from .torchport import (
        Classifier,
        ClassMeanHead,
        ClassMeans,
        FixedETFHead,
        Head,
        ImplicitETFHead,
        LearnedHead,
        LinearHead,
        NeuralCollapseMeter,
        Solution,
        TightFrameHead,
        canonical_tight_frame,
        class_gaussians,
        class_subspace,
        classifier_from_tight_frame,
        energy_score,
        etf_distance,
        hyperspherical_uniformity,
        mahalanobis_score,
        max_logit_score,
        max_softmax_score,
        measure_collapse,
        mutual_coherence,
        nci_score,
        nearest_etf,
        nearest_neighbour_score,
        nearest_tight_frame,
        neco_score,
        ood_deviation,
        polar,
        principal_subspace,
        project_to_etf,
        solve,
        solve_tight_frame,
    )
else:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import torchport

        return getattr(torchport, name)

    def __dir__():
        return ["__version__", *__all__]
