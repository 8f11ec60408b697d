"""Batches from the device: order, augmentation, processes, resuming."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from nearest_etf.torchport.training.data.batches import Batch
from nearest_etf.torchport.training.data.device_loader import Augmentation, DeviceLoader
from nearest_etf.torchport.training.data.split import DataError, Split

CPU = torch.device("cpu")
RNG = np.random.default_rng(3)
SPLIT = Split(RNG.integers(0, 256, (40, 9, 7, 3)).astype(np.uint8), RNG.integers(0, 4, 40))
FULL = Augmentation(flip=True, crop_padding=2, rotation=20.0)


def raw_loader(batch_size: int = 8, world_size: int = 1) -> DeviceLoader:
    """A loader whose pixels come out as 0…255."""
    return DeviceLoader(SPLIT, batch_size, mean=(0,) * 3, std=(1 / 255,) * 3, device=CPU, world_size=world_size)


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    for (images, labels), (others, other_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def test_pixels_are_normalised_and_in_order() -> None:
    loader = DeviceLoader(SPLIT, 8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), device=CPU)
    images = torch.cat([batch for batch, _ in loader.ordered(batch_size=7)])
    expected = (SPLIT.images / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(images.permute(0, 2, 3, 1).numpy(), expected, atol=1e-6)


def test_an_epoch_shows_every_image_once_in_another_order() -> None:
    loader = raw_loader()
    epochs = [torch.cat([images for images, _ in loader.epoch(e)]) for e in (1, 2)]
    assert not torch.equal(*epochs)
    for shown in epochs:
        rows = shown.permute(0, 2, 3, 1).flatten(1).round().numpy()
        assert {r.tobytes() for r in rows} == {r.tobytes() for r in SPLIT.images.reshape(40, -1).astype(np.float32)}


def test_shifted_and_mirrored_images_are_parts_of_the_padded_ones() -> None:
    split = Split(SPLIT.images[:1].repeat(32, 0), np.arange(32))
    loader = DeviceLoader(split, 32, mean=(0,) * 3, std=(1 / 255,) * 3, device=CPU, augmentation=Augmentation(True, 2))
    padded = np.pad(SPLIT.images[0], ((2, 2), (2, 2), (0, 0)))
    windows = [padded[i : i + 9, j : j + 7] for i in range(5) for j in range(5)]
    possible = {w.tobytes() for w in windows} | {
        np.pad(SPLIT.images[0][:, ::-1], ((2, 2), (2, 2), (0, 0)))[i : i + 9, j : j + 7].tobytes()
        for i in range(5)
        for j in range(5)
    }
    images, _ = next(loader.epoch(1))
    shown = [i.round().byte().permute(1, 2, 0).numpy().tobytes() for i in images]
    assert set(shown) <= possible
    assert len(set(shown)) > 10


def test_rotation_turns_about_the_middle() -> None:
    image = np.zeros((1, 9, 9, 1), np.uint8)
    image[:, 4, 4] = 255
    loader = DeviceLoader(
        Split(image.repeat(2, 0), np.arange(2)),
        2,
        mean=(0,),
        std=(1,),
        device=CPU,
        augmentation=Augmentation(rotation=90),
    )
    images, _ = next(loader.epoch(0))
    assert images[:, 0, 4, 4] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("start", [1, 3])
def test_an_epoch_resumes_at_any_step(start: int) -> None:
    loader = DeviceLoader(SPLIT, 8, mean=(0,) * 3, std=(1,) * 3, device=CPU, augmentation=FULL)
    assert_same(list(loader.epoch(5))[start:], list(loader.epoch(5, start)))


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_out_each_batch(world_size: int) -> None:
    make = partial(DeviceLoader, SPLIT, 8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), device=CPU, stratified=True)
    whole = list(make(augmentation=FULL).epoch(1))
    for rank in range(world_size):
        share = [(images[rank::world_size], labels[rank::world_size]) for images, labels in whole]
        assert_same(share, list(make(augmentation=FULL, rank=rank, world_size=world_size).epoch(1)))


def test_half_of_the_images_are_mirrored_and_keep_their_labels() -> None:
    images = np.zeros((400, 1, 2, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(400) % 200 + 1  # the label, on the left
    split = Split(images, np.arange(400) % 200)
    loader = DeviceLoader(split, 400, mean=(0,), std=(1 / 255,), device=CPU, augmentation=Augmentation(flip=True))
    ((shown, labels),) = loader.epoch(0)
    assert torch.equal(shown.sum((1, 2, 3)).round().long(), labels + 1)
    assert 150 < (shown[:, 0, 0, 1] > 0).sum() < 250
    assert torch.cat([batch for batch, _ in loader.ordered()])[:, 0, 0, 1].max() == 0


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(DataError, match="batch_size is 41, but there are 40 images"):
        raw_loader(batch_size=41)
    with pytest.raises(DataError, match="3 processes do not divide the batch size 8"):
        raw_loader(world_size=3)
    with pytest.raises(DataError, match=r"crop_padding is 8, more than the side of images of \(9, 7\) pixels"):
        DeviceLoader(SPLIT, 8, mean=(0,), std=(1,), device=CPU, augmentation=Augmentation(crop_padding=8))
