"""`etf-measure`: every metric of a run's checkpoints, on training and test data, by both passes of the meter.

    etf-measure runs/digits                          # a table: best and last checkpoint, train and test
    etf-measure runs/digits --checkpoint last --json -

One forward pass per split: its features (N, d) stay in memory. What a picture needs beyond the figures
(class means, W, margins, singular values) is kept in the run folder as `measured-CHECKPOINT.npz`, for
etf-report.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ...reference.collapse import NeuralCollapse
from ..collapse import NeuralCollapseMeter
from ..collapse_metrics import numerical_rank
from ..heads import Classifier, ImplicitETFHead
from ..procrustes import solve
from .run.checkpoint import load_checkpoint, load_model

PARTS = ("train", "test")
CHECKPOINTS = ("best", "last")
CHUNK = 4096

EXAMPLES = """examples:
  etf-measure runs/digits                             the best and the last checkpoint
  etf-measure runs/digits --checkpoint last --json -  one of them, as JSON on stdout
"""


@dataclass(frozen=True)
class Measurement:
    """A checkpoint, measured.

    Attributes
    ----------
    epoch : int
        Epochs that the checkpoint was trained for.
    figures : dict
        Flat: `train_accuracy`, `test_nc1`, …
    arrays : dict
        `weight` (K, d); per part `…_means` (K, d), nan for a class without samples, and `…_margins` (200,),
        the histogram of cosine margins; for an implicit head `singular_values` (m,) of A, descending.
    """

    epoch: int
    figures: dict[str, float]
    arrays: dict[str, NDArray[Any]]


@torch.no_grad()
def measure_split(
    model: Classifier, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[dict[str, float], Tensor, NDArray[Any]]:
    """All figures of a model on labelled batches, its class means (K, d) and the histogram of cosine margins."""
    head = model.head
    collected = [(head.normalise(model.backbone(images)), labels) for images, labels in batches]
    features, labels = (torch.cat(parts) for parts in zip(*collected, strict=True))
    logits = torch.cat([F.linear(h, head.weight, head.bias) for h in features.split(CHUNK)])

    meter = NeuralCollapseMeter(head.num_classes, head.num_features, device=features.device)
    meter.update(features, labels)
    second = meter.second_pass(head.weight, head.bias)
    second.update(features, labels)
    collapse = replace(second.compute(), numerical_rank=numerical_rank(features, labels))

    ranked = logits.topk(min(5, head.num_classes), dim=1).indices == labels[:, None]  # (N, 5)
    figures = {
        "loss": float(F.cross_entropy(logits, labels)),
        "accuracy": float(ranked[:, 0].double().mean()),
        "top5": float(ranked.any(1).double().mean()),
    }
    figures |= scalar_figures(collapse)
    means = torch.where(meter.counts[:, None] > 0, meter.class_means(), torch.nan)
    return figures, means, collapse.margin_histogram


def scalar_figures(collapse: NeuralCollapse) -> dict[str, float]:
    """The figures of `NeuralCollapse` that are numbers."""
    return {name: value for name, value in asdict(collapse).items() if isinstance(value, float)}


def measure(run: str | Path, checkpoint: str = "best", *, data_dir: str | Path | None = None) -> Measurement:
    """Measure a checkpoint of a run on the data that it was trained on, and on its test data.

    Parameters
    ----------
    run : path
        A run folder of `etf-train`.
    checkpoint : {"best", "last"}
    data_dir : path, optional
        Where data sets lie, as for `etf-train`.

    Raises
    ------
    CheckpointError, SettingsError, DataError
        If the run, its checkpoint or its data are missing or damaged.
    """
    from .data import make_loader, training_data

    model, settings = load_model(run, checkpoint)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    data = training_data(settings, data_dir)
    figures: dict[str, float] = {}
    arrays: dict[str, NDArray[Any]] = {"weight": model.head.weight.detach().cpu().numpy()}
    for part, split in zip(PARTS, (data.train, data.test), strict=True):
        loader = make_loader(split, data, settings, device=device)
        part_figures, means, margins = measure_split(model, loader.ordered())
        figures |= {f"{part}_{name}": value for name, value in part_figures.items()}
        arrays |= {f"{part}_means": means.cpu().numpy(), f"{part}_margins": margins}
    if isinstance(model.head, ImplicitETFHead):
        arrays["singular_values"] = singular_values(model.head)
    epoch = int(load_checkpoint(Path(run) / f"{checkpoint}.pt")["epoch"]) - 1
    return Measurement(epoch, figures, arrays)


@torch.no_grad()
def singular_values(head: ImplicitETFHead) -> NDArray[np.float64]:
    """Singular values of the A that the head's next solve would decompose, descending, (m,)."""
    H = head.means.means.double()
    norm = H.norm().clamp_min(torch.finfo(H.dtype).tiny)
    solution = solve(H / norm, head.frame.double(), head.delta, method="svd", formulation=head.formulation)
    return torch.linalg.svdvals(solution.linear_term).cpu().numpy()


