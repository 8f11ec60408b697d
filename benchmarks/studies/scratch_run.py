"""One run of the studies of training from scratch: its images, its model, a plain training loop, and its metrics."""

from __future__ import annotations

import functools
import math
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scratch import HEADS, Data, Run  # type: ignore[import-not-found]
from torch import Tensor, nn
from torch.nn import functional as F

from nearest_etf import Classifier, Head, NeuralCollapseMeter, project_to_etf
from nearest_etf.reference.procrustes import initial_frame
from nearest_etf.torchport.heads.solving import SolvingHead
from nearest_etf.torchport.training.backbones.build import build_backbone
from nearest_etf.torchport.training.data.batches import Loader
from nearest_etf.torchport.training.data.device_loader import Augmentation, DeviceLoader
from nearest_etf.torchport.training.data.held_out import hold_out
from nearest_etf.torchport.training.data.load import load_data
from nearest_etf.torchport.training.data.modify import modified
from nearest_etf.torchport.training.losses import training_loss
from nearest_etf.torchport.training.optim import build_optimizer, learning_rate

TAIL = 3  # number of last classes (the rarest ones under imbalance) with a separate accuracy
HEALTH = ("gap", "condition", "orthogonality", "drift", "fallbacks")
LINE = 100  # stored characters of a warning


