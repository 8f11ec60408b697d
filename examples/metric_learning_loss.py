"""The nearest-ETF head as a loss object, as in pytorch-metric-learning: `loss_func(embeddings, labels)`.

    python examples/metric_learning_loss.py

The network has no classifier: the loss pulls its embeddings to the vertices of the simplex nearest to their class
means. The result is measured by distances between embeddings: the share of test images whose nearest training image has
the same class, before and after training. Needs `pip install 'nearest-etf[train]'`.
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

# A head for 16 features and 10 classes, and the loss of its logits.
head = ImplicitETFHead(num_features=16, num_classes=10)


def loss_func(embeddings: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy to the nearest simplex, a scalar. For a LearnedHead, add its parameters to the optimizer."""
    return F.cross_entropy(head(embeddings, labels), labels)


@torch.no_grad()
def precision_at_1() -> float:
    """The share of held-out images whose nearest training image, by the cosine, has the same class."""
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
print(f"precision@1 with random weights {100 * before:.1f} %, after 15 epochs {100 * after:.1f} %")