def saved_measurement(run: str | Path, checkpoint: str) -> Measurement | None:
    """What `save_measurement` left in the run folder, unless the checkpoint has changed since."""
    path, source = _measured_file(run, checkpoint), Path(run) / f"{checkpoint}.pt"
    if not path.is_file() or not source.is_file() or path.stat().st_mtime_ns < source.stat().st_mtime_ns:
        return None
    with np.load(path) as saved:
        arrays = dict(saved)
    epoch, figures = int(arrays.pop("epoch")), json.loads(str(arrays.pop("figures")))
    return Measurement(epoch, figures, arrays)


def save_measurement(run: str | Path, checkpoint: str, measurement: Measurement) -> None:
    """Keep a measurement in the run folder; the file appears whole or not at all."""
    path = _measured_file(run, checkpoint)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            allow_pickle=False,
            epoch=measurement.epoch,
            figures=json.dumps(measurement.figures),
            **measurement.arrays,
        )
    os.replace(temporary, path)


def _measured_file(run: str | Path, checkpoint: str) -> Path:
    return Path(run) / f"measured-{checkpoint}.npz"


def table(measurements: dict[str, Measurement]) -> str:
    """Figures as rows, checkpoints and parts as columns.

    >>> print(table({"last": Measurement(3, {"train_nc1": 0.125, "test_nc1": 2.0}, {})}))
               last (epoch 3)
             train       test
    nc1      0.125          2
    """
    names = list(dict.fromkeys(key.split("_", 1)[1] for m in measurements.values() for key in m.figures))
    width = max(map(len, names))
    heading = "".join(f"{f'{name} (epoch {m.epoch})':>22}" for name, m in measurements.items())
    lines = [
        " " * width + heading,
        " " * width + "".join(f"{part:>11}" for _ in measurements for part in PARTS),
    ]
    for name in names:
        values = [m.figures.get(f"{part}_{name}", float("nan")) for m in measurements.values() for part in PARTS]
        lines.append(f"{name:<{width}}" + "".join(f"{value:11.4g}" for value in values))
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 on success, 2 if a run cannot be measured."""
    parser = _Parser(
        prog="etf-measure",
        description="Every metric of neural collapse of a run's checkpoints, on its training and test data.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="run folder of etf-train")
    parser.add_argument("--checkpoint", choices=CHECKPOINTS, help="only this one (default: both)")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - for stdout, without the table")
    parser.add_argument("--data-dir", metavar="DIR", help="where data sets lie, as for etf-train")
    options = parser.parse_args(arguments)

    measurements = {}
    try:
        for checkpoint in [options.checkpoint] if options.checkpoint else CHECKPOINTS:
            measurements[checkpoint] = measure(options.run, checkpoint, data_dir=options.data_dir)
            save_measurement(options.run, checkpoint, measurements[checkpoint])
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if options.json != "-":
        print(table(measurements))
    if options.json:
        figures = {name: {"epoch": m.epoch, **m.figures} for name, m in measurements.items()}
        text = json.dumps(figures, indent=2) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            Path(options.json).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
