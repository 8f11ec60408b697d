"""One table of tolerances for everything that is implemented twice, with the reason for each."""

from typing import NamedTuple

import pytest


class Tolerance(NamedTuple):
    relative: float  # ‖found − expected‖ / ‖expected‖, Frobenius
    reason: str


TOLERANCES = {
    # Condition numbers κ in the bank are at most 1e4: eps · κ = 2e-12 in float64, and the rest is a safety margin.
    "frame, float64": Tolerance(1e-10, "both are polar factors, conditioned like σ₁/(σ_{m−1}+σ_m)"),
    "gradient, float64": Tolerance(1e-8, "as the frame, divided by the smallest singular value once more"),
    # In float32, rounding of the input changes the solution by eps · κ: only problems with κ ≤ 100 are compared.
    "frame, float32": Tolerance(1e-5, "eps = 1.2e-7 times κ ≤ 100"),
    "gradient, float32": Tolerance(1e-3, "eps times κ², since the gradient divides by σ_m"),
    "class means, float64": Tolerance(1e-13, "sums in another order"),
    "head over steps, float64": Tolerance(1e-9, "rounding accumulates over the steps"),
    "metrics, float64": Tolerance(1e-9, "sums over batches instead of all samples; NC1 inverts Σ_B"),
    "logits, ONNX float32": Tolerance(1e-5, "float32 products of unit rows in another order"),
    "logits, ONNX float64": Tolerance(1e-12, "float64 products in another order"),
}


@pytest.fixture
def tolerance():
    """`tolerance(name)` is the relative bound of the table."""
    return lambda name: TOLERANCES[name].relative
