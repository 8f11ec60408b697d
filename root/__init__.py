"""nearest-etf: the exact, fast simplex-ETF classifier head, from the proof of its mathematics to its deployment.

    from nearest_etf import Classifier, ImplicitETFHead, NeuralCollapseMeter    # the layer, in PyTorch

The names below come from `nearest_etf.torchport` and load on first use, so that `import nearest_etf` needs no torch.
The other rooms are `nearest_etf.reference` (the ground truth, in NumPy and SciPy), `nearest_etf.torchport.training`
(what `etf-train` runs) and `nearest_etf.export` (one checked ONNX file, and its prediction without torch).
"""

from typing import TYPE_CHECKING

__version__ = "0.2.0"

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
    from .torchport import (
        Classifier,
        ClassMeans,
        FixedETFHead,
        Head,
        ImplicitETFHead,
        LearnedHead,
        LinearHead,
        NeuralCollapseMeter,
        Solution,
        nearest_etf,
        solve,
    )
else:

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import torchport

        return getattr(torchport, name)

    def __dir__():
        return ["__version__", *__all__]
