"""The nearest-ETF head on a vision transformer, in the Trainer of Transformers: seconds on a CPU.

    python examples/transformers_image.py
    python examples/transformers_image.py --steps 200

The network is small and has random weights. To use a pretrained one, replace the configuration by
AutoConfig.from_pretrained(NAME), and set model.backbone = AutoModel.from_pretrained(NAME).
Needs `pip install 'nearest-etf[train]' transformers accelerate`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig

from nearest_etf.torchport.integrations.transformers import ETFConfig, ETFForClassification

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=150)
parser.add_argument("--output", type=Path, default=None, metavar="DIR", help="for the model [a temporary folder]")
options = parser.parse_args()
folder = options.output or Path(tempfile.mkdtemp())
torch.manual_seed(0)


class Digits(Dataset[dict[str, torch.Tensor]]):
    """Images and labels under the names of the model's arguments."""

    def __init__(self, held_out: bool) -> None:
        digits = load_digits()
        chosen = (np.arange(len(digits.target)) % 5 == 0) == held_out
        self.images = torch.tensor(digits.images[chosen], dtype=torch.float32)[:, None] / 16  # (N, 1, 8, 8)
        self.labels = torch.tensor(digits.target[chosen])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}


vit = ViTConfig(
    image_size=8,
    patch_size=2,
    num_channels=1,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
)
model = ETFForClassification(ETFConfig(vit, num_labels=10, head="implicit", pooling="first"))


def accuracy_of(found: Any) -> dict[str, float]:
    """The accuracy of logits (N, K) for labels (N,)."""
    return {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())}


settings = TrainingArguments(
    output_dir=str(folder),
    max_steps=options.steps,
    per_device_train_batch_size=64,
    per_device_eval_batch_size=360,
    learning_rate=3e-3,
    lr_scheduler_type="cosine",
    report_to=[],
    disable_tqdm=True,
    logging_steps=options.steps,
    save_strategy="no",
    use_cpu=not torch.cuda.is_available(),
)
trainer = Trainer(
    model,
    settings,
    train_dataset=Digits(held_out=False),
    eval_dataset=Digits(held_out=True),
    compute_metrics=accuracy_of,
)
trainer.train()
accuracy = trainer.evaluate()["eval_accuracy"]

# config.json and model.safetensors, with the full state of the head for further training.
model.save_pretrained(folder)
loaded = ETFForClassification.from_pretrained(folder)
images = Digits(held_out=True).images
with torch.no_grad():
    same = torch.equal(loaded.eval()(pixel_values=images).logits, model.cpu().eval()(pixel_values=images).logits)
print(
    f"accuracy {100 * accuracy:.1f} % after {int(loaded.head.running.steps)} steps; loaded to the same logits: {same}"
)