class FreeLoader:
    """Indices of free features and their labels, instead of images."""

    def __init__(self, K: int, n: int, batch_size: int, seed: int) -> None:
        self.labels, self.batch_size, self.seed = torch.arange(K * n) % K, batch_size, seed

    def steps_per_epoch(self) -> int:
        return len(self.labels) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(1000 * self.seed + epoch))
        for index in order.split(self.batch_size)[start : self.steps_per_epoch()]:
            yield index, self.labels[index]

    def ordered(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.arange(len(self.labels)).split(4096):
            yield index, self.labels[index]


@dataclass(frozen=True)
class Loaders:
    """Training batches, images for the metrics of collapse, images for the accuracy, K, and the shape of an image."""

    train: Loader
    collapse: Loader
    shown: Loader
    num_classes: int
    shape: tuple[int, int, int]


loaded = functools.lru_cache(2)(load_data)


def loaders_of(run: Run, data: Data, device: torch.device) -> Loaders:
    """Images drawn by the seed, equal for all heads; for tuning, `shown` is also from the training split."""
    settings, batch = data.settings, run.batch or data.settings.batch_size
    if data.free:
        free = FreeLoader(settings.num_classes, settings.samples_per_class, batch, run.seed)
        return Loaders(free, free, free, settings.num_classes, (1, 1, 1))
    source, rng = loaded(settings.data, root=os.environ.get("NEAREST_ETF_DATA")), np.random.default_rng(run.seed)
    K, tune = source.num_classes, run.stage == "tune"
    source = hold_out(source, 0.2, run.seed) if tune and not data.images else source
    train, shown = source.train, source.val if tune else source.test
    if data.images:
        order = rng.permutation(len(train))
        kept = np.concatenate([order[train.labels[order] == k][: data.images // K] for k in range(K)])
        shown = train.take(rng.permutation(np.setdiff1d(order, kept))) if tune else shown  # type: ignore[union-attr]
        train = train.take(rng.permutation(kept))  # type: ignore[union-attr]
    if data.test and shown is not None:
        index = rng.choice(len(shown), min(data.test, len(shown)), replace=False)
        shown = shown.take(index)  # type: ignore[union-attr]
    kind = "none" if run.imbalance == 1 else "exponential"
    train = modified(train, K, seed=run.seed, imbalance=kind, ratio=1 / run.imbalance, label_noise=run.noise)
    augmentation = Augmentation(settings.flip, settings.crop_padding)
    make = functools.partial(DeviceLoader, mean=source.mean, std=source.std, device=device, seed=run.seed)
    part = train.take(np.arange(data.measured or len(train)))  # type: ignore[union-attr]
    parts = make(train, batch, augmentation=augmentation), make(part, 1), make(shown, 1)  # type: ignore[arg-type]
    return Loaders(*parts, K, source.image_shape)


class Diverged(Exception):
    """Features or a loss that are not finite."""


def finite(values: Tensor) -> Tensor:
    if not bool(values.isfinite().all()):
        raise Diverged
    return values


@torch.no_grad()
def class_means(backbone: nn.Module, loaders: Loaders) -> tuple[Tensor, Tensor, Tensor]:
    """All training features and labels in eval mode, and the centred class means of unit features (K, d)."""
    backbone.eval()
    blocks = [(backbone(x), y) for x, y in loaders.train.ordered()]
    features, labels = (torch.cat(part) for part in zip(*blocks, strict=True))
    unit = F.normalize(features, dim=1)
    means = torch.stack([unit[labels == k].mean(0) for k in range(loaders.num_classes)])
    return features, labels, means - means.mean(0)


def assigned_axes(means: Tensor) -> Tensor:
    """The frame (d, K) of K axes, assigned to classes by the largest total cosine with class means (K, d)."""
    _, axes = linear_sum_assignment(F.normalize(means, dim=1).cpu().numpy(), maximize=True)
    return torch.eye(means.shape[1])[:, torch.from_numpy(axes)]


def model_of(run: Run, data: Data, loaders: Loaders, device: torch.device) -> Classifier[Head]:
    """The network and the head of a run; the weights of the network are drawn before those of the head."""
    settings = replace(data.settings, features="signed" if run.signed else "relu")
    if data.network is not None:
        backbone = data.network(loaders.shape[2], signed=run.signed)
    else:
        backbone = build_backbone(settings, loaders.shape)
    backbone = backbone if data.free else backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    backbone, contestant = backbone.to(device), HEADS[run.head]
    options, start = dict(run.options), run.start or contestant.start
    if run.head != "linear":
        options["temperature"] = run.temperature
    found = class_means(backbone, loaders) if start else None
    if found and start == "axes":
        options["initial"] = assigned_axes(found[2])
    elif found and start == "feature-polar":
        frame = initial_frame("feature-polar", found[2].T.double().cpu().numpy())
        options["initial"] = torch.from_numpy(frame).float()
    head = contestant.make(backbone.num_features, loaders.num_classes, **options).to(device)
    if found and start == "aligned":
        head.fit(found[0], found[1])
    if run.floor is not None:
        head.running.floor = run.floor  # type: ignore[union-attr]
    return Classifier(backbone, head)


def share_of_solution(head: SolvingHead, features: Tensor, labels: Tensor) -> float:
    """`‖g_on − g_off‖/‖g_on‖` for the gradient of the features with and without the path through the solution."""
    before, gradients = head.gradient, []
    for through in (True, False):
        head.gradient = through
        f = features.detach().requires_grad_()
        loss = F.cross_entropy(head(f, labels, update=False), labels)
        gradients.append(torch.autograd.grad(loss, f)[0])
    head.gradient = before
    return float((gradients[0] - gradients[1]).norm() / gradients[0].norm())


def flows(when: str, progress: float) -> bool:
    """Whether the gradient through the solution is on after this share of the steps."""
    return {"on": True, "off": False, "first fifth": progress < 0.2, "last four fifths": progress >= 0.2}[when]


def rounded(x: float) -> float | None:
    """A figure with four digits; None if it is not finite."""
    return float(f"{x:.4g}") if math.isfinite(x) else None


@torch.no_grad()
def look(model: Classifier[Head], loaders: Loaders, epoch: int, found: dict[str, Any]) -> None:
    """Append accuracy and the metrics of collapse, in eval mode, to the row `found`."""
    model.eval()
    right, labels = [], []
    for x, y in loaders.shown.ordered():
        right.append(model.head(finite(model.backbone(x))).argmax(1) == y)
        labels.append(y)
    answers, truth = torch.cat(right).double(), torch.cat(labels)
    meter = NeuralCollapseMeter(model.head.num_features, loaders.num_classes, next(model.parameters()).device)
    for x, y in loaders.collapse.ordered():
        meter.update(model.head.normalise(finite(model.backbone(x))), y)
    weight = finite(model.head.weight)
    metrics = (
        meter.compute(weight, model.head.bias) if weight.any() else None
    )  # no class means if all features are zero
    found["accuracy"] = round(float(answers.mean()), 4)
    found["tail"] = round(float(answers[truth >= loaders.num_classes - TAIL].mean()), 4)
    found["at"].append(epoch)
    found["test"].append(found["accuracy"])
    for name, metric in (("nc1", "nc1"), ("nc2", "nc2_means"), ("nc3", "nc3")):
        found[name].append(rounded(getattr(metrics, metric)) if metrics else None)


@torch.no_grad()
def projected(model: Classifier[Head], loaders: Loaders) -> dict[str, float]:
    """Accuracies with the classifier projected to the nearest ETF after training."""
    weight, bias = project_to_etf(model.head.weight.detach(), model.head.bias)
    blocks = [(model.head.normalise(model.backbone(x)), y) for x, y in loaders.shown.ordered()]
    h, y = (torch.cat(part) for part in zip(*blocks, strict=True))
    right = (F.linear(h, weight, bias).argmax(1) == y).double()
    tail = right[y >= loaders.num_classes - TAIL]
    return {"accuracy": round(float(right.mean()), 4), "tail": round(float(tail.mean()), 4)}


def trained(
    run: Run, data: Data, looks: tuple[int, ...], share_steps: tuple[int, ...] = (), device: str = "cpu"
) -> dict[str, Any]:
    """Train, and return the figures of a row; a seed determines images, order and network, equal for all heads."""
    assert run.rate is not None
    began = time.process_time()
    torch.manual_seed(run.seed)
    decay = data.settings.weight_decay if run.weight_decay is None else run.weight_decay
    settings, loss = replace(data.settings, lr=run.rate, weight_decay=decay), HEADS[run.head].loss
    found: dict[str, Any] = {"at": [], "test": [], "nc1": [], "nc2": [], "nc3": [], "shares": []}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loaders = loaders_of(run, data, torch.device(device))
        model = model_of(run, data, loaders, torch.device(device))
        head, steps = model.head, loaders.train.steps_per_epoch()
        optimizer, done = build_optimizer(settings, model), 0
        try:
            for epoch in range(1, settings.epochs + 1):
                model.train()
                for x, y in loaders.train.epoch(epoch):
                    if run.absent and 2 * epoch <= settings.epochs:
                        held = y < loaders.num_classes - run.absent
                        x, y = x[held], y[held]
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate(settings, done / (steps * settings.epochs)) * group["lr_scale"]
                    features = finite(model.backbone(x))
                    if isinstance(head, SolvingHead) and run.head == "implicit":
                        head.gradient = flows(run.gradient, done / (steps * settings.epochs))
                        if done + 1 in share_steps:
                            alpha = max(2 / (done + 2), head.running.floor)
                            share = rounded(share_of_solution(head, features, y))
                            found["shares"].append([done + 1, share, rounded(alpha)])
                    optimizer.zero_grad()
                    finite(training_loss(loss, head(features, y), y, run.temperature)).backward()  # type: ignore[arg-type]
                    optimizer.step()
                    done += 1
                if epoch in looks:
                    look(model, loaders, epoch, found)
            if run.head == "learned" and run.imbalance < 1:
                found["projected"] = projected(model, loaders)
        except Diverged:  # the run counts, with the accuracy of chance
            found |= {"diverged": True, "accuracy": round(1 / loaders.num_classes, 4)}
        if isinstance(head, SolvingHead):
            health = head.solution_health()
            found["health"] = {name: rounded(health[name]) for name in HEALTH}
    found["warnings"] = dict(Counter(str(w.message)[:LINE] for w in said))
    return {**found, "seconds": round(time.process_time() - began, 2)}
