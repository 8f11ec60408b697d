"""mixup, cutmix and colour jitter against their explicit formulas, and equal when resumed at any step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from nearest_etf.torchport.training.data.images import ImageData
from nearest_etf.torchport.training.data.mixing import COLOUR, MIXING, Mixing, box
from nearest_etf.torchport.training.data.split import Split
from nearest_etf.torchport.training.run.settings import Settings, SettingsError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def data(num_classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> ImageData:
    train = Split(np.zeros((num_classes, 12, 10, len(mean)), np.uint8), np.arange(num_classes))
    return ImageData("zeros", train, None, None, tuple("abcde"[:num_classes]), mean, std)


def mixing(world_size: int = 1, rank: int = 0, **settings: float) -> Mixing:
    return Mixing(Settings(seed=3, **settings), data(5, MEAN, STD), rank=rank, world_size=world_size)  # type: ignore[arg-type]


def batches(count: int = 4, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    pixels = [torch.rand(size, 3, 12, 10, generator=rng) for _ in range(count)]
    return [((p - mean) / std, torch.randint(5, (size,), generator=rng)) for p in pixels]


def test_mixup_blends_images_and_labels_by_one_share() -> None:
    for step, ((x, y), (mixed, targets)) in enumerate(zip(batches(), mixing(mixup=0.8)(batches(), 2), strict=True)):
        share = np.random.default_rng([3, 2, step, MIXING]).beta(0.8, 0.8)
        torch.testing.assert_close(mixed, (share * x + (1 - share) * x.flip(0)).float())
        one_hot = torch.eye(5)[y]
        torch.testing.assert_close(targets, (share * one_hot + (1 - share) * one_hot.flip(0)).float())
        torch.testing.assert_close(targets.sum(1), torch.ones(6))


def test_cutmix_shares_labels_as_it_shares_pixels() -> None:
    for (x, y), (mixed, targets) in zip(batches(20), mixing(cutmix=1.0)(batches(20), 1), strict=True):
        own, other = (mixed == x).all(1), (mixed == x.flip(0)).all(1)  # (6, 12, 10)
        assert (own | other).all()
        share = own[0].float().mean()
        one_hot = torch.eye(5)[y]
        torch.testing.assert_close(targets, share * one_hot + (1 - share) * one_hot.flip(0))
        assert (own == own[0]).all()


def test_with_both_each_batch_has_one_of_them() -> None:
    cut = 0
    for (x, _), (mixed, _) in zip(batches(200), mixing(mixup=5.0, cutmix=1.0)(batches(200), 1), strict=True):
        cut += int(((mixed == x) | (mixed == x.flip(0))).all())
    assert 70 < cut < 130


def test_boxes_have_their_share_inside_and_are_cut_off_at_the_edge() -> None:
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(500):
        top, bottom, left, right = box(40, 60, 0.25, rng)
        assert 0 <= top <= bottom <= 40
        assert 0 <= left <= right <= 60
        areas.append((bottom - top) * (right - left) / 2400)
    assert max(areas) == 0.25
    assert 0.1 < float(np.mean(areas)) < 0.25


@pytest.mark.parametrize("amount", [0.4, 1.5])
def test_colour_changes_equal_those_of_pillow(amount: float) -> None:
    ((x, y),) = batches(1)
    ((changed, labels),) = mixing(color_jitter=amount)([(x, y)], 7)
    assert torch.equal(labels, y)
    rng = np.random.default_rng([3, 7, 0, COLOUR])
    factors = rng.uniform(max(0.0, 1 - amount), 1 + amount, (3, 6))
    enhancers = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
    order = rng.permutation(3)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    for i in range(6):
        pixels = ((x[i] * std + mean) * 255).round().byte().permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels)
        for kind in order:
            image = enhancers[kind](image).enhance(factors[kind, i])
        ours = (changed[i] * std + mean) * 255
        theirs = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
        assert (ours - theirs).abs().max() < 5  # Pillow rounds after every change


def test_grey_images_stay_grey() -> None:
    images = torch.rand(4, 1, 6, 6)
    only = Mixing(Settings(color_jitter=0.4), data(3, (0.0,), (1.0,)))
    ((changed, _),) = only([(images, torch.arange(4) % 3)], 0)
    assert changed.shape == images.shape
    assert (changed >= 0).all()
    assert (changed <= 1).all()
    assert not torch.equal(changed, images)


def test_an_epoch_resumes_at_any_step() -> None:
    full = mixing(mixup=0.8, cutmix=1.0, color_jitter=0.4)
    whole = list(full(batches(), 5))
    rest = list(full(batches()[2:], 5, start=2))
    for (images, labels), (again, labels_again) in zip(whole[2:], rest, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, labels_again)
    other = next(iter(full(batches(), 6)))
    assert not torch.equal(other[0], whole[0][0])


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_change_colours_as_one_would(world_size: int) -> None:
    def share(rank: int) -> Iterator[tuple[Tensor, Tensor]]:
        return ((x[rank::world_size], y[rank::world_size]) for x, y in batches())

    whole = list(mixing(color_jitter=0.4)(batches(), 1))
    for rank in range(world_size):
        ours = mixing(world_size, rank, color_jitter=0.4)(share(rank), 1)
        for (images, _), (expected, _) in zip(ours, whole, strict=True):
            torch.testing.assert_close(images, expected[rank::world_size])
        targets = [t for _, t in mixing(world_size, rank, mixup=1.0)(share(rank), 1)]
        shares = [float(np.random.default_rng([3, 1, s, MIXING]).beta(1.0, 1.0)) for s in range(4)]
        for (_, y), target, lam in zip(share(rank), targets, shares, strict=True):
            torch.testing.assert_close(target, lam * torch.eye(5)[y] + (1 - lam) * torch.eye(5)[y.flip(0)])


def test_nothing_is_touched_by_default() -> None:
    given = batches()
    for (x, y), (images, labels) in zip(given, mixing()(given, 1), strict=True):
        assert images is x
        assert labels is y


def test_soft_labels_need_a_loss_for_soft_labels() -> None:
    for loss in ("dot-regression", "ntce"):
        with pytest.raises(SettingsError, match="mixup and cutmix make soft labels"):
            Settings(loss=loss, mixup=0.2)
    with pytest.raises(SettingsError, match="smoothing and class_weights are for loss cross-entropy"):
        Settings(loss="mse", smoothing=0.1)
