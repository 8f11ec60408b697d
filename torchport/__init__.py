"""The layer, in PyTorch: a differentiable nearest simplex ETF, classifier heads made of it, and collapse metrics.

The names load on first use, so that the torch-free parts of the training system (`training.run`) stay quick.
"""

from typing import TYPE_CHECKING

__all__ = [
    "ClassMeans",
    "Classifier",
    "FixedETFHead",
    "Head",
    "ImplicitETFHead",
    "LearnedHead",
    "LinearHead",
    "NeuralCollapseMeter",
    "Solution",
    "nearest_etf",
    "solve",
]

if TYPE_CHECKING:
    from .class_means import ClassMeans
    from .collapse import NeuralCollapseMeter
    from .heads import Classifier, FixedETFHead, Head, ImplicitETFHead, LearnedHead, LinearHead
    from .procrustes import Solution, nearest_etf, solve
else:
    _MODULES = {
        "ClassMeans": "class_means",
        "Classifier": "heads",
        "FixedETFHead": "heads",
        "Head": "heads",
        "ImplicitETFHead": "heads",
        "LearnedHead": "heads",
        "LinearHead": "heads",
        "NeuralCollapseMeter": "collapse",
        "Solution": "procrustes",
        "nearest_etf": "procrustes",
        "solve": "procrustes",
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
