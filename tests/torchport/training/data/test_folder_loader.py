"""Batches of image files: the same by any number of workers, and one line about a broken file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nearest_etf.common.photo import PhotoError
from nearest_etf.torchport.training.data.batches import Batch
from nearest_etf.torchport.training.data.folder_loader import FolderLoader
from nearest_etf.torchport.training.data.folder_split import FolderSplit
from nearest_etf.torchport.training.data.load import load_data

CPU = torch.device("cpu")


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    for (images, labels), (others, other_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_folder_batches_do_not_depend_on_workers(tmp_path: Path, workers: int) -> None:
    for part in ("train", "val"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                noise = np.random.default_rng(i).integers(0, 256, (20, 30, 3)).astype(np.uint8)
                Image.fromarray(noise).save(tmp_path / part / name / f"{i}.png")
    data = load_data(str(tmp_path), image_size=12)

    assert isinstance(data.train, FolderSplit)
    make = partial(FolderLoader, data.train, 2, mean=data.mean, std=data.std, device=CPU, flip=True)
    expected = list(make(workers=0).epoch(2))
    assert expected[0][0].shape == (2, 3, 12, 12)
    loader = make(workers=workers)
    begun = loader.epoch(1)
    next(begun)
    assert_same(expected[1:], list(loader.epoch(2, start=1)))  # by the same workers, whatever they had begun
    assert_same(expected, list(loader.epoch(2)))
    assert sum(len(labels) for _, labels in loader.ordered()) == 6
    with pytest.raises(RuntimeError, match="one pass at a time"):
        next(begun)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_one_line_from_workers_too(tmp_path: Path, workers: int) -> None:
    (tmp_path / "0.png").write_bytes(b"no image")
    split = FolderSplit(tmp_path, (tmp_path / "0.png",), np.zeros(1, np.int64), 8)
    loader = FolderLoader(split, 1, mean=(0,), std=(1,), device=CPU, workers=workers)
    with pytest.raises(PhotoError, match=r"^/.*0\.png cannot be read [^\n]*$"):
        list(loader.ordered())
