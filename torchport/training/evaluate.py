"""One pass over a split in eval mode, with the classifier in force: loss, accuracies and neural collapse."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

import torch
from torch import Tensor
from torch.nn import functional as F

from ..collapse import NeuralCollapseMeter
from ..heads import Classifier


@torch.no_grad()
def evaluate(model: Classifier, batches: Iterable[tuple[Tensor, Tensor]], part: str) -> dict[str, float]:
    """Flat metrics of a model on labelled batches.

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
        loss (cross-entropy), accuracy and, from ten classes on, top5, all over the samples; and every figure
        of `NeuralCollapse`, taken on the normalised features.
    """
    was_training = model.training
    model.eval()
    head = model.head
    device = next(model.parameters()).device
    meter = NeuralCollapseMeter(head.num_classes, head.num_features, device=device)
    totals = torch.zeros(4, dtype=torch.float64, device=device)  # samples, loss, right, right within five
    for images, labels in batches:
        features = model.backbone(images)
        logits = head(features)
        meter.update(head.normalise(features), labels)
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]  # (B, 5)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        totals += torch.stack([loss.new_tensor(len(labels)), loss, top[:, 0].sum(), top.sum()]).double()
    model.train(was_training)
    count, loss, right, right5 = totals.tolist()
    metrics = {"loss": loss / count, "accuracy": right / count}
    if head.num_classes >= 10:
        metrics["top5"] = right5 / count
    collapse = meter.compute(head.weight, head.bias)
    metrics |= {name: float(value) for name, value in asdict(collapse).items() if isinstance(value, float)}
    return {f"{part}_{name}": value for name, value in metrics.items()}
