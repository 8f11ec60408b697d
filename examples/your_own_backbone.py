"""The nearest-ETF head on your own network, in your own training loop: seconds on a CPU.

    python examples/your_own_backbone.py
    python examples/your_own_backbone.py --backbone torchvision:resnet18     # needs torchvision
    python examples/your_own_backbone.py --backbone timm:convnext_atto       # needs timm

From top to bottom: data, a backbone with the head, a few epochs, saving and loading, prediction.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from nearest_etf.torchport import Classifier, ImplicitETFHead

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--backbone", default="mine", metavar="NAME", help="mine, torchvision:NAME or timm:NAME")
parser.add_argument("--epochs", type=int, default=5)
options = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)

# The data: images (N, C, H, W) and labels (N,); every fifth digit is kept for testing.
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # (1797, 1, 8, 8)
labels = torch.tensor(digits.target)
library, _, name = options.backbone.partition(":")
if library != "mine":  # networks for photographs: three channels, more pixels
    images = F.interpolate(images, size=64).expand(-1, 3, -1, -1)
held_out = torch.arange(len(labels)) % 5 == 0
train_images, train_labels = images[~held_out].to(device), labels[~held_out].to(device)
test_images, test_labels = images[held_out].to(device), labels[held_out].to(device)


def make_backbone() -> nn.Module:
    """A module from images (N, C, H, W) to features (N, d)."""
    network: Any
    if library == "torchvision":
        import torchvision

        network = torchvision.models.get_model(name)  # or with weights="DEFAULT"
        network.fc = nn.Identity()  # removes the classifier of a ResNet; a MobileNet's is network.classifier[-1]
    elif library == "timm":
        import timm

        network = timm.create_model(name, num_classes=0)  # or with pretrained=True
    else:
        convolutions = nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()
        network = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64 * 4 * 4, 128))
    return network


def make_model() -> Classifier[ImplicitETFHead]:
    """Backbone and head. The head needs the number of features d, here from a first forward, and of classes K."""
    backbone = make_backbone().to(device).eval()
    d = backbone(test_images[:2]).shape[1]
    return Classifier(backbone, ImplicitETFHead(num_features=d, num_classes=10)).to(device)


# Training, with any optimizer. ETF heads have no parameters, so only those of the backbone are learned.
model = make_model()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for epoch in range(options.epochs):
    model.train()
    for index in torch.randperm(len(train_labels), device=device).split(64):
        # Under autocast the backbone computes in bfloat16; the head solves for its classifier in float32.
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = model(train_images[index], train_labels[index])  # labels: the head updates its class means
            loss = F.cross_entropy(logits, train_labels[index])
        optimizer.zero_grad()
        loss.backward()  # through the nearest simplex ETF, exactly
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

# A state_dict contains the full state of the head: class means, the last solution, W and b.
with tempfile.TemporaryDirectory() as folder:
    torch.save(model.state_dict(), Path(folder) / "model.pt")
    loaded = make_model()
    loaded.load_state_dict(torch.load(Path(folder) / "model.pt", weights_only=True))

# Prediction: without labels, in eval mode, with the stored classifier W h + b.
with torch.no_grad():
    predicted = loaded.eval()(test_images).argmax(dim=1)
accuracy = float((predicted == test_labels).float().mean())
cosines = (loaded.head.weight @ loaded.head.weight.T)[~torch.eye(10, dtype=torch.bool, device=device)]
print(f"test accuracy {100 * accuracy:.1f} %; cosines between class weights {cosines.min():.4f} … {cosines.max():.4f}")
