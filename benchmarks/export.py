"""Serving speed: PyTorch and the exported file, alternating in one process, from 8-bit pixels to labels.

    python benchmarks/export.py                      ResNet-18 with the CIFAR stem, 32×32
    python benchmarks/export.py --json speed.json

Each round calls every contender once, so that changes of the machine's speed affect them all. Ratios compare the
medians over rounds with PyTorch's in the same setting. Weights are random, since they do not change the time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nearest_etf.common.files import write_file
from nearest_etf.common.machine import provenance
from nearest_etf.export import Bound, OnnxClassifier, export_onnx
from nearest_etf.torchport import Classifier, ImplicitETFHead
from nearest_etf.torchport.training.backbones.resnet import ResNet

MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
Call = Callable[[np.ndarray], object]


def torch_call(model: torch.nn.Module) -> Call:
    """PyTorch: pixels (N, H, W, C) to labels."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (MEAN, STD))

    @torch.inference_mode()
    def call(images: np.ndarray) -> object:
        x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
        return model(x).argmax(1)

    return call


def contenders(folder: Path, threads: int, compiled: bool) -> dict[str, Call]:
    """The measured functions, by name."""
    torch.manual_seed(0)
    model = Classifier(ResNet("resnet18"), ImplicitETFHead(512, 10)).eval()
    calls = {"torch eager": torch_call(model)}
    if compiled:
        calls["torch compiled"] = torch_call(torch.compile(model))  # type: ignore[arg-type]
    calibration = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    for precision in ("fp32", "fp16", "int8"):
        path = folder / f"{precision}.onnx"
        if not path.exists():
            export_onnx(
                model,
                path,
                image_shape=(32, 32, 3),
                mean=MEAN,
                std=STD,
                precision=precision,  # type: ignore[arg-type]
                calibration_images=calibration,
                bound=Bound(logits=None, agreement=0.0),  # the logits of random weights are close to each other
            )
        calls[f"onnxruntime {precision}"] = OnnxClassifier(path, threads=threads).predict
    return calls


def measure(calls: dict[str, Call], batch_size: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of each contender; they take turns in each round."""
    images = np.random.default_rng(1).integers(0, 256, (batch_size, 32, 32, 3), np.uint8)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(-3, rounds):  # three warm-up rounds
        for name, call in calls.items():
            start = time.perf_counter()
            call(images)
            if round_ >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(taken) for name, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=15, help="at batch 64; eight times as many at batch 1 [15]")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for threads in given.threads:
            torch.set_num_threads(threads)
            calls = contenders(Path(folder), threads, compiled=not given.no_compile)
            for batch_size in given.batch_sizes:
                medians = measure(calls, batch_size, given.rounds * (8 if batch_size == 1 else 1))
                for name, median in medians.items():
                    ratio = medians["torch eager"] / median
                    row = {
                        "threads": threads,
                        "batch": batch_size,
                        "contender": name,
                        "ms": median,
                        "ratio": ratio,
                    }
                    rows.append(row)
                    setting = f"{threads} threads, batch {batch_size:2}"
                    print(f"{setting}: {name:<16} {median:8.2f} ms {ratio:6.2f}×", flush=True)
    if given.json:
        write_file(given.json, json.dumps({"provenance": provenance(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
