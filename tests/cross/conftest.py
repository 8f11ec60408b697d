"""One table of tolerances for all that is implemented twice, with the reason for each."""

from typing import NamedTuple

import pytest


class Tolerance(NamedTuple):
    relative: float  # ‖found − expected‖ / ‖expected‖, Frobenius
    reason: str


TOLERANCES = {
    # The bank's problems have condition numbers up to 1e4, in float64 eps · κ = 2e-12; the rest is head-room.
    "frame, float64": Tolerance(1e-10, "both are polar factors, conditioned like σ₁/(σ_{m−1}+σ_m)"),
    "gradient, float64": Tolerance(1e-8, "as the frame, and divided by the smallest singular value once more"),
    # In float32 the input's own rounding moves the solution by eps · κ: problems of κ ≤ 100 only.
    "frame, float32": Tolerance(1e-5, "eps = 1.2e-7 times κ ≤ 100"),
    "gradient, float32": Tolerance(1e-3, "eps times κ², for the gradient divides by σ_m"),
    "class means, float64": Tolerance(1e-13, "sums in another order"),
    "head over steps, float64": Tolerance(1e-9, "each step starts from the last one's rounding"),
    "metrics, float64": Tolerance(1e-9, "streamed instead of whole sums; NC1 inverts Σ_B"),
    "logits, ONNX float32": Tolerance(1e-5, "float32 products of unit rows in another order"),
    "logits, ONNX float64": Tolerance(1e-12, "float64 products in another order"),
}


@pytest.fixture
def tolerance():
    """`tolerance(name)` is the relative bound of the table."""
    return lambda name: TOLERANCES[name].relative
