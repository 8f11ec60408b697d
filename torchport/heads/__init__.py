"""Classifier heads, one file each, and a backbone with one of them on top.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 4.

* `linear`: `nn.Linear` with bias on raw features. All others use unit features times a temperature, `h = τ f/‖f‖`:
* `learned`: logits W h, with the rows of W normalised in every forward pass;
* `fixed`: W is a simplex ETF that training never changes, `b = −W μ` with the global mean μ;
* `implicit`: W is the simplex ETF nearest to the running class means, with the gradient of that solution;
* `tight-frame`: the same for any number of classes, a tight frame for K > d+1;
* `class-mean`: the running class means are W, for any number of classes.
"""

from .averaging import AveragingHead
from .base import Head
from .class_mean import ClassMeanHead
from .classifier import Classifier
from .fixed import FixedETFHead
from .implicit import ImplicitETFHead
from .learned import LearnedHead
from .linear import LinearHead
from .normalised import NormalisedHead
from .temperature import default_temperature, largest_probability
from .tight_frame import TightFrameHead

__all__ = [
    "AveragingHead",
    "ClassMeanHead",
    "Classifier",
    "FixedETFHead",
    "Head",
    "ImplicitETFHead",
    "LearnedHead",
    "LinearHead",
    "NormalisedHead",
    "TightFrameHead",
    "default_temperature",
    "largest_probability",
]
