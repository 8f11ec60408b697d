"""Training images per second of the device-resident loader, against worker processes with a transform per image.

    python benchmarks/loader.py

Both mirror, pad, crop and normalise images of CIFAR's size, and hand over float32 batches.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nearest_etf.torchport.training.data import Augmentation, DeviceLoader, Split

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class PerImage(Dataset[tuple[Tensor, int]]):
    """The usual pipeline: each image is padded, cropped, mirrored, turned to float and normalised on its own."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.mean, self.std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        padded = np.pad(self.split.images[index], ((4, 4), (4, 4), (0, 0)))
        top, left = np.random.randint(0, 9, 2)  # noqa: NPY002 - what such pipelines do
        part = padded[top : top + 32, left : left + 32]
        if np.random.random() < 0.5:  # noqa: NPY002
            part = part[:, ::-1]
        pixels = torch.from_numpy(np.ascontiguousarray(part.transpose(2, 0, 1))).float() / 255
        return (pixels - self.mean) / self.std, int(self.split.labels[index])


def images_per_second(epoch: Callable[[], Iterator[tuple[Tensor, Tensor]]], repeats: int) -> float:
    """Median over epochs after a first one, in which processes start and memory is touched."""
    rates = []
    for _ in range(repeats + 1):
        began, images = time.perf_counter(), 0
        for batch, _ in epoch():
            images += len(batch)
        if batch.is_cuda:
            torch.cuda.synchronize()
        rates.append(images / (time.perf_counter() - began))
    return float(np.median(rates[1:]))


def main() -> None:
    """Print both rates and their ratio."""
    parser = argparse.ArgumentParser(description="Device-resident loader against a worker-based one.")
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (options.images, 32, 32, 3), dtype=np.uint8)
    split = Split(pixels, rng.integers(0, 10, options.images))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    resident = DeviceLoader(
        split,
        options.batch_size,
        mean=MEAN,
        std=STD,
        device=device,
        augmentation=Augmentation(flip=True, crop_padding=4),
    )
    workers = DataLoader(
        PerImage(split),
        options.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )

    def from_workers() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in workers:
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    ours = images_per_second(lambda: resident.epoch(1), options.repeats)
    theirs = images_per_second(from_workers, options.repeats)
    print(f"device {device}, {torch.get_num_threads()} threads, batches of {options.batch_size}")
    print(f"device-resident      {ours:12,.0f} images/s")
    print(f"{options.workers} worker processes   {theirs:12,.0f} images/s")
    print(f"ratio                {ours / theirs:12.1f}")


if __name__ == "__main__":
    main()
