"""Data sets by name, from tiny files in the official formats, and their validation splits."""

from __future__ import annotations

import gzip
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nearest_etf.torchport.training.data.images import ImageData
from nearest_etf.torchport.training.data.load import CLASS_NAMES, load_data, training_data
from nearest_etf.torchport.training.data.loaders import make_loader
from nearest_etf.torchport.training.data.split import DataError, Split
from nearest_etf.torchport.training.run.settings import Settings, SettingsError

RNG = np.random.default_rng(7)


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, train: int = 20, test: int = 10) -> np.ndarray:
    folder.mkdir(parents=True)
    images = RNG.integers(0, 256, (train, 28, 28)).astype(np.uint8)
    for prefix, pixels in (("train", images), ("t10k", images[:test])):
        labels = np.arange(len(pixels), dtype=np.uint8) % 10
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(pixels)))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    return images


def the_test_split(data: ImageData) -> Split:
    """The test split of a data set in memory."""
    assert isinstance(data.test, Split)
    assert data.val is None
    return data.test


def cifar_record(label: bytes, image: np.ndarray) -> bytes:
    return label + image.transpose(2, 0, 1).tobytes()


def colour_images(count: int, side: int) -> np.ndarray:
    return RNG.integers(0, 256, (count, side, side, 3)).astype(np.uint8)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist_files(tmp_path: Path, name: str) -> None:
    images = write_mnist(tmp_path / name)
    data = load_data(name, root=tmp_path)
    np.testing.assert_array_equal(data.train.images[:][..., 0], images)
    assert data.image_shape == (28, 28, 1)
    assert the_test_split(data).labels.tolist() == list(range(10))
    assert data.mean[0] == pytest.approx(images.mean() / 255)
    assert data.std[0] == pytest.approx(images.std() / 255)


def test_mnist_files_may_be_unpacked(tmp_path: Path) -> None:
    images = write_mnist(tmp_path / "mnist")
    for packed in (tmp_path / "mnist").iterdir():
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    np.testing.assert_array_equal(load_data("mnist", root=tmp_path).train.images[:][..., 0], images)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_binary_files(tmp_path: Path, name: str) -> None:
    images = colour_images(6, 32)
    if name == "cifar10":
        folder, files = tmp_path / "cifar-10-batches-bin", [*(f"data_batch_{i}.bin" for i in range(1, 6))]
        labels = [bytes([k]) for k in range(6)]
    else:
        folder, files = tmp_path / "cifar-100-binary", ["train.bin"]
        labels = [bytes([9, k]) for k in range(6)]
    folder.mkdir()
    content = b"".join(map(cifar_record, labels, images))
    for file in files:
        (folder / file).write_bytes(content)
    (folder / ("test_batch.bin" if name == "cifar10" else "test.bin")).write_bytes(content)
    data = load_data(name, root=tmp_path)
    assert len(data.train) == 6 * len(files)
    np.testing.assert_array_equal(the_test_split(data).images, images)
    assert the_test_split(data).labels.tolist() == list(range(6))


def test_cifar100_has_its_official_class_names() -> None:
    assert len(CLASS_NAMES["cifar100"]) == 100
    assert list(CLASS_NAMES["cifar100"]) == sorted(set(CLASS_NAMES["cifar100"]))  # the official order is alphabetical
    assert [CLASS_NAMES["cifar100"][k] for k in (0, 39, 99)] == ["apple", "keyboard", "worm"]


def python_batch(images: np.ndarray, key: bytes) -> bytes:
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return pickle.dumps({b"data": planes, key: list(range(len(images)))}, protocol=2)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_python_files(tmp_path: Path, name: str) -> None:
    images = colour_images(4, 32)
    if name == "cifar10":
        folder, key = tmp_path / "cifar-10-batches-py", b"labels"
        files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    else:
        folder, key, files = tmp_path / "cifar-100-python", b"fine_labels", ["train", "test"]
    folder.mkdir()
    for file in files:
        (folder / file).write_bytes(python_batch(images, key))
    data = load_data(name, root=tmp_path)
    np.testing.assert_array_equal(the_test_split(data).images, images)
    assert len(data.train) == 4 * (len(files) - 1)


