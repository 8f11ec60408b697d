"""Run folders as etf-train and etf-measure write them, made quickly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from nearest_etf.reference import canonical_etf
from nearest_etf.torchport.training.confusion import count_pairs
from nearest_etf.torchport.training.measurement import Measurement, save_measurement

HEADS = ("learned", "fixed", "implicit")


def _write_run(
    folder: Path,
    head: str,
    seed: int,
    epochs: int = 6,
    num_classes: int = 4,
    splits: tuple[str, ...] = ("train", "test"),
    data: Mapping[str, object] | None = None,
    counted: bool = True,
    **settings: object,
) -> Path:
    """A run folder as etf-train writes it: metrics collapse faster for later heads in HEADS."""
    run = folder / f"{head}-seed{seed}{''.join(map(str, settings.values()))}"
    run.mkdir(parents=True)
    rng = np.random.default_rng([seed, HEADS.index(head)])
    speed = 1 + HEADS.index(head)
    config = {
        "settings": {
            "head": head,
            "seed": seed,
            "data": "digits",
            "backbone": "small-cnn",
            "epochs": epochs,
            **settings,
        },
        "data": {"name": "digits", "class_names": [f"class {k}" for k in range(num_classes)], **(data or {})},
        "provenance": {"device": "a <test> device", "threads": 2, "versions": {"torch": "2.13"}},
    }
    rows = []
    for epoch in range(1, epochs + 1):
        left = math.exp(-speed * epoch / 3) * (1 + 0.1 * rng.random())
        row: dict[str, float] = {"epoch": epoch, "lr": 0.1, "images_per_second": 1e4 + seed}
        for split in splits:
            factor = {"train": 1.0, "val": 1.1, "test": 1.2}[split]
            row |= {f"{split}_accuracy": 1 - 0.3 * factor * left, f"{split}_loss": 2 * left}
            row |= {f"{split}_nc1": factor * left, f"{split}_nc2_means": left, f"{split}_nc3": 0.5 * left}
            row |= {f"{split}_nc2": 0.0, f"{split}_cosine_margin": 1 - left, f"{split}_etf_distance_means": left}
        if head == "implicit":
            row |= {"solver_gap": 1e-9, "solver_condition": 30.0}
        rows.append(row)
    (run / "config.json").write_text(json.dumps(config))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "last.pt").touch()
    etf = canonical_etf(num_classes + 2, num_classes).T
    means = etf + 0.1 * rng.standard_normal(etf.shape)
    arrays: dict[str, np.ndarray] = {"weight": etf}
    for split in splits:
        arrays |= {f"{split}_margins": rng.integers(0, 9, 200), f"{split}_class_mean_rows": means}
        if counted and split != "train":
            true = np.repeat(np.arange(num_classes), 5)
            guessed = np.where(rng.random(len(true)) < 0.8, true, (true + 1) % num_classes)
            arrays[f"{split}_pairs"] = count_pairs(true, guessed, num_classes)
    if head == "implicit":
        arrays["singular_values"] = np.geomspace(1, 1e-3, num_classes)
    figures = {f"{split}_loss": 0.1 for split in splits}
    save_measurement(run, "last", Measurement(epochs, figures, arrays))
    return run


@pytest.fixture(scope="session")
def write_run() -> Callable[..., Path]:
    return _write_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three heads, two seeds each."""
    folder = tmp_path_factory.mktemp("runs")
    return [str(_write_run(folder, head, seed)) for head in HEADS for seed in (0, 1)]
