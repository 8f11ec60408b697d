"""A head as a loss object, as in pytorch-metric-learning: the example runs and improves the embeddings."""

from __future__ import annotations

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_the_example_runs() -> None:
    names = runpy.run_path(str(EXAMPLES / "metric_learning_loss.py"))
    assert names["after"] > max(0.97, names["before"])
