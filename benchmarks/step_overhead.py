"""Overhead of the implicit head in a training step over the fixed head, with and without its exact gradient.

    python benchmarks/step_overhead.py --quick
    python benchmarks/step_overhead.py --json overhead.json --plot overhead.png
    python benchmarks/step_overhead.py --device cuda --cases resnet50:1000:256:224 resnet18:100:256:32

A step is forward, backward and an SGD update on random images. The heads take turns in one process, each with its own
backbone. A case is backbone:classes:batch:pixels. `layer ms` is the forward and backward of the head alone, on
features, with less noise than the difference of two long steps. `vs. learned` is its ratio to the learned head's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F

from nearest_etf.common.machine import provenance
from nearest_etf.torchport import Classifier, FixedETFHead, Head, ImplicitETFHead, LearnedHead
from nearest_etf.torchport.training.backbones.resnet import ResNet

CASES = {
    "cpu": ["resnet18:10:128:32", "resnet18:100:128:32"],
    "cuda": ["resnet18:10:256:32", "resnet18:100:256:32", "resnet50:1000:256:224"],
}


@dataclass(frozen=True)
class Row:
    """One head in one case."""

    case: str
    head: str
    step_ms: float
    layer_ms: float
    overhead: float  # of the step, over the fixed head's
    layer_overhead: float  # the layer's own time beyond the fixed head's, as a share of the fixed head's step
    layer_to_learned: float  # the layer's own time over the learned head's
    runs: int


def heads(num_features: int, num_classes: int) -> dict[str, Head]:
    return {
        "learned": LearnedHead(num_features, num_classes),
        "fixed": FixedETFHead(num_features, num_classes),
        "implicit": ImplicitETFHead(num_features, num_classes),
        "implicit, gradient off": ImplicitETFHead(num_features, num_classes, gradient=False),
    }


def training_step(model: Classifier[Any], images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """Forward, backward and update; in bfloat16 on a GPU."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    device = images.device.type

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = F.cross_entropy(model(images, labels), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def head_alone(head: Head, features: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        F.cross_entropy(head(features, labels), labels).backward()

    return step


def milliseconds(step: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def measure(case: str, device: str, runs: int) -> list[Row]:
    """Measure all heads in turn; the first round is a warm-up, whose step is solved differently from all others."""
    name, *numbers = case.split(":")
    num_classes, batch, pixels = (int(n) for n in numbers)
    torch.manual_seed(0)
    images = torch.randn(batch, 3, pixels, pixels, device=device)
    labels = torch.randint(num_classes, (batch,), device=device)
    stem = "cifar" if pixels <= 64 else "imagenet"
    steps, layers = {}, {}
    num_features = ResNet(name, 3, stem=stem).num_features
    for key, head in heads(num_features, num_classes).items():
        model = Classifier(ResNet(name, 3, stem=stem), head).to(device)
        steps[key] = training_step(model, images, labels)
    for key, head in heads(num_features, num_classes).items():
        features = torch.randn(batch, num_features, device=device, requires_grad=True)
        layers[key] = head_alone(head.to(device), features, labels)
    times: dict[str, list[float]] = {key: [] for key in steps}
    layer_times: dict[str, list[float]] = {key: [] for key in steps}
    for run in range(runs + 1):
        for key in steps:
            elapsed = milliseconds(steps[key], device)
            layer_elapsed = [milliseconds(layers[key], device) for _ in range(5)]
            if run > 0:
                times[key].append(elapsed)
                layer_times[key] += layer_elapsed
    step_ms = {key: median(values) for key, values in times.items()}
    layer_ms = {key: median(values) for key, values in layer_times.items()}
    base = step_ms["fixed"]
    return [
        Row(
            case,
            key,
            step_ms[key],
            layer_ms[key],
            step_ms[key] / base - 1,
            (layer_ms[key] - layer_ms["fixed"]) / base,
            layer_ms[key] / layer_ms["learned"],
            runs,
        )
        for key in steps
    ]


def plot(rows: list[Row], path: str) -> None:
    """Plot the layer's share of a step, one bar per head and case."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = list(dict.fromkeys(r.case for r in rows))
    figure, axis = plt.subplots(figsize=(7, 1 + 0.8 * len(cases)))
    for offset, head in ((-0.2, "implicit"), (0.2, "implicit, gradient off")):
        shares = [100 * r.layer_overhead for r in rows if r.head == head]
        axis.barh([i + offset for i in range(len(cases))], shares, height=0.36, label=head)
    axis.axvline(5, color="grey", linestyle="--", linewidth=1)
    axis.set(yticks=range(len(cases)), yticklabels=cases, xlabel="overhead over the fixed head [% of a step]")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--cases", nargs="+", help="backbone:classes:batch:pixels; the default depends on the device")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="one small case, three runs")
    parser.add_argument("--json", help="write all rows to this file")
    parser.add_argument("--plot", help="write a picture to this file")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device here")
    if options.quick:
        options.cases, options.runs = ["resnet18:10:32:32"], 3
    options.cases = options.cases or CASES[options.device]
    for case in options.cases:
        if len(case.split(":")) != 4 or not all(n.isdigit() for n in case.split(":")[1:]):
            parser.error(f"--cases {case}: expected backbone:classes:batch:pixels, such as resnet18:100:128:32")
    return options


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    print(f"{'case':26}{'head':26}{'step ms':>10}{'overhead':>10}{'layer ms':>10}{'its share':>11}{'vs. learned':>12}")
    for case in options.cases:
        for r in measure(case, options.device, options.runs):
            rows.append(r)
            times = f"{r.step_ms:10.1f}{100 * r.overhead:8.1f} %{r.layer_ms:10.2f}{100 * r.layer_overhead:9.2f} %"
            times += f"{r.layer_to_learned:11.2f}x"
            print(f"{r.case:26}{r.head:26}{times}", flush=True)
    if options.json:
        report = {"provenance": provenance(options.device), "rows": [asdict(r) for r in rows]}
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
