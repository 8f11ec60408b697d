"""Classifier heads, one file each, and a backbone with one of them on top.

Source: Markou, Ajanthan & Gould 2024, arXiv 2411.01248, section 4. All see unit features times a temperature,
`h = τ f/‖f‖`:

* `learned`: logits W h, rows of W re-normalised after every optimizer step;
* `fixed`: W is the canonical simplex ETF, `b = −W μ` with the global mean μ;
* `implicit`: W is the simplex ETF nearest to the running class means, differentiated through.
"""

from .base import Head
from .classifier import Classifier
from .fixed import FixedETFHead
from .implicit import ImplicitETFHead
from .learned import LearnedHead

__all__ = ["Classifier", "FixedETFHead", "Head", "ImplicitETFHead", "LearnedHead"]
