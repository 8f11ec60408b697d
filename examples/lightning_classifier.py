"""The nearest-ETF head in Lightning: seconds on a CPU.

    python examples/lightning_classifier.py
    python examples/lightning_classifier.py --epochs 20

`ETFClassifier` is a LightningModule with a backbone and a head. The callback logs the metrics of neural collapse and
solver diagnostics beside the loss. It also works with your own LightningModule: name the classifier, as in
NeuralCollapseCallback("model.fc"). Needs `pip install 'nearest-etf[train]' lightning`.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from nearest_etf.torchport import ImplicitETFHead
from nearest_etf.torchport.integrations.lightning import ETFClassifier, NeuralCollapseCallback

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=6, help="an even number")
parser.add_argument("--output", type=Path, default=None, metavar="DIR", help="for checkpoints [a temporary folder]")
options = parser.parse_args()
folder = options.output or Path(tempfile.mkdtemp())
warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data are in memory

# The data: images (N, C, H, W) and labels (N,); every fifth digit is kept for validation.
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16  # (1797, 1, 8, 8)
everything = TensorDataset(images, torch.tensor(digits.target))
training = Subset(everything, [i for i in range(len(images)) if i % 5])
validation = Subset(everything, [i for i in range(len(images)) if i % 5 == 0])


def make_module() -> ETFClassifier:
    """Backbone and head. ETF heads have no parameters, so only those of the backbone are learned."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    return ETFClassifier(backbone, ImplicitETFHead(num_features=64, num_classes=10))


def fit(epochs: int, resume: Path | None = None) -> tuple[ETFClassifier, Trainer]:
    """Train, or resume, up to this number of epochs."""
    module = make_module()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[NeuralCollapseCallback()],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(training, 64, shuffle=True), DataLoader(validation, 360), ckpt_path=resume)
    return module, trainer


straight, trained = fit(options.epochs)
figures = {name: float(value) for name, value in trained.callback_metrics.items()}
for name in ("val_accuracy", "val_nc1", "val_nc2", "val_nc3", "val_nc4", "val_etf_distance_between", "solver_gap"):
    print(f"{name:26} {figures[name]:.3g}")

# Half of the epochs, a checkpoint, and the other half: the same bits.
first_half = fit(options.epochs // 2)[1]
first_half.save_checkpoint(folder / "half.ckpt")
resumed = fit(options.epochs, folder / "half.ckpt")[0]
same = all(
    torch.equal(a, b) for a, b in zip(straight.state_dict().values(), resumed.state_dict().values(), strict=True)
)
print(f"resumed to the same bits: {same}")