def test_python_cifar_files_have_to_be_complete_and_of_their_kind(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "train").write_bytes(python_batch(colour_images(2, 32), b"labels"))
    with pytest.raises(DataError, match=r"cifar100: .*test is missing: expected train, test there"):
        load_data("cifar100", root=tmp_path)
    (folder / "test").write_bytes(python_batch(colour_images(2, 32), b"fine_labels"))
    with pytest.raises(DataError, match=r"train is not a CIFAR python file: .* as many 'fine_labels'"):
        load_data("cifar100", root=tmp_path)


def test_stl10_counts_columns_first_and_labels_from_one(tmp_path: Path) -> None:
    images, folder = colour_images(3, 96), tmp_path / "stl10_binary"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes([1, 10, 4]))
    data = load_data("stl10", root=tmp_path)
    np.testing.assert_array_equal(the_test_split(data).images[:], images)
    assert the_test_split(data).labels.tolist() == [0, 9, 3]
    for labels, complaint in (
        (bytes([0, 1, 2]), r"test_y\.bin holds labels 0…2: expected 1…10"),
        (bytes([1, 11, 2]), r"test_y\.bin holds labels 1…11: expected 1…10"),
        (bytes([1, 2]), r"test_y\.bin has 2 bytes: expected a label for each of 3 images"),
    ):
        (folder / "test_y.bin").write_bytes(labels)
        with pytest.raises(DataError, match=complaint):
            load_data("stl10", root=tmp_path)


def test_cifar_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    """3073 bytes a record against 3074: only a multiple of both would pass, and its labels hardly would."""
    (tmp_path / "cifar-100-binary").mkdir()
    for file in ("train.bin", "test.bin"):
        (tmp_path / "cifar-100-binary" / file).write_bytes(cifar_record(b"1", colour_images(1, 32)[0]) * 4)
    with pytest.raises(DataError, match=r"train\.bin has 12292 bytes: expected a multiple of 3074"):
        load_data("cifar100", root=tmp_path)


def test_labels_outside_the_classes_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    labels = gzip.compress(idx_bytes(np.full(20, 11, np.uint8)))
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(labels)
    with pytest.raises(DataError, match="train label 11 is outside 0…9"):
        load_data("mnist", root=tmp_path)


def test_unknown_data_sets_are_refused() -> None:
    with pytest.raises(DataError, match="'cifar11': did you mean 'cifar10'"):
        load_data("cifar11")
    with pytest.raises(DataError, match="no such folder"):
        load_data("some/where")


def test_digits_are_split_evenly() -> None:
    data = load_data("digits")
    shares = np.bincount(the_test_split(data).labels) / np.bincount(
        np.r_[data.train.labels, the_test_split(data).labels]
    )
    np.testing.assert_allclose(shares, 0.2, atol=0.01)
    assert data.train.images[:].max() == 255


