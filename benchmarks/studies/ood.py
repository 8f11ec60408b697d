"""Which score detects out-of-distribution (OOD) images? NECO, NCI and common baselines.

    NEAREST_ETF_DATA=data python benchmarks/studies/ood.py --json benchmarks/results/ood-digits.json       # minutes
    NEAREST_ETF_DATA=data python benchmarks/studies/ood.py --scale subsets --heads linear implicit \\
        --json benchmarks/results/ood-subsets.json                                           # a quarter of an hour
    NEAREST_ETF_DATA=data python benchmarks/studies/ood.py --scale full --json benchmarks/results/ood.json  # a GPU

A network is trained on one data set with each head and seed, by its recipe and without other data. Its test images are
scored against those of other data sets, converted to the same size and channels, and against two controls: uniform
noise, and its own test images with shuffled pixels. The constants of a score come from the training images; nothing is
tuned on OOD images. Scores:

- `neco`: rank K−1; `neco-pca` has principal components instead of the class means, `neco-logit` multiplies NECO by the
  largest logit;
- `nci`: α = 0; `nci-norm`: the α that gives both terms the same spread over the training images, a rule of this study
  and not of the paper;
- baselines: maximum softmax probability, largest logit, energy, Mahalanobis distance, and the distance to the 50th
  nearest training image.

MNIST has the same ten classes as digits: a change of style, not of content. Scale `subsets` trains small networks on
some of the images, and scores 2000 test images of each data set: its networks are weak, in particular those for CIFAR,
and its figures do not replace those of `full`.

Reported are AUROC and FPR95 in percent, mean ± standard deviation over seeds. A star marks a score with a larger AUROC
than the maximum softmax probability for each of several seeds. Runs are stored in --runs, and every result at once: a
second call continues where the first one stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nearest_etf import NeuralCollapseMeter, nearest_neighbour_score, ood_deviation
from nearest_etf.common.files import write_file
from nearest_etf.common.machine import provenance
from nearest_etf.reference import (
    auroc,
    class_gaussians,
    class_subspace,
    energy_score,
    fpr95,
    mahalanobis_score,
    max_logit_score,
    max_softmax_score,
    nci_score,
    neco_score,
    principal_subspace,
)
from nearest_etf.torchport.training.data.images import ImageData
from nearest_etf.torchport.training.data.load import load_data, training_data
from nearest_etf.torchport.training.data.loaders import make_loader
from nearest_etf.torchport.training.data.split import Split
from nearest_etf.torchport.training.device import computing_device
from nearest_etf.torchport.training.model import load_model
from nearest_etf.torchport.training.run.settings import Settings, load_recipe
from nearest_etf.torchport.training.sweep import sweep

Array = NDArray[np.float64]
CONTROLS = ("noise", "shuffled")
# For each training set: recipe, its overrides, OOD data sets.
PAIRS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "digits": ("digits", {}, ("mnist", "fashion-mnist", *CONTROLS)),
    "mnist": ("fashion-mnist-cpu", {"data": "mnist", "flip": False}, ("fashion-mnist", "cifar10", *CONTROLS)),
    "fashion-mnist": ("fashion-mnist-cpu", {}, ("mnist", "cifar10", *CONTROLS)),
    "cifar10": ("cifar10-resnet18-sgd", {}, ("cifar100", "mnist", "fashion-mnist", *CONTROLS)),
}
SUBSET: dict[str, Any] = {
    **{"backbone": "resnet18", "stem": "imagenet", "width": 16, "lr": 3e-3, "epochs": 6, "eval_interval": 6},
    "samples_per_class": 500,
}
SCALES: dict[str, dict[str, tuple[str, dict[str, Any], tuple[str, ...]]]] = {
    "small": {"digits": PAIRS["digits"]},
    "subsets": {
        "fashion-mnist": ("digits", {**SUBSET, "data": "fashion-mnist"}, ("mnist", *CONTROLS)),
        "mnist": ("digits", {**SUBSET, "data": "mnist"}, ("fashion-mnist", *CONTROLS)),
        "cifar10": ("digits", {**SUBSET, "data": "cifar10", "samples_per_class": 600}, ("cifar100", *CONTROLS)),
        "cifar100": ("digits", {**SUBSET, "data": "cifar100", "samples_per_class": 60}, ("cifar10", *CONTROLS)),
    },
    "full": PAIRS,
}
TEST_IMAGES = {"subsets": 2000}  # evenly spread over a test split; all images at other scales
HEADS = ("linear", "learned", "fixed", "implicit")
BASELINE = "max-softmax"


def test_split(data: ImageData, most: int | None) -> Split:
    """The test images, or at most `most` of them, evenly spread."""
    assert isinstance(data.test, Split)
    count = len(data.test) if most is None else min(most, len(data.test))
    return data.test.take(np.arange(count) * len(data.test) // count)


def foreign_images(
    name: str, data: ImageData, root: str | None, seed: int, most: int | None = None
) -> NDArray[np.uint8]:
    """OOD test images (N, H, W, C), with the size and channels of the network's training images."""
    height, width, channels = data.image_shape
    test = test_split(data, most)
    rng = np.random.default_rng(seed)
    if name == "noise":
        return rng.integers(0, 256, test.images.shape, dtype=np.uint8)
    if name == "shuffled":
        return shuffled(test.images, rng)
    other = test_split(load_data(name, root=root), most)
    x = torch.from_numpy(other.images).permute(0, 3, 1, 2).float()  # (N, C′, H′, W′)
    if x.shape[1] != channels:
        x = x.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    x = F.interpolate(x, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def shuffled(images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Images with shuffled pixels, a new order for each image; the channels of a pixel stay together."""
    pixels = images.reshape(len(images), -1, images.shape[3])
    order = rng.permuted(np.tile(np.arange(pixels.shape[1]), (len(pixels), 1)), axis=1)
    return np.take_along_axis(pixels, order[:, :, None], axis=1).reshape(images.shape)


@torch.no_grad()
def features_of(model: Any, split: Split, data: ImageData, settings: Settings, device: torch.device) -> Tensor:
    """The input of the classifier, (N, d) in float64."""
    batches = make_loader(split, data, settings, device=device).ordered()
    return torch.cat([model.head.normalise(model.backbone(images)).double() for images, _ in batches])


class Scorer:
    """All scores, with their constants from the training features (N, d); larger is more in-distribution."""

    def __init__(self, model: Any, features: Array, labels: NDArray[np.int64], device: torch.device) -> None:
        self.features = torch.from_numpy(features).float().to(device)
        self.W, self.b = (t.detach().double().cpu().numpy() for t in (model.head.weight, model.head.bias))
        self.means, self.covariance = class_gaussians(features, labels, len(self.W))
        self.mean, self.centre = features.mean(axis=0), self.means.mean(axis=0)
        self.classes = class_subspace(self.means)
        self.principal = principal_subspace(features, min(len(self.W) - 1, *features.shape))
        spread = np.abs(features).sum(axis=1).std()
        self.alpha = float(self.nci(features, 0.0).std() / spread) if spread > 0 else 0.0

    def nci(self, h: Array, alpha: float) -> Array:
        return nci_score(h, self.W, self.b, global_mean=self.mean, norm_weight=alpha)

    def __call__(self, h: Array) -> dict[str, Array]:
        logit, neco = max_logit_score(h, self.W, self.b), neco_score(h, self.classes, self.centre)
        return {
            BASELINE: max_softmax_score(h, self.W, self.b),
            "max-logit": logit,
            "energy": energy_score(h, self.W, self.b),
            "neco": neco,
            "neco-logit": neco * logit,
            "neco-pca": neco_score(h, self.principal, self.mean),
            "nci": self.nci(h, 0.0),
            "nci-norm": self.nci(h, self.alpha),
            "mahalanobis": mahalanobis_score(h, self.means, self.covariance),
            "knn": nearest_neighbour_score(torch.from_numpy(h).to(self.features), self.features, 50).cpu().numpy(),
        }


def measured(
    run: Path, foreign: list[str], seed: int, root: str | None, device: torch.device, most: int | None = None
) -> list[dict[str, Any]]:
    """One row per OOD data set."""
    model, settings = load_model(run)
    model.to(device)
    data = training_data(settings, root)
    assert isinstance(data.train, Split)
    test = test_split(data, most)
    h = features_of(model, data.train, data, settings, device)
    labels = torch.from_numpy(data.train.labels).to(device)
    meter = NeuralCollapseMeter(h.shape[1], data.num_classes, device)
    meter.update(h, labels)
    score = Scorer(model, h.cpu().numpy(), data.train.labels, device)
    h_in = features_of(model, test, data, settings, device).cpu().numpy()
    scores_in = score(h_in)
    predicted = (h_in @ score.W.T + score.b).argmax(axis=1)
    shared = {
        "accuracy": float(np.mean(predicted == test.labels)),
        "train_nc1": meter.compute(model.head.weight, model.head.bias).nc1,
        "alpha": score.alpha,
    }
    rows = []
    for name in foreign:
        images = foreign_images(name, data, root, seed, most)
        h_out = features_of(model, Split(images, np.zeros(len(images), np.int64)), data, settings, device)
        scores_out = score(h_out.cpu().numpy())
        figures = {
            "nc5": ood_deviation(meter.class_mean_rows(), h_out.mean(0)),
            "auroc": {key: auroc(scores_in[key], scores_out[key]) for key in scores_in},
            "fpr95": {key: fpr95(scores_in[key], scores_out[key]) for key in scores_in},
        }
        rows.append({"ood": name, **shared, **figures})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: AUROC / FPR95 of every score by pair and head, with * if it beats the baseline for every seed."""
    lines = []
    for data, ood in dict.fromkeys((row["data"], row["ood"]) for row in rows):
        here = [row for row in rows if (row["data"], row["ood"]) == (data, ood)]
        names = list(here[0]["auroc"])
        right = 100 * np.mean([row["accuracy"] for row in here])
        lines += ["", f"**{data} (test accuracy {right:.1f} %) against {ood}**: AUROC / FPR95 in %", ""]
        lines += ["| head (seeds) | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
        for head in dict.fromkeys(row["head"] for row in here):
            seeds = [row for row in here if row["head"] == head]
            cells = [cell(seeds, name) for name in names]
            lines.append(f"| {head} ({len(seeds)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(seeds: list[dict[str, Any]], name: str) -> str:
    parts = []
    for figure in ("auroc", "fpr95"):
        values = 100 * np.array([row[figure][name] for row in seeds])
        spread = f"±{values.std(ddof=1):.1f}" if len(values) > 1 else ""
        parts.append(f"{values.mean():.1f}{spread}")
    better = all(row["auroc"][name] > row["auroc"][BASELINE] for row in seeds)
    return " / ".join(parts) + (" *" if better and len(seeds) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="small", help="digits; parts of four data sets; all [small]")
    parser.add_argument("--data", nargs="+", choices=("digits", *SCALES["subsets"]), help="only these of the scale")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--ood", nargs="+", help="only these OOD data sets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--device", help="cpu, cuda, … [a GPU if there is one]")
    parser.add_argument("--runs", type=Path, default=Path("runs/ood"), help="folder for run folders [runs/ood]")
    parser.add_argument("--json", type=Path, help="rows are read from it and added to it")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.json and options.json.exists():
        rows = json.loads(options.json.read_text(encoding="utf-8"))["rows"]
    keys = ("scale", "data", "head", "seed", "epochs", "ood")
    done = {tuple(row[key] for key in keys) for row in rows}
    root, device = os.environ.get("NEAREST_ETF_DATA"), computing_device(options.device)
    entries, most = SCALES[options.scale], TEST_IMAGES.get(options.scale)
    if unknown := sorted(set(options.data or ()) - set(entries)):
        parser.error(f"--data {unknown[0]}: scale {options.scale} has {', '.join(entries)}")
    for seed, data, head in itertools.product(range(options.seeds), options.data or entries, options.heads):
        recipe, overrides, foreign = entries[data]
        if options.epochs is not None:
            overrides = {**overrides, "epochs": options.epochs}
        settings = load_recipe(recipe, {**overrides, "head": head, "seed": seed})
        keyed = {"scale": options.scale, "data": data, "head": head, "seed": seed, "epochs": settings.epochs}
        missing = [name for name in options.ood or foreign if (*keyed.values(), name) not in done]
        if not missing:
            continue
        start = time.perf_counter()
        folder = options.runs / options.scale / f"{data}-{settings.epochs}"
        ((name, outcome),) = sweep([settings], folder, quiet=True, data_dir=root, device=device).items()
        if not outcome.startswith("done"):
            parser.exit(1, f"{folder / name}: {outcome}\n")
        for row in measured(folder / name, missing, seed, root, device, most):
            rows.append({**keyed, **row})
            best = max(row["auroc"], key=row["auroc"].get)
            print(
                f"{data} {head:8} seed {seed}  accuracy {row['accuracy']:.4f}  {row['ood']:13} AUROC: softmax "
                f"{row['auroc'][BASELINE]:.3f}, NECO {row['auroc']['neco']:.3f}, NCI {row['auroc']['nci']:.3f}, "
                f"best {best} {row['auroc'][best]:.3f}  ({time.perf_counter() - start:.0f} s)",
                flush=True,
            )
        if options.json:
            write_file(options.json, json.dumps({"provenance": provenance(), "rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
