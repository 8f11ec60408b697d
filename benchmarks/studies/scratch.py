"""Shared by the studies of training from scratch: settings of data sets, heads, tuning, and execution of a plan.

docs/protocol.md has the rules. A study has a list of factors around a centre, and tables of its rows. `conduct` runs
it, and continues where the last call stopped. scratch_run.py has the training of one run.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from paired import Results  # type: ignore[import-not-found]
from torch import Tensor, nn

from nearest_etf import (
    ClassMeanHead,
    FixedETFHead,
    Head,
    ImplicitETFHead,
    LearnedHead,
    LinearHead,
    TightFrameHead,
)
from nearest_etf.torchport.training.backbones.resnet import Block
from nearest_etf.torchport.training.run.settings import Settings, load_recipe

Rows = list[dict[str, Any]]
RATES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
TEMPERATURES = (5.0, 10.0, 20.0, 40.0)
DECAYS = (0.0, 1e-4, 5e-4, 5e-3)  # of the linear head, which has no τ
TUNING_SEED, START_SECONDS = 100, 0.3


@dataclass(frozen=True)
class Data:
    """The training on a data set, the epochs of its measurements, and its seconds on one core."""

    settings: Settings  # network, optimizer, schedule, epochs, batches, augmentation
    targets: tuple[float, ...]
    epochs: tuple[int, ...] = ()  # with measurements; every epoch by default
    images: int = 0  # number of training images; 0: all
    test: int = 0  # number of test images, and of validation images; 0: all, and a fifth held out
    measured: int = 0  # number of training images for the metrics of collapse; 0: all
    network: Callable[..., nn.Module] | None = None  # instead of that of the settings
    tuned_on: str | None = None  # has the choices of this data set
    step_seconds: float = 0.0  # 0: not measured
    solve_seconds: float = 0.0  # of an implicit head, per step
    look_seconds: float = 0.0

    @property
    def free(self) -> bool:
        """Whether features are parameters, without images: the unconstrained features model."""
        return self.settings.data == "ufm"

    @property
    def grid(self) -> tuple[float, ...]:
        at = RATES.index(self.settings.lr)
        return RATES[at - 1 : at + 2]

    def looks(self) -> tuple[int, ...]:
        return self.epochs or tuple(range(1, self.settings.epochs + 1))


class SmallResNet(nn.Module):
    """Three residual blocks of 24, 48 and 128 channels behind a 3×3 convolution of stride 2; (N, 128) features."""

    num_features = 128

    def __init__(self, channels: int, *, signed: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.blocks = nn.Sequential(
            Block(24, 24, 1, bottleneck=False),
            Block(24, 48, 2, bottleneck=False),
            Block(48, 128, 2, bottleneck=False, last_relu=not signed),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.stem(images)).mean((2, 3))


def _small(data: str, epochs: int, **others: Any) -> Settings:
    return Settings(
        data=data,
        optimizer="adamw",
        lr=0.003,
        weight_decay=1e-2,
        schedule="one-cycle",
        batch_size=128,
        crop_padding=2,
        epochs=epochs,
        **others,
    )


def _free(K: int, d: int, n: int, epochs: int, batch: int = 0, **others: Any) -> Data:
    settings = Settings(
        data="ufm",
        optimizer="adamw",
        lr=0.01,
        weight_decay=0.0,
        schedule="cosine",
        epochs=epochs,
        batch_size=batch or K * n,
        num_classes=K,
        num_features=d,
        samples_per_class=n,
    )
    looks = (*(e for e in (1, 2, 5, 10, 20, 50, 100) if e < epochs), epochs)
    return Data(settings, (1.0,), looks, **others)


def _images(train: int, measured: int) -> dict[str, Any]:
    return {"images": train, "test": 2000, "measured": measured, "network": SmallResNet}


def _seconds(step: float, solve: float, look: float) -> dict[str, Any]:
    """Seconds on one thread of a busy Xeon with AVX-512, measured once in a pilot with seed 999."""
    return {"step_seconds": step, "solve_seconds": solve, "look_seconds": look}


SMALL = {
    "digits": Data(load_recipe("digits"), (0.90, 0.97), **_seconds(0.0105, 0.0018, 0.1)),
    "cifar10": Data(
        _small("cifar10", 8, flip=True), (0.50, 0.60), **_images(8000, 2000), **_seconds(0.082, 0.002, 0.9)
    ),
    "cifar100": Data(
        _small("cifar100", 8, flip=True), (0.20, 0.30), **_images(12_000, 4000), **_seconds(0.082, 0.007, 1.3)
    ),
    "fashion-mnist": Data(
        _small("fashion-mnist", 5, flip=True),
        (0.75, 0.85),
        **_images(10_000, 2000),
        **_seconds(0.063, 0.002, 0.8),
        tuned_on="digits",
    ),
    "mnist": Data(
        _small("mnist", 5), (0.95, 0.98), **_images(10_000, 2000), **_seconds(0.063, 0.002, 0.8), tuned_on="digits"
    ),
    "ufm-10": _free(10, 512, 10, 200, **_seconds(0.0025, 0.002, 0.01)),
    "ufm-100": _free(100, 512, 10, 200, **_seconds(0.015, 0.006, 0.05)),
    "ufm-200": _free(200, 512, 10, 200, **_seconds(0.037, 0.012, 0.1)),
    "ufm-1000": _free(1000, 1024, 2, 60, **_seconds(0.28, 0.23, 0.3)),
    "ufm-10-large": _free(10, 512, 1024, 100, 4096, tuned_on="ufm-10", **_seconds(0.095, 0.002, 0.3)),
}


def _recipe(name: str, data: str, **others: Any) -> Data:
    return Data(
        load_recipe(name, {"lr": 0.03, "epochs": 100}), SMALL[data].targets, (1, 2, 4, 8, 20, 50, 100), **others
    )


FULL = {
    **SMALL,
    "cifar10": _recipe("cifar10-resnet18-sgd", "cifar10"),
    "cifar100": _recipe("cifar100-resnet50-sgd", "cifar100"),
    "fashion-mnist": _recipe("fashion-mnist-resnet18", "fashion-mnist", tuned_on="digits"),
    "mnist": _recipe("mnist-resnet18", "mnist", tuned_on="digits"),
    "ufm-1000": _free(1000, 1024, 10, 200),
}


@dataclass(frozen=True)
class Contestant:
    """A head, its second tuned setting (the first is the rate), its loss, and its start."""

    make: Callable[..., Head]
    knob: str = "temperature"
    values: tuple[float, ...] = TEMPERATURES
    loss: str = "cross-entropy"
    tuned_as: str | None = None  # has the choice of this contestant
    start: str | None = None


HEADS = {
    "linear": Contestant(LinearHead, "weight_decay", DECAYS),
    "learned": Contestant(LearnedHead),
    "fixed": Contestant(FixedETFHead, start="axes"),
    "canonical": Contestant(FixedETFHead, tuned_as="fixed"),
    "fixed-random": Contestant(functools.partial(FixedETFHead, initial="random"), tuned_as="fixed"),
    "implicit": Contestant(ImplicitETFHead),
    "implicit-per-class": Contestant(functools.partial(ImplicitETFHead, averaging="class"), tuned_as="implicit"),
    "implicit-detached": Contestant(functools.partial(ImplicitETFHead, gradient=False), tuned_as="implicit"),
    "class-mean": Contestant(ClassMeanHead, tuned_as="implicit"),
    "tight-frame": Contestant(TightFrameHead, tuned_as="implicit"),  # only in study H
    "ntce": Contestant(LearnedHead, values=(10.0,), loss="ntce"),
    "nonl": Contestant(LearnedHead, values=(10.0,), loss="nonl"),
}
FOUR = ("linear", "learned", "fixed", "implicit")


@dataclass(frozen=True)
class Run:
    """One training run. A reported run has no rate before its head has been tuned."""

    stage: str  # "tune" or "report"
    factor: str
    head: str
    seed: int
    data: str = "digits"
    rate: float | None = None
    temperature: float | str | None = None  # None: the package's default
    weight_decay: float | None = None  # None: that of the data set
    signed: bool = False  # features before the last ReLU
    batch: int | None = None  # None: that of the data set
    start: str | None = None  # "axes", "aligned", "feature-polar"; None: the head's own
    gradient: str = "on"  # through the solution: "on", "off", "first fifth", "last four fifths"
    floor: float | None = None  # of α; None: the package's default
    absent: int = 0  # number of last classes without samples in the first half of the epochs
    imbalance: float = 1.0  # smallest class size over the largest, exponential in between
    noise: float = 0.0  # share of wrong labels
    options: dict[str, Any] = field(default_factory=dict)  # keywords of the head

    def key(self) -> tuple[Any, ...]:
        own = (self.rate, self.temperature, self.weight_decay) if self.stage == "tune" else ()
        return (self.stage, self.factor, self.head, self.seed, self.data, *own)


def run_of(row: dict[str, Any]) -> Run:
    return Run(**{name: row[name] for name in Run.__dataclass_fields__})


# Tuning: as in fine_tune.py, by data set.


def chosen(rows: Rows, head: str, data: str) -> dict[str, Any] | None:
    """Rate and knob of the best score, ties to the smaller rate, then knob; None before any trial."""
    knob = HEADS[head].knob
    own = [row for row in rows if (row["stage"], row["head"], row["data"]) == ("tune", head, data)]
    if not own:
        return None
    best = max(sorted(own, key=lambda row: (row["rate"], row[knob])), key=score)
    return {"rate": best["rate"], knob: best[knob]}


def score(row: dict[str, Any]) -> float:
    """Validation accuracy; for free features, which have none, the negative of the last NC1."""
    if not row["data"].startswith("ufm"):
        return float(row["accuracy"])
    nc1 = row["nc1"][-1] if row["nc1"] else None
    return -math.inf if nc1 is None else -nc1


def tuning(rows: Rows, sets: dict[str, Data], head: str, data: str) -> Iterator[Run]:
    """The grid of one head, extended by the next rate at the best knob while the best rate is at an end."""
    contestant, grid = HEADS[head], sets[data].grid
    own = [row for row in rows if (row["stage"], row["head"], row["data"]) == ("tune", head, data)]
    pairs = list(itertools.product(grid, contestant.values))
    best = chosen(rows, head, data)
    if best is not None and len(own) >= len(pairs):
        value = best[contestant.knob]
        tried = {row["rate"] for row in own}
        pairs += [(row["rate"], row[contestant.knob]) for row in own if row["rate"] not in grid]
        at = RATES.index(best["rate"])
        pairs += [(RATES[i], value) for i in (at - 1, at + 1) if 0 <= i < len(RATES) and RATES[i] not in tried]
    for rate, value in pairs:
        knob: dict[str, Any] = {contestant.knob: value}
        yield Run("tune", "centre", head, TUNING_SEED, data, rate=rate, **knob)


def settled(tuned: Rows, sets: dict[str, Data], head: str, data: str) -> dict[str, Any]:
    """The choice of a head for reported runs; empty before all of its tuning is done."""
    head, data = HEADS[head].tuned_as or head, sets[data].tuned_on or data
    done = {run_of(row).key() for row in tuned if (row["stage"], row["head"], row["data"]) == ("tune", head, data)}
    ready = all(trial.key() in done for trial in tuning(tuned, sets, head, data))
    return (chosen(tuned, head, data) or {}) if ready else {}


@dataclass(frozen=True)
class Factor:
    """A setting, its heads, and its number of seeds."""

    name: str
    heads: tuple[str, ...]
    seeds: int
    change: dict[str, Any] = field(default_factory=dict)  # of fields of the runs, against the centre
    data: str = "digits"


@dataclass(frozen=True)
class Study:
    """The factors of a study in their order, the centre first, and its measurements."""

    about: str
    file: str  # name of the result file
    factors: tuple[Factor, ...]
    tables: Callable[[Rows], str]
    tunes: bool = False  # False: the heads have their choices of study A
    curves: bool = True  # measurements at all named epochs, or only at the last one
    share_steps: tuple[int, ...] = ()  # steps with a measurement of the share of the gradient through the solution
    small: dict[str, Data] = field(default_factory=dict)  # data sets in addition to SMALL
    full: dict[str, Data] = field(default_factory=dict)  # data sets in addition to FULL


def plan(study: Study, sets: dict[str, Data], tuned: Rows, more_seeds: int = 1) -> Iterator[Run]:
    """All runs in order; reported ones with the rate and the knob chosen by tuning, if it is done."""
    begun: set[tuple[str, str]] = set()
    for factor in study.factors:
        for head in factor.heads if study.tunes else ():
            own = HEADS[head].tuned_as is None and sets[factor.data].tuned_on is None
            if own and (head, factor.data) not in begun:
                begun.add((head, factor.data))
                yield from tuning(tuned, sets, head, factor.data)
        choices = {head: settled(tuned, sets, head, factor.data) for head in factor.heads}
        for seed, head in itertools.product(range(factor.seeds * more_seeds), factor.heads):
            run = Run("report", factor.name, head, seed, factor.data)
            yield replace(run, **{**choices[head], **factor.change})


def looks_of(study: Study, run: Run, data: Data) -> tuple[int, ...]:
    """Epochs with measurements of a run."""
    return data.looks() if study.curves and run.stage == "report" else (data.settings.epochs,)


def seconds_of(study: Study, run: Run, data: Data) -> float:
    """The estimated seconds of a run on one core at small scale."""
    batch = run.batch or data.settings.batch_size
    images = data.images or 1437
    images = data.settings.num_classes * data.settings.samples_per_class if data.free else images
    step = data.step_seconds * max(0.4, batch / data.settings.batch_size)  # a step has a fixed cost
    step += data.solve_seconds * run.head.startswith("implicit")
    steps = data.settings.epochs * (images // batch)
    return START_SECONDS + steps * step + len(looks_of(study, run, data)) * data.look_seconds


def conduct(study: Study) -> None:
    """The command of a study: execute the runs that are left, list them, or print the tables."""
    parser = argparse.ArgumentParser(description=study.about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=("small", "full"), default="small", help="two cores, or a GPU [small]")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run that would end later")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS), help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", help="only reported runs with these seeds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, nargs="+", default=[Path("benchmarks/results") / study.file])
    if not study.tunes:
        of_a = [Path("benchmarks/results/from-scratch.json")]
        parser.add_argument("--choices", type=Path, nargs="+", default=of_a, help="result files of study A")
    parser.add_argument("--dry-run", action="store_true", help="list the runs that are left, and their hours")
    parser.add_argument("--summary", action="store_true", help="tables of all --json files, as Markdown")
    options = parser.parse_args()
    if options.summary:
        print(study.tables([row for path in options.json for row in Results(path).rows]))
        return
    from scratch_run import trained  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    sets, more = ({**SMALL, **study.small}, 1) if options.scale == "small" else ({**FULL, **study.full}, 2)
    results, ends = Results(options.json[0]), time.monotonic() + 60 * options.minutes
    choices: Rows = [] if study.tunes else [row for path in options.choices for row in Results(path).rows]
    slower = 1.0  # ratio of the last run's time to its estimate
    while True:
        done = {run_of(row).key() for row in results.rows}
        left = [r for r in plan(study, sets, results.rows if study.tunes else choices, more) if r.key() not in done]
        left = [r for r in left if r.head in options.heads]
        left = [r for r in left if r.stage == "tune" or options.seeds is None or r.seed in options.seeds]
        expected = {r.key(): seconds_of(study, r, sets[r.data]) for r in left}
        if options.dry_run:
            print(*(f"{expected[r.key()]:5.0f} s  {r}" for r in left), sep="\n")
        run = next((r for r in left if r.rate is not None), None)
        if options.dry_run or run is None or time.monotonic() + slower * expected[run.key()] > ends:
            waiting = sum(r.rate is None for r in left)
            hours = f"{sum(expected.values()) / 3600:.2f} hours on one core"
            if any(sets[r.data].step_seconds == 0 for r in left):
                hours = "hours not measured"
            print(f"{len(left)} runs left, {hours}, {waiting} of them wait for tuning; {len(done)} are done")
            return
        began = time.monotonic()
        data = sets[run.data]
        row = {**asdict(run), **trained(run, data, looks_of(study, run, data), study.share_steps, options.device)}
        results.add(row)
        slower = max(1.0, (time.monotonic() - began) / expected[run.key()])
        print(f"{run.stage} {run.factor}: {run.data} {run.head} seed {run.seed} {row['accuracy']}", flush=True)
