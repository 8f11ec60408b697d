"""Training images per second of the device-resident loader, and of worker processes with a transform per image.

    python benchmarks/loader.py
    python benchmarks/loader.py --workers 4 8 16 --json loader.json

All contestants mirror, pad, crop and normalise images of CIFAR's size in memory, and return float32 batches. Peers:

- "usual" pads, crops and mirrors each image when it is read;
- "tuned" stores padded planes, and has the least work per image;
- "torchvision" is `transforms.v2` on tensors, measured if torchvision is installed.

Contestants take turns of whole epochs. Ratios are to the best number of workers of a peer.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nearest_etf.common.machine import available_cores, provenance
from nearest_etf.torchport.training.data.device_loader import Augmentation, DeviceLoader
from nearest_etf.torchport.training.data.split import Split

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PADDING = 4
Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Row:
    """One contestant; images per second over its turns."""

    contestant: str
    workers: int
    median: float
    slowest: float
    fastest: float
    runs: int


class PerImage(Dataset[tuple[Tensor, int]]):
    """The base class of the peers: images in the memory of the worker processes."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.mean, self.std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.image(index), int(self.split.labels[index])

    def image(self, index: int) -> Tensor:
        """The image (C, H, W), augmented and normalised."""
        raise NotImplementedError


class Usual(PerImage):
    """Each image is padded, cropped, mirrored, converted to float and normalised separately."""

    def image(self, index: int) -> Tensor:
        padded = np.pad(self.split.images[index], ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
        top, left = np.random.randint(0, 2 * PADDING + 1, 2)  # noqa: NPY002 - as in such pipelines
        crop = padded[top : top + 32, left : left + 32]
        if np.random.random() < 0.5:  # noqa: NPY002
            crop = crop[:, ::-1]
        pixels = torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1))).float() / 255
        return (pixels - self.mean) / self.std


class Tuned(PerImage):
    """Padded planes, made once; Python's fast random numbers; two arithmetic operations per image."""

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        padded = np.pad(split.images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
        self.planes = np.ascontiguousarray(padded.transpose(0, 3, 1, 2))
        self.scale, self.shift = (1 / (255 * self.std)).numpy(), (-self.mean / self.std).numpy()

    def image(self, index: int) -> Tensor:
        top, left = random.randrange(2 * PADDING + 1), random.randrange(2 * PADDING + 1)
        crop = self.planes[index, :, top : top + 32, left : left + 32]
        if random.random() < 0.5:
            crop = crop[:, :, ::-1]
        pixels = crop * self.scale
        pixels += self.shift
        return torch.from_numpy(pixels)


class Torchvision(PerImage):
    """`torchvision.transforms.v2` on uint8 tensors, its fastest form."""

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        v2: Any = importlib.import_module("torchvision.transforms.v2")
        self.planes = torch.from_numpy(np.ascontiguousarray(split.images.transpose(0, 3, 1, 2)))
        steps = [v2.RandomCrop(32, PADDING), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
        self.transform = v2.Compose([*steps, v2.Normalize(MEAN, STD)])

    def image(self, index: int) -> Tensor:
        return self.transform(self.planes[index])


def from_workers(data: PerImage, batch_size: int, workers: int, device: torch.device) -> Batches:
    """Epochs of batches on the device, from worker processes that persist between epochs."""
    pinned = device.type == "cuda"
    loader = DataLoader(
        data,
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=pinned,
    )

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in loader:
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    return batches


def images_per_second(batches: Batches, device: torch.device) -> float:
    """The rate over whole epochs, for at least one second."""
    began, images = time.perf_counter(), 0
    while True:
        for batch, _ in batches():
            images += len(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        if (seconds := time.perf_counter() - began) >= 1:
            return images / seconds


def measure(options: argparse.Namespace, device: torch.device) -> list[Row]:
    """Measure all contestants in turn; in the first round, which is not counted, processes start."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (options.images, 32, 32, 3), dtype=np.uint8)
    split = Split(pixels, rng.integers(0, 10, options.images))
    augmentation = Augmentation(flip=True, crop_padding=PADDING)
    resident = DeviceLoader(split, options.batch_size, mean=MEAN, std=STD, device=device, augmentation=augmentation)
    field: dict[tuple[str, int], Batches] = {("device-resident", 0): lambda: resident.epoch(1)}
    for kind in (Usual, Tuned, *([Torchvision] if importlib.util.find_spec("torchvision") else [])):
        data = kind(split)
        for workers in options.workers:
            field[kind.__name__.lower(), workers] = from_workers(data, options.batch_size, workers, device)
    rates: dict[tuple[str, int], list[float]] = {key: [] for key in field}
    for turn in range(options.repeats + 1):
        for key, batches in field.items():
            rate = images_per_second(batches, device)
            if turn > 0:
                rates[key].append(rate)
    return [Row(*key, median(found), min(found), max(found), len(found)) for key, found in rates.items()]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[available_cores()], help="numbers of workers to measure"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed turns of each contestant")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", help="write all rows to this file")
    options = parser.parse_args(arguments)
    if min(options.workers) < 1:
        parser.error(f"--workers {min(options.workers)}: expected at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    return options


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    rows = measure(options, device)
    best = {name: max(r.median for r in rows if r.contestant == name) for name in (r.contestant for r in rows)}
    print(f"{'contestant':18}{'workers':>8}{'images/s':>12}{'slowest':>12}{'fastest':>12}{'ours / best':>13}")
    for r in rows:
        ratio = f"{best['device-resident'] / best[r.contestant]:12.1f}×"
        print(f"{r.contestant:18}{r.workers or '—':>8}{r.median:12,.0f}{r.slowest:12,.0f}{r.fastest:12,.0f}{ratio}")
    if options.json:
        where, chosen = (
            provenance(options.device),
            {name: value for name, value in vars(options).items() if name != "json"},
        )
        about = {name: where[name] for name in ("commit", "versions", "python", "device", "threads")}
        report = {"provenance": about, "options": chosen, "rows": [asdict(r) for r in rows]}
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
