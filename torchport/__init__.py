"""The layer, in PyTorch: a differentiable nearest simplex ETF, classifier heads made of it, and collapse metrics."""

from .class_means import ClassMeans
from .collapse import NeuralCollapseMeter
from .heads import Classifier, FixedETFHead, Head, ImplicitETFHead, LearnedHead
from .procrustes import nearest_etf

__all__ = [
    "ClassMeans",
    "Classifier",
    "FixedETFHead",
    "Head",
    "ImplicitETFHead",
    "LearnedHead",
    "NeuralCollapseMeter",
    "nearest_etf",
]
