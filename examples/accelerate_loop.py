"""The nearest-ETF head in a loop with Accelerate: seconds on a CPU.

    python examples/accelerate_loop.py
    accelerate launch --num_processes 2 examples/accelerate_loop.py --epochs 6

The loop has `prepare`, gradient accumulation, bfloat16, and a checkpoint from which training continues with the same
bits. The head needs only the labels: model(images, labels). Needs `pip install 'nearest-etf[train]' accelerate`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from nearest_etf.torchport import Classifier, ImplicitETFHead
from nearest_etf.torchport.integrations.accelerate import WarmStarts

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--output", type=Path, default=None, metavar="DIR", help="for checkpoints [a temporary folder]")
options = parser.parse_args()
folder = options.output or Path(tempfile.mkdtemp())

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # (1797, 1, 8, 8)
labels = torch.tensor(digits.target)
held_out = torch.arange(len(labels)) % 5 == 0


class Training:
    """Accelerator, and prepared model, optimizer and batches."""

    def __init__(self) -> None:
        on_cpu = not torch.cuda.is_available()
        self.accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2, cpu=on_cpu)
        set_seed(0)
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 64))
        model = Classifier(backbone, ImplicitETFHead(num_features=64, num_classes=10))
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        batches = DataLoader(TensorDataset(images[~held_out], labels[~held_out]), 32, shuffle=True)
        self.accelerator.register_for_checkpointing(WarmStarts(model))
        self.model, self.optimizer, self.batches = self.accelerator.prepare(model, optimizer, batches)

    def epoch(self) -> None:
        """Every microbatch updates the class means; every second one is a step of the optimizer."""
        self.model.train()
        for x, y in self.batches:
            with self.accelerator.accumulate(self.model):
                loss = F.cross_entropy(self.model(x, y), y)
                self.accelerator.backward(loss)
                self.optimizer.step()
                self.optimizer.zero_grad()


straight = Training()
straight.epoch()
straight.accelerator.save_state(str(folder / "after-one"))
for _ in range(1, options.epochs):
    straight.epoch()

with torch.no_grad():
    predicted = straight.model.eval()(images[held_out].to(straight.accelerator.device)).argmax(1).cpu()
accuracy = float((predicted == labels[held_out]).float().mean())
straight.accelerator.print(f"test accuracy {100 * accuracy:.1f} %")

# A new model, with the state of the first training after one epoch.
resumed = Training()
resumed.accelerator.load_state(str(folder / "after-one"))
for _ in range(1, options.epochs):
    resumed.epoch()
states = [made.accelerator.unwrap_model(made.model).state_dict() for made in (straight, resumed)]
same = all(torch.equal(states[0][name], states[1][name]) for name in states[0])
straight.accelerator.print(f"resumed to the same bits: {same}")
