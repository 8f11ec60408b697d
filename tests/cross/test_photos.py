"""Photos of every size and mode: `etf-predict` agrees with PyTorch's evaluation on the same files.

Pillow writes seeded images in all modes, formats, orientations and shapes. The training side reads them by its own
loader, also in worker processes, and runs the live model; the other side is the command, with onnxruntime.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from nearest_etf.common.photo import PhotoTransform
from nearest_etf.export import export_onnx
from nearest_etf.export.etf_export import main as export
from nearest_etf.export.etf_predict import main
from nearest_etf.torchport import Classifier, FixedETFHead
from nearest_etf.torchport.training.data.folder_loader import FolderLoader
from nearest_etf.torchport.training.data.folder_split import FolderSplit
from nearest_etf.torchport.training.run.settings import Settings
from nearest_etf.torchport.training.train import train

MEAN, STD = (0.5, 0.4, 0.6), (0.2, 0.3, 0.25)
TRANSFORMS = [
    PhotoTransform(16, 16),
    PhotoTransform(12, 20, crop=0.95, interpolation="bicubic"),
    PhotoTransform(20, 12, channels=1, crop=1.0, crop_mode="squash", interpolation="lanczos"),
]
FORMATS = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "jpg": ("L", "RGB", "CMYK"),
    "tif": ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16"),
    "webp": ("RGB", "RGBA"),
    "gif": ("L", "P"),
    "bmp": ("1", "L", "P", "RGB"),
    "ppm": ("RGB",),
    "pgm": ("L", "I;16"),
}


def make_photos(folder: Path, seed: int) -> list[Path]:
    """One image of every format and mode, in random sizes, with EXIF orientations and transparent colours."""
    rng = np.random.default_rng(seed)
    paths: list[Path] = []
    for suffix, modes in FORMATS.items():
        for mode in modes:
            height, width = (int(side) for side in rng.integers(1, 60, 2))
            pixels = rng.integers(0, 256, (height, width, 4), np.uint8)
            if mode == "I;16":
                image = Image.fromarray(rng.integers(0, 65536, (height, width)).astype(np.uint16))
            else:
                image = Image.fromarray(pixels if mode == "RGBA" else pixels[..., :3]).convert(mode)
            options: dict[str, Any] = {}
            if suffix in ("png", "jpg", "tif", "webp"):
                options["exif"] = Image.Exif()
                options["exif"][0x0112] = int(rng.integers(1, 9))
            if suffix in ("png", "gif") and mode in ("L", "P") and rng.random() < 0.7:
                options["transparency"] = int(rng.integers(10))
            if suffix in ("png", "gif", "tif") and mode == "P" and rng.random() < 0.5:
                options |= {"save_all": True, "append_images": [image.rotate(180)]}
            paths.append(folder / f"{len(paths):02d}-{mode.replace(';', '')}.{suffix}")
            image.save(paths[-1], **options)  # type: ignore[arg-type]
    return paths


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.interpolation)
@pytest.mark.parametrize("seed", range(3))
def test_predictions_agree_in_training_and_in_deployment(
    tmp_path: Path, transform: PhotoTransform, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = make_photos(folder, seed)
    (folder / "broken.jpg").write_bytes(paths[8].read_bytes()[:100])
    channels = transform.channels
    torch.manual_seed(seed)
    backbone = nn.Sequential(nn.Conv2d(channels, 8, 3, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(3), nn.Flatten())
    model = Classifier(backbone, FixedETFHead(72, 5)).eval()

    split = FolderSplit(folder, (*paths, folder / "broken.jpg"), np.zeros(len(paths) + 1, np.int64), transform)
    mean, std = MEAN[:channels], STD[:channels]
    loader = FolderLoader(split, 1, mean=mean, std=std, device=torch.device("cpu"), workers=seed % 2)
    with pytest.warns(UserWarning, match="1 of 31 image files cannot be read"):
        images = torch.cat([images for images, _ in loader.ordered(7)])
    with torch.no_grad():
        features = backbone(images)
        logits = model.head(features)
    probabilities = logits.softmax(1).numpy()
    cosines = torch.cosine_similarity(features[:, None], model.head.weight[None], dim=2).numpy()

    file = tmp_path / "model.onnx"
    metadata = {"transform": transform.to_dict()}
    export_onnx(model, file, image_shape=transform.shape, mean=mean, std=std, metadata=metadata)
    assert main([str(file), str(folder), "--top-k", "5", "--format", "jsonl", "--batch-size", "4"]) == 1
    out, err = capsys.readouterr()
    assert "1 of 31 images was left out" in err
    found = [json.loads(line) for line in out.splitlines()]
    assert [Path(image["file"]) for image in found] == paths
    assert len(paths) == 30
    for i, image in enumerate(found):
        labels = [entry["label"] for entry in image["classes"]]
        assert probabilities[i, labels[0]] >= probabilities[i].max() - 2e-6
        for key, expected in (("probability", probabilities), ("cosine", cosines)):
            given = [entry[key] for entry in image["classes"]]
            np.testing.assert_allclose(given, expected[i, labels], rtol=0, atol=2e-6, err_msg=image["file"])


def test_the_exported_file_has_the_accuracy_that_training_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, rng = tmp_path / "photos", np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 15)):
        for k, name in enumerate(("bright", "dark")):
            (photos / split / name).mkdir(parents=True)
            for i in range(count):
                height, width = (int(side) for side in rng.integers(8, 50, 2))
                pixels = np.clip(rng.normal(140 - 30 * k, 60, (height, width, 3)), 0, 255).astype(np.uint8)
                mode, suffix = [("RGB", "jpg"), ("CMYK", "jpg"), ("RGBA", "png"), ("L", "png")][i % 4]
                Image.fromarray(pixels).convert(mode).save(photos / split / name / f"{i}.{suffix}")
        (photos / split / "dark" / "broken.jpg").write_bytes(b"no image")
    settings = Settings(
        data=str(photos),
        image_size=12,
        backbone="small-cnn",
        num_features=8,
        batch_size=8,
        epochs=2,
        workers=0,
        lr=0.02,
    )
    with pytest.warns(UserWarning, match="1 of 31 image files cannot be read, and it is left out"):
        train(settings, tmp_path / "run", device="cpu", quiet=True)

    file = tmp_path / "model.onnx"
    assert export([str(tmp_path / "run"), "--to", str(file), "--samples", "40", "--quiet"]) == 0
    metadata = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    right = round(30 * metadata["val_accuracy"])
    assert metadata["val_accuracy"] == pytest.approx(right / 30)
    assert 15 < right < 30, "the accuracy is not trivial"
    assert main([str(file), str(photos / "val"), "--score"]) == 1
    assert f"{right} of 30 right" in capsys.readouterr().err
    samples = tmp_path / "model-samples"  # copies of the photos, preprocessed like any photo
    assert sorted(path.suffix for path in samples.iterdir()) == [".jpg"] * 16 + [".png"] * 14
    assert main([str(file), str(samples), "--score"]) == 0
    assert f"{right} of 30 right" in capsys.readouterr().err
