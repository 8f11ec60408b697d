"""The official files, if `NEAREST_ETF_DATA` points to them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from nearest_etf.torchport.training.data.download import SOURCES
from nearest_etf.torchport.training.data.load import CLASS_NAMES, load_data

EXPECTED = {  # shape, images per class in training and test data, mean of the training pixels as published
    "mnist": ((28, 28, 1), None, (0.1307,)),
    "fashion-mnist": ((28, 28, 1), (6000, 1000), (0.2860,)),
    "cifar10": ((32, 32, 3), (5000, 1000), (0.4914, 0.4822, 0.4465)),
}


@pytest.mark.real_data
@pytest.mark.parametrize("name", EXPECTED)
def test_official_files(name: str) -> None:
    root = os.environ.get("NEAREST_ETF_DATA", "")
    if not root or not (Path(root) / SOURCES[name].folder).is_dir():
        pytest.skip(f"NEAREST_ETF_DATA points to no {SOURCES[name].folder}")
    data = load_data(name, root=root)
    shape, per_class, mean = EXPECTED[name]
    assert data.image_shape == shape
    assert data.test is not None
    assert len(data.test) == 10000
    assert data.mean == pytest.approx(mean, abs=1e-4)
    if per_class is not None:
        assert set(np.bincount(data.train.labels)) == {per_class[0]}
        assert set(np.bincount(data.test.labels)) == {per_class[1]}


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "file"), [("cifar10", "batches.meta.txt"), ("cifar100", "fine_label_names.txt")])
def test_class_names_are_those_of_the_official_files(name: str, file: str) -> None:
    path = Path(os.environ.get("NEAREST_ETF_DATA", ""), SOURCES[name].folder, file)
    if not path.is_file():
        pytest.skip(f"NEAREST_ETF_DATA points to no {SOURCES[name].folder}/{file}")
    assert tuple(path.read_text(encoding="utf-8").split()) == CLASS_NAMES[name]
