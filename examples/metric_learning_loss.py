"""The nearest-ETF head as a loss object, as in pytorch-metric-learning: `loss_func(embeddings, labels)`.

    python examples/metric_learning_loss.py

The embedding network knows nothing of classes; the loss pulls its embeddings to the vertices of the simplex nearest to
their class means. What counts afterwards are distances between embeddings: here the share of test images whose nearest
training image is of their class, before and after. Needs `pip install 'nearest-etf[train]'`.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from nearest_etf.torchport import ImplicitETFHead

torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16, torch.tensor(digits.target)
held_out = torch.arange(len(labels)) % 5 == 0
network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 16))

# The three lines: a head of 16 features and 10 classes, and the loss of its logits.
head = ImplicitETFHead(num_features=16, num_classes=10)


def loss_func(embeddings: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy to the nearest simplex, a scalar; a LearnedHead's parameters would go to the optimizer too."""
    return F.cross_entropy(head(embeddings, labels), labels)


@torch.no_grad()
def precision_at_1() -> float:
    """The share of held-out images whose nearest training image, by the cosine, is of their class."""
    embeddings = F.normalize(network(images), dim=1)
    nearest = (embeddings[held_out] @ embeddings[~held_out].T).argmax(1)
    return float((labels[~held_out][nearest] == labels[held_out]).float().mean())


before = precision_at_1()
optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
for _ in range(15):
    for rows in torch.arange(len(labels))[~held_out][torch.randperm(int((~held_out).sum()))].split(64):
        loss = loss_func(network(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
after = precision_at_1()
print(f"precision@1 with random weights {before:.1%}, after 15 epochs {after:.1%}")
