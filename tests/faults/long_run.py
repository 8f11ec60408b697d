"""Ten thousand training steps with each head: memory that does not grow, and a classifier that stays what it is.

    python -m tests.faults.long_run                        every scenario, six minutes on one core
    python -m tests.faults.long_run --steps 500 --only absent

Each scenario trains a small network on the embedded digits through the loader, the meter and the progress of the
training system. Noted are the growth of memory per 1,000 steps once caches are warm, the largest entry of |XᵀX − I|
over all steps (X: the variable that is solved for, in float32), how far the classifier at the end is from a simplex ETF
(for K > d+1 from a tight frame), and where a run stops, why.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nearest_etf.common.files import write_file
from nearest_etf.reference import etf_error, frame_geometry
from nearest_etf.torchport import (
    Classifier,
    ClassMeanHead,
    FixedETFHead,
    Head,
    ImplicitETFHead,
    NeuralCollapseMeter,
    TightFrameHead,
)
from nearest_etf.torchport.training.data.device_loader import DeviceLoader
from nearest_etf.torchport.training.data.digits import load_digits
from nearest_etf.torchport.training.data.split import Split
from nearest_etf.torchport.training.progress import Progress
from tests.faults.children import cpu_seconds

RESULTS = Path(__file__).parent / "results" / "long-run.json"
BOUND = 1e-5  # on the largest entry of |XᵀX − I|
GROWTH = 0.1  # megabytes per 1,000 steps: a megabyte in the whole run
WARM = 0.3  # share of the steps after which memory is looked at
D = 24


@dataclass(frozen=True)
class Scenario:
    """A head, and what happens to it between a third and two thirds of the steps."""

    make: Callable[[], Head]
    event: str = ""  # "absent", "collapsed", or a learning rate


@dataclass
class Found:
    """What a scenario has shown."""

    scenario: str
    steps: int
    seconds: float
    megabytes_per_1000_steps: float
    largest_departure: float  # of XᵀX from I
    etf_error: float | None  # of W, for K > d+1 the error of tightness; None for class means, which are neither
    accuracy: float
    stopped: str

    @property
    def held(self) -> bool:
        """Whether it has stayed within every bound."""
        return (
            self.largest_departure <= BOUND
            and (self.etf_error is None or self.etf_error <= 1e-4)
            and (bool(self.stopped) or self.megabytes_per_1000_steps <= GROWTH)
        )


SCENARIOS: dict[str, Scenario] = {
    "implicit": Scenario(lambda: ImplicitETFHead(D, 10)),
    "implicit, gauge-free": Scenario(lambda: ImplicitETFHead(D, 10, formulation="gauge-free")),
    "implicit, products": Scenario(lambda: ImplicitETFHead(D, 10, method="matmul")),
    "tight frame, K > d+1": Scenario(lambda: TightFrameHead(6, 10, norms="tight")),
    "fixed": Scenario(lambda: FixedETFHead(D, 10)),
    "class means": Scenario(lambda: ClassMeanHead(D, 10)),
    "implicit, absent classes": Scenario(lambda: ImplicitETFHead(D, 10), "absent"),
    "implicit by class, absent classes": Scenario(lambda: ImplicitETFHead(D, 10, averaging="class"), "absent"),
    "tight frame, absent classes": Scenario(lambda: TightFrameHead(6, 10, norms="tight"), "absent"),
    "implicit, means at a point": Scenario(lambda: ImplicitETFHead(D, 10), "collapsed"),
    "implicit at δ = 0, means at a point": Scenario(lambda: ImplicitETFHead(D, 10, delta=0.0), "collapsed"),
    "tight frame, means at a point": Scenario(lambda: TightFrameHead(6, 10, norms="tight"), "collapsed"),
    "implicit, learning rate of 1e12": Scenario(lambda: ImplicitETFHead(D, 10), "1e12"),
    "implicit, learning rate of 1e38": Scenario(lambda: ImplicitETFHead(D, 10), "1e38"),
    "tight frame, learning rate of 1e38": Scenario(lambda: TightFrameHead(6, 10, norms="tight"), "1e38"),
}


class Log:
    """What `Progress` asks of a run folder: a log file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log(self, line: str) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def run(name: str, scenario: Scenario, steps: int, seed: int) -> Found:
    """Train, and watch."""
    torch.manual_seed(seed)
    head = scenario.make()
    data = load_digits()
    assert isinstance(data.train, Split)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, head.num_features), nn.ReLU())
    model = Classifier(body, head)
    device = torch.device("cpu")
    loader = DeviceLoader(data.train, 100, mean=data.mean, std=data.std, device=device, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    meter = NeuralCollapseMeter(head.num_features, 10)
    began, sizes, departure, stopped, step = time.monotonic(), list[tuple[int, float]](), 0.0, "", 0
    with tempfile.TemporaryDirectory() as folder:
        log: Any = Log(Path(folder) / "log.txt")
        with Progress(log, steps, 0, quiet=True) as progress:
            for step, (images, labels) in enumerate(batches(loader, steps), 1):
                images, labels = happened(scenario.event, step / steps, images, labels, optimizer)
                try:
                    loss = F.cross_entropy(model(images, labels), labels)
                    optimizer.zero_grad()
                    loss.backward()
                except ValueError as error:
                    stopped = f"step {step}: {error}"
                    break
                optimizer.step()
                with torch.no_grad():
                    meter.update(head.normalise(body(images)).detach(), labels)
                departure = max(departure, departure_of(head))
                progress.advance()
                if step % max(steps // 100, 1) == 0:
                    progress.log(f"step {step}: loss {float(loss.detach()):.4f}")
                    sizes.append((step, megabytes()))
    model.eval()
    with torch.no_grad():
        guesses = [(model(images).argmax(1) == labels).float().mean() for images, labels in loader.ordered()]
    late = np.array([row for row in sizes if row[0] > WARM * steps] or [(0, 0.0), (1, 0.0)])
    growth = float(np.polyfit(late[:, 0], late[:, 1], 1)[0]) * 1000 if len(late) > 1 else 0.0
    return Found(
        name,
        step,
        round(time.monotonic() - began, 1),
        round(growth, 4),
        float(f"{departure:.2e}"),
        error_of(head),
        round(float(torch.stack(guesses).mean()), 4),
        stopped,
    )


def batches(loader: DeviceLoader, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """So many batches, epoch after epoch."""
    epoch = 0
    while True:
        epoch += 1
        for batch in loader.epoch(epoch):
            yield batch
            steps -= 1
            if steps == 0:
                return


def happened(
    event: str, share: float, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer
) -> tuple[Tensor, Tensor]:
    """The batch, and what befalls it in the middle third of the run."""
    if not 1 / 3 < share <= 2 / 3:
        return images, labels
    if event == "absent":
        kept = labels < 5
        return images[kept], labels[kept]
    if event == "collapsed":  # every image the same, so that all features and all class means are one point
        return images[:1].expand_as(images), labels
    if event.startswith("1e"):
        optimizer.param_groups[0]["lr"] = float(event)
    return images, labels


def departure_of(head: Head) -> float:
    """The largest entry of |XᵀX − I|, in float64, of the last solution; 0 where nothing is solved for."""
    last = getattr(head, "_last", None)
    if last is None:
        return 0.0
    X = last[0].variable.double()
    return float((X.mT @ X - torch.eye(X.shape[1], dtype=X.dtype)).abs().max())


def error_of(head: Head) -> float | None:
    """How far W is from a simplex ETF, or from a tight frame where none fits."""
    if isinstance(head, ClassMeanHead):
        return None
    W = head.weight.detach().double().numpy()
    error = etf_error(W) if len(W) <= W.shape[1] + 1 else frame_geometry(W).tightness_error
    return float(f"{error:.2e}")


def megabytes() -> float:
    """Of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", metavar="WORD", help="scenarios with this word in their name")
    parser.add_argument("--to", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of classes that coincide, as they are made to
    found = []
    for name, scenario in SCENARIOS.items():
        if given.only in name:
            found.append(run(name, scenario, given.steps, given.seed))
            print(
                json.dumps(asdict(found[-1]), ensure_ascii=False), "" if found[-1].held else "  <-- beyond its bounds"
            )
    rows = {"seed": given.seed, "cpu_seconds": cpu_seconds(), "scenarios": [asdict(one) for one in found]}
    write_file(given.to, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    return 0 if all(one.held for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
