"""The temperature τ: the largest probability of a head with unit rows and features of norm τ, and a default for τ.

With `‖h‖ = τ` and W a simplex ETF the largest logit is τ and the others are `−τ/(K−1)`, so that no probability exceeds
`1/(1 + (K−1) exp(−τK/(K−1)))`. Wang et al. 2018 (*CosFace*, arXiv 1801.09414, section 3.3) bound their scale by it.
"""

from __future__ import annotations

import math
import warnings

CONFIDENT = 0.999  # largest probability in the default, for a class that has collapsed onto its vertex
UNREACHABLE = 0.5  # a head warns if its largest probability is less
LARGEST_LEARNED = 100.0  # as for CLIP's logit scale


def largest_probability(temperature: float, num_classes: int) -> float:
    """The largest probability that a head can give.

    >>> [round(largest_probability(5.0, K), 2) for K in (10, 100, 1000)]
    [0.97, 0.61, 0.13]
    """
    K = num_classes
    return 1.0 / (1.0 + (K - 1) * math.exp(-temperature * K / (K - 1)))


def default_temperature(num_classes: int) -> float:
    """√2 times the τ at which the largest probability is 0.999, rounded.

    The factor √2 compensates the loss of margin of non-negative features, such as those after a ReLU, with an ETF in
    general position. The paper's experiments use 5 for every K, and so do the recipes of these experiments.

    >>> [default_temperature(K) for K in (2, 10, 100, 1000)]
    [5.0, 12.0, 16.0, 20.0]
    """
    K = num_classes
    reached = (K - 1) / K * (math.log(K - 1) + math.log(CONFIDENT / (1 - CONFIDENT)))
    return float(round(math.sqrt(2) * reached))


def warn_of_unreachable_loss(temperature: float, num_classes: int) -> None:
    """Warn if even a sample at the vertex of its class has a probability of less than `UNREACHABLE`."""
    largest = largest_probability(temperature, num_classes)
    if largest < UNREACHABLE:
        warnings.warn(
            f"temperature = {temperature:g} lets no probability exceed {largest:.2f} with {num_classes} classes: the "
            f"cross-entropy cannot fall below {-math.log(largest):.2f}. Use a larger one; the default is "
            f"{default_temperature(num_classes):g}.",
            UserWarning,
            stacklevel=4,
        )