def labelled(split: Split) -> list[bytes]:
    """Every image with its label, as bytes."""
    return [image.tobytes() + bytes([label]) for image, label in zip(split.images, split.labels, strict=True)]


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar100"])
def test_a_validation_split_of_every_class_by_the_seed(tmp_path: Path, name: str) -> None:
    """Stratified, disjoint from what is left for training, the same for the same seed; test data stay untouched."""
    if name == "mnist":
        write_mnist(tmp_path / name, train=100)
    elif name == "cifar100":
        (tmp_path / "cifar-100-binary").mkdir()
        for file in ("train.bin", "test.bin"):
            records = [cifar_record(bytes([0, i % 4]), image) for i, image in enumerate(colour_images(40, 32))]
            (tmp_path / "cifar-100-binary" / file).write_bytes(b"".join(records))
    settings = Settings(data=name, val_fraction=0.2)
    whole, data = load_data(name, root=tmp_path), training_data(settings, tmp_path)
    assert list(data.splits()) == ["train", "val", "test"]
    assert isinstance(whole.train, Split)
    assert isinstance(data.train, Split)
    assert isinstance(data.val, Split)
    assert sorted(labelled(data.train) + labelled(data.val)) == sorted(labelled(whole.train))
    sizes = np.bincount(whole.train.labels)
    np.testing.assert_array_equal(np.bincount(data.val.labels), np.round(0.2 * sizes))
    again = training_data(settings, tmp_path)
    assert again.val is not None
    assert again.val.fingerprint() == data.val.fingerprint()
    assert again.train.fingerprint() == data.train.fingerprint()
    other = training_data(Settings(data=name, val_fraction=0.2, seed=1), tmp_path)
    assert isinstance(other.val, Split)
    assert other.val.fingerprint() != data.val.fingerprint()
    assert other.test is not None
    assert other.test.fingerprint() == the_test_split(whole).fingerprint()
    assert (data.mean, data.std, data.class_names) == (whole.mean, whole.std, whole.class_names)


def test_thinning_and_label_noise_spare_validation_images() -> None:
    plain = training_data(Settings(data="digits", val_fraction=0.25))
    harder = training_data(
        Settings(data="digits", val_fraction=0.25, samples_per_class=50, imbalance="step", label_noise=0.5)
    )
    assert plain.val is not None
    assert harder.val is not None
    assert harder.val.fingerprint() == plain.val.fingerprint()
    assert len(harder.train) < len(plain.train)
    with pytest.raises(DataError, match="samples_per_class is 130, but a class has only 1"):
        training_data(Settings(data="digits", val_fraction=0.25, samples_per_class=130))


def test_the_record_of_the_data_in_a_run_folder() -> None:
    recorded = training_data(Settings(data="digits", val_fraction=0.1)).to_dict()
    assert [recorded[f"{name}_size"] for name in ("train", "val", "test")] == [1294, 143, 360]
    assert len({recorded[f"{name}_sha256"] for name in ("train", "val", "test")}) == 3
    assert not training_data(Settings(data="digits")).to_dict().keys() & {"val_size", "val_sha256"}


def test_free_features_have_neither_validation_nor_test_data() -> None:
    settings = Settings(data="ufm", num_classes=3, samples_per_class=2, batch_size=6)
    assert list(training_data(settings).splits()) == ["train"]
    with pytest.raises(SettingsError, match="no images to hold out"):
        training_data(replace(settings, val_fraction=0.5))


def test_imagenet_is_tested_on_its_validation_folder(tmp_path: Path) -> None:
    from PIL import Image

    with pytest.raises(DataError, match=r"imagenet: expected train/CLASS/NAME\.JPEG and val/CLASS/NAME\.JPEG in"):
        load_data("imagenet", root=tmp_path)
    for folder in ("train/n1", "train/n2", "val/n1", "val/n2"):
        (tmp_path / "imagenet" / folder).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (20, 20)).save(tmp_path / "imagenet" / folder / f"{i}.png")
    (tmp_path / "imagenet" / "test").mkdir()  # without labels
    data = training_data(Settings(data="imagenet", image_size=8), tmp_path)
    assert {name: len(split) for name, split in data.splits().items()} == {"train": 10, "test": 10}
    data = training_data(Settings(data="imagenet", image_size=8, val_fraction=0.4), tmp_path)
    assert {name: len(split) for name, split in data.splits().items()} == {"train": 6, "val": 4, "test": 10}


def test_a_crop_of_photos_is_refused_for_images_in_memory() -> None:
    settings = Settings(data="digits", scale=0.35)
    data = training_data(settings)
    with pytest.raises(DataError, match=r"scale = 0.35 is for the random crops of image folders, and digits is in mem"):
        make_loader(data.train, data, settings, device=torch.device("cpu"))
