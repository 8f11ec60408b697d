"""The layer, in PyTorch: a differentiable nearest simplex ETF, and classifier heads made of it."""

from .class_means import ClassMeans
from .collapse import NeuralCollapseMeter
from .heads import Classifier, FixedETFHead, Head, ImplicitETFHead, LearnedHead
from .nearest_etf import nearest_etf
