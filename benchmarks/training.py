"""Training images per second of whole steps: our loop, and a plain float32 loop with worker processes.

    python benchmarks/training.py --quick              under a minute on two CPU cores
    python benchmarks/training.py --device cuda --json training.json

Both train ResNet-18 with the stem for small images, the implicit head, SGD and the same augmentation, on images of
CIFAR's size. They take turns of one epoch; the first turn, with the compilation, is not counted.

- Ours is the loop of `etf-train`: batches on the device, bfloat16, channels last, torch.compile.
- The plain loop is eager, in float32 with PyTorch's defaults, and its workers augment image by image. On GPUs these
  defaults include TF32 in convolutions; there, a second plain loop runs without TF32.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from loader import MEAN, PADDING, STD, Usual, from_workers  # type: ignore[import-not-found]  # the script beside this
from torch.nn import functional as F

from nearest_etf.common.machine import available_cores, provenance
from nearest_etf.torchport import Classifier
from nearest_etf.torchport.training.data.images import ImageData
from nearest_etf.torchport.training.data.loaders import make_loader
from nearest_etf.torchport.training.data.split import Split
from nearest_etf.torchport.training.device import use_precision
from nearest_etf.torchport.training.model import build_model
from nearest_etf.torchport.training.optim import build_optimizer
from nearest_etf.torchport.training.run.settings import Settings
from nearest_etf.torchport.training.totals import batch_totals

CLASSES = 10
DEFAULTS = {"cpu": {"width": 64, "batch_size": 64, "steps": 4}, "cuda": {"width": 64, "batch_size": 512, "steps": 100}}
QUICK = {"width": 8, "batch_size": 64, "steps": 6}
Turn = Callable[[], None]


@dataclass(frozen=True)
class Row:
    """One contestant; training images per second over its turns."""

    contestant: str
    median: float
    slowest: float
    fastest: float
    turns: int


def ours(data: ImageData, settings: Settings, device: torch.device) -> Turn:
    """An epoch of `training.train`, without metrics and checkpoints."""
    loader = make_loader(data.train, data, settings, device=device)
    model = build_model(settings, data.image_shape, CLASSES).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(settings, model)
    use_precision(model.backbone, device, settings.precision)
    if settings.compile:
        model.backbone.compile()
    totals = torch.zeros(3, dtype=torch.float64, device=device)

    def turn() -> None:
        for images, labels in loader.epoch(1):
            optimizer.zero_grad()
            logits = model(images, labels)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            totals.add_(batch_totals(loss, logits, labels))
        check(model)

    return turn


def plain(data: ImageData, settings: Settings, device: torch.device, workers: int, tf32: bool) -> Turn:
    """An epoch of a plain PyTorch script."""
    assert isinstance(data.train, Split)
    batches = from_workers(Usual(data.train), settings.batch_size, workers, device)
    model = build_model(settings, data.image_shape, CLASSES).to(device)
    optimizer = build_optimizer(settings, model)

    def turn() -> None:
        torch.backends.cudnn.allow_tf32 = tf32
        for images, labels in batches():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images, labels), labels)
            loss.backward()
            optimizer.step()
        torch.backends.cudnn.allow_tf32 = True
        check(model)

    return turn


def check(model: Classifier[Any]) -> None:
    """Wait for the device once per turn, and refuse a rate of steps with weights that are not finite."""
    if not all(p.isfinite().all() for p in model.parameters()):
        raise SystemExit("training.py: the weights are not finite")


def measure(options: argparse.Namespace) -> list[Row]:
    """Measure all contestants in turn."""
    device, images = torch.device(options.device), options.batch_size * options.steps
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    split = Split(pixels, rng.integers(0, CLASSES, images))
    data = ImageData("noise", split, None, None, tuple(map(str, range(CLASSES))), MEAN, STD)
    shared = {"backbone": "resnet18", "stem": "cifar", "width": options.width, "batch_size": options.batch_size}
    settings = Settings(
        **shared, flip=True, crop_padding=PADDING, lr=0.01, precision=options.precision, compile=options.compile
    )
    field = {"ours": ours(data, settings, device)}
    peer = partial(plain, data, Settings(**shared, lr=0.01), device, options.workers)
    field["plain loop"] = peer(tf32=True)
    if options.device == "cuda":
        field["plain loop, no TF32"] = peer(tf32=False)
    rates: dict[str, list[float]] = {name: [] for name in field}
    for turn in range(options.turns + 1):
        for name, run in field.items():
            began = time.perf_counter()
            run()
            if turn > 0:
                rates[name].append(images / (time.perf_counter() - began))
    return [Row(name, median(found), min(found), max(found), len(found)) for name, found in rates.items()]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    for name, about in (
        ("width", "channels of the first stage"),
        ("batch_size", "images per step"),
        ("steps", "steps of a turn"),
    ):
        default = f"{DEFAULTS['cpu'][name]} on the CPU, {DEFAULTS['cuda'][name]} on a GPU"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{about} ({default})")
    parser.add_argument("--turns", type=int, default=5, help="timed turns of each contestant")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes of the plain loop's loader")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16", help="of ours")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="run ours without torch.compile")
    parser.add_argument("--quick", action="store_true", help="a narrow network, few steps, no torch.compile")
    parser.add_argument("--json", help="write all rows to this file")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    if options.quick:
        options.turns, options.compile = 3, False
    for name, value in (QUICK if options.quick else DEFAULTS[options.device]).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main() -> None:
    options = parse()
    rows = measure(options)
    print(f"{'contestant':22}{'images/s':>12}{'slowest':>12}{'fastest':>12}{'ours / it':>10}")
    for r in rows:
        ratio = f"{rows[0].median / r.median:9.1f}×"
        print(f"{r.contestant:22}{r.median:12,.0f}{r.slowest:12,.0f}{r.fastest:12,.0f}{ratio}")
    if options.json:
        chosen = {name: value for name, value in vars(options).items() if name not in ("json", "quick")}
        where = provenance(options.device)
        about = {name: where[name] for name in ("commit", "versions", "python", "device", "threads")}
        report = {"provenance": about, "options": chosen, "rows": [asdict(r) for r in rows]}
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
