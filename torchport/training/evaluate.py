"""The evaluation pass: loss, accuracies and neural collapse of a model on one split, with the stored classifier.

`etf-train` runs it after an epoch and `etf-measure` on a checkpoint, so that both report the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ...reference.collapse import MARGIN_EDGES, NeuralCollapse
from ..collapse import NeuralCollapseMeter
from ..collapse_metrics import numerical_rank as rank_per_class
from ..heads import Classifier, Head
from ..heads.solving import SolvingHead
from .confusion import count_pairs
from .data.batches import Loader
from .run.reading import Row

KEPT_BYTES = 2**31  # features of larger splits are not kept for a second pass
TOP5_FROM = 10  # classes; with fewer, top-5 accuracy is close to 1


@dataclass(frozen=True)
class Evaluation:
    """The result of one pass over a split.

    Attributes
    ----------
    figures : dict
        `loss` (cross-entropy) and `accuracy` over the samples, `top5` from ten classes on, and the metrics of
        `NeuralCollapse` on the input of the classifier. Undefined and non-finite metrics are absent.
    class_mean_rows : (K, d) float64 Tensor
        nan for a class without samples.
    margin_histogram : (200,) int64
        Samples per interval of `reference.collapse.MARGIN_EDGES`; zeros where margins were not measured.
    pairs : (n, 3) int64
        True class, predicted class, number of images, as in `Confusion`; this process's images only.
    """

    figures: dict[str, float]
    class_mean_rows: Tensor = field(repr=False)
    margin_histogram: NDArray[np.int64] = field(repr=False)
    pairs: NDArray[np.int64] = field(repr=False, default_factory=lambda: np.empty((0, 3), np.int64))

    def prefixed(self, split: str) -> dict[str, float]:
        """The metrics with the split as prefix, as in a run's rows.

        >>> Evaluation({"loss": 0.5}, torch.zeros(2, 2), np.zeros(200, dtype=np.int64)).prefixed("train")
        {'train_loss': 0.5}
        """
        return {f"{split}_{name}": value for name, value in self.figures.items()}


@torch.no_grad()
def evaluate(
    model: Classifier[Any], batches: Iterable[tuple[Tensor, Tensor]], *, numerical_rank: bool = False
) -> Evaluation:
    """Evaluate a model on labelled batches; under several processes, on the batches of all of them.

    Parameters
    ----------
    model : Classifier
        In eval mode during the pass; its mode is restored.
    batches : iterable of (images (B, C, H, W), labels (B,))
    numerical_rank : bool
        Also compute `numerical_rank`, by an SVD of all features of each class; in a single process only.

    Notes
    -----
    Features are streamed. Up to 2 GiB of them are kept for a second pass; for a larger split `nc4`, the cosine margins
    and `numerical_rank` are left out.

    Examples
    --------
    >>> from nearest_etf.torchport.heads import Classifier, FixedETFHead
    >>> model = Classifier(torch.nn.Flatten(), FixedETFHead(num_features=4, num_classes=2))
    >>> batches = [(torch.eye(4).reshape(4, 1, 2, 2), torch.tensor([0, 1, 0, 1]))]
    >>> evaluate(model, batches).figures["accuracy"]
    0.75
    """
    was_training, head = model.training, model.head
    model.eval()
    device = head.weight.device
    meter = NeuralCollapseMeter(num_features=head.num_features, num_classes=head.num_classes, device=device)
    totals = torch.zeros(4, dtype=torch.float64, device=device)  # samples, loss, right, right within five
    kept: list[tuple[Tensor, Tensor]] = []
    none = torch.empty(0, dtype=torch.int64, device=device)
    guesses = [(none, none)]  # labels and predictions, (B,) each: 16 bytes per sample
    size = 0
    for images, labels in batches:
        features = model.backbone(images)
        logits, h = head(features), head.normalise(features)
        meter.update(h, labels)
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
        top = ranked == labels[:, None]  # (B, 5)
        guesses.append((labels, ranked[:, 0]))
        loss = F.cross_entropy(logits, labels, reduction="sum")
        totals += torch.stack([loss.new_tensor(len(labels)), loss, top[:, 0].sum(), top.sum()]).double()
        size += h.numel() * h.element_size()
        kept.append((h, labels))
        if size > KEPT_BYTES:
            kept.clear()
    model.train(was_training)

    fits = totals.new_tensor(size <= KEPT_BYTES)
    meter.all_reduce()
    if dist.is_initialized():
        dist.all_reduce(totals)
        dist.all_reduce(fits, dist.ReduceOp.MIN)
    collapse = _collapse(meter, head.weight, head.bias, kept if fits else None)
    if collapse is not None and numerical_rank and fits and not _several_processes():
        features, labels = (torch.cat(tensors) for tensors in zip(*kept, strict=True))
        collapse = replace(collapse, numerical_rank=rank_per_class(features, labels))

    count, total_loss, right, right_in_five = totals.tolist()
    figures = {"loss": total_loss / count, "accuracy": right / count}
    if head.num_classes >= TOP5_FROM:
        figures["top5"] = right_in_five / count
    histogram = np.zeros(len(MARGIN_EDGES) - 1, dtype=np.int64)
    if collapse is not None:
        figures |= {name: value for name, value in asdict(collapse).items() if isinstance(value, float)}
        histogram = collapse.margin_histogram
    figures = {name: value for name, value in figures.items() if math.isfinite(value)}
    rows = torch.where(meter.counts[:, None] > 0, meter.class_mean_rows(), torch.nan)
    true, predicted = (torch.cat(tensors).cpu().numpy() for tensors in zip(*guesses, strict=True))
    return Evaluation(figures, rows, histogram, count_pairs(true, predicted, head.num_classes))


def evaluate_splits(model: Classifier[Any], loaders: Mapping[str, Loader]) -> Row:
    """Reported metrics on every split, as `train_loss`, `val_accuracy`, …"""
    row: Row = {}
    for name, loader in loaders.items():
        row |= evaluate(model, loader.ordered()).prefixed(name)
    return row


def solver_health(head: Head) -> Row:
    """Solver diagnostics of the last step of a head that solves, as `solver_gap`, `solver_condition`, …"""
    health = head.solution_health() if isinstance(head, SolvingHead) else {}
    return {f"solver_{name}": value for name, value in health.items() if math.isfinite(value)}


def _collapse(
    meter: NeuralCollapseMeter, weight: Tensor, bias: Tensor, kept: list[tuple[Tensor, Tensor]] | None
) -> NeuralCollapse | None:
    """Neural collapse from both passes, or from the first alone if no features were kept; None if undefined."""
    try:
        if kept is None:
            return meter.compute(weight, bias)
        second = meter.second_pass(weight, bias)
    except ValueError:  # fewer than two classes, a zero classifier, or features that are not finite
        return None
    for h, labels in kept:
        second.update(h, labels)
    second.all_reduce()
    return second.compute()


def _several_processes() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1
