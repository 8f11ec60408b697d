"""Batches of image files: the same by any number of workers, through whatever memory, and what broken files come to."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from nearest_etf.common.photo import PhotoError, PhotoTransform
from nearest_etf.torchport.training.data import folder_loader
from nearest_etf.torchport.training.data.batches import Batch
from nearest_etf.torchport.training.data.folder_loader import FolderLoader, shared_memory_holds
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


@pytest.fixture
def split(tmp_path: Path) -> FolderSplit:
    """Two classes of five images, i of which has the level 20 i; the third and the last one are broken."""
    paths = [tmp_path / f"{i}.png" for i in range(10)]
    for i, path in enumerate(paths):
        Image.new("RGB", (9, 9), (20 * i,) * 3).save(path)
    for i in (2, 9):
        paths[i].write_bytes(b"no image")
    return FolderSplit(tmp_path, tuple(paths), np.repeat([0, 1], 5), PhotoTransform(8, 8))


def loader_of(split: FolderSplit, **options: object) -> FolderLoader:
    return FolderLoader(split, 5, mean=(0,), std=(1 / 255,), device=CPU, **options)  # type: ignore[arg-type]


def levels(batches: list[Batch]) -> list[int]:
    return [round(float(image.mean()) / 20) for images, _ in batches for image in images]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_leaves_broken_files_out_and_reports_them_once(split: FolderSplit, workers: int) -> None:
    loader = loader_of(split, workers=workers)
    with pytest.warns(
        UserWarning, match=r"2 of 10 image files cannot be read, and they are left out: .*2\.png.*9\.png"
    ):
        batches = list(loader.ordered(4))
    assert levels(batches) == [0, 1, 3, 4, 5, 6, 7, 8]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0] * 4 + [1] * 4
    assert list(loader.broken) == [2, 9]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert levels(list(loader.ordered(4))) == levels(batches)


def test_a_batch_of_broken_files_alone_is_no_batch(split: FolderSplit) -> None:
    with pytest.warns(UserWarning, match="cannot be read"):
        assert [len(labels) for _, labels in loader_of(split, workers=0).ordered(1)] == [1] * 8


@pytest.mark.parametrize("workers", [0, 2])
def test_training_takes_the_next_image_of_the_class(split: FolderSplit, workers: int) -> None:
    loader = loader_of(split, workers=workers, scale=1.0)
    with pytest.warns(UserWarning, match=r"2 of 10 image files cannot be read, and others of their classes take"):
        batches = list(loader.epoch(1))
    assert [len(labels) for _, labels in batches] == [5, 5], "batches keep their size"
    assert sorted(levels(batches)) == [0, 1, 3, 3, 4, 5, 5, 6, 7, 8], "3 for 2, and 5 for 9"
    for images, labels in batches:
        assert [level >= 5 for level in levels([(images, labels)])] == labels.bool().tolist()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("training", [False, True])
def test_a_strict_loader_ends_at_a_broken_file_in_one_line(split: FolderSplit, workers: int, training: bool) -> None:
    loader = loader_of(split, workers=workers, strict=True)
    with pytest.raises(PhotoError, match=r"^/.*\.png cannot be read [^\n]*$"):
        list(loader.epoch(1) if training else loader.ordered())


def test_missing_data_end_a_run(split: FolderSplit) -> None:
    loader = loader_of(split, workers=0)
    for path in split.paths[:5]:
        path.unlink(missing_ok=True)
    with pytest.raises(PhotoError, match=r"/\d\.png is missing: expected an image$"):
        list(loader.epoch(1))
    for path in split.paths[5:]:
        path.unlink(missing_ok=True)
    with pytest.raises(PhotoError, match=r"none of the images can be read: .*is missing: expected an image$"):
        list(loader.ordered())


def test_batches_are_the_same_with_little_shared_memory(split: FolderSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = split.take(np.array([0, 1, 3, 4, 5, 6, 7, 8]))
    expected = [list(loader_of(whole, workers=2).epoch(1)), list(loader_of(whole, workers=2).ordered(3))]
    space = SimpleNamespace(free=2**40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: space)
    assert loader_of(whole)._loader.collate_fn is folder_loader._to_tensors
    space.free = 64 * 2**10  # 250 images of an evaluation, 8 × 8 × 3, in five places, twice, take 480 kB
    loader = loader_of(whole, workers=2)
    assert isinstance(loader._loader.collate_fn([(np.zeros((8, 8, 3), np.uint8), 0, {})])[0], np.ndarray)
    assert_same(list(loader.epoch(1)), expected[0])
    assert_same(list(loader.ordered(3)), expected[1])


def test_shared_memory_that_is_not_a_folder_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_loader, "SHARED_MEMORY", "/nowhere")
    assert shared_memory_holds(2**50)


def test_a_process_ends_while_a_loader_has_workers(split: FolderSplit) -> None:
    script = f"""
import numpy, torch
from pathlib import Path
from nearest_etf.common.photo import PhotoTransform
from nearest_etf.torchport.training.data.folder_loader import FolderLoader
from nearest_etf.torchport.training.data.folder_split import FolderSplit
paths = (Path({str(split.paths[0])!r}),) * 40
split = FolderSplit(Path({str(split.root)!r}), paths, numpy.zeros(40, int), PhotoTransform(8, 8))
loader = FolderLoader(split, 4, mean=(0,), std=(1,), device=torch.device("cpu"), workers=2)
batches = loader.ordered(4)
print(len(next(batches)[1]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")
