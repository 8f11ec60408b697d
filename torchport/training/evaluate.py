"""One pass over a split in eval mode, with the classifier in force: loss, accuracies and neural collapse."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from ..collapse import NeuralCollapseMeter
from ..heads import Classifier

KEPT_BYTES = 2**31  # features of larger splits are not kept for the figures that need them twice


@torch.no_grad()
def evaluate(model: Classifier, batches: Iterable[tuple[Tensor, Tensor]], part: str) -> dict[str, float]:
    """Flat metrics of a model on labelled batches; under several processes, on the batches of all of them.

    Parameters
    ----------
    model : Classifier
        Put into eval mode for the pass, and back into the mode that it was in.
    batches : iterable of (images (B, C, H, W), labels (B,))
    part : str
        Prefix of the keys: "train" gives `train_loss`, `train_accuracy`, `train_nc1`, …

    Returns
    -------
    dict
        loss (cross-entropy), accuracy and, from ten classes on, top5, all over the samples; and the figures
        of `NeuralCollapse`, taken on the normalised features. Those that need every feature twice are left
        out where the features would take more than 2 GiB.
    """
    was_training, head = model.training, model.head
    model.eval()
    device = head.weight.device
    meter = NeuralCollapseMeter(head.num_classes, head.num_features, device=device)
    totals = torch.zeros(4, dtype=torch.float64, device=device)  # samples, loss, right, right within five
    kept: list[tuple[Tensor, Tensor]] = []
    size = 0
    for images, labels in batches:
        features = model.backbone(images)
        logits, h = head(features), head.normalise(features)
        meter.update(h, labels)
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]  # (B, 5)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        totals += torch.stack([loss.new_tensor(len(labels)), loss, top[:, 0].sum(), top.sum()]).double()
        size += h.numel() * h.element_size()
        kept = [*kept, (h, labels)] if size <= KEPT_BYTES else []
    model.train(was_training)

    fits = totals.new_tensor(size <= KEPT_BYTES)
    meter.all_reduce()
    if dist.is_initialized():
        dist.all_reduce(totals)
        dist.all_reduce(fits, dist.ReduceOp.MIN)
    if fits:
        second = meter.second_pass(head.weight, head.bias)
        for h, labels in kept:
            second.update(h, labels)
        second.all_reduce()
        collapse = second.compute()
    else:
        collapse = meter.compute(head.weight, head.bias)

    count, total_loss, right, right_in_five = totals.tolist()
    metrics = {"loss": total_loss / count, "accuracy": right / count}
    if head.num_classes >= 10:
        metrics["top5"] = right_in_five / count
    figures = {name: value for name, value in asdict(collapse).items() if isinstance(value, float)}
    metrics |= {name: value for name, value in figures.items() if math.isfinite(value)}
    return {f"{part}_{name}": value for name, value in metrics.items()}
