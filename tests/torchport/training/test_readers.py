"""Readers against tiny files in the official formats, and against damaged and foreign ones."""

from __future__ import annotations

import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nearest_etf.torchport.training.data import CLASS_NAMES, DataError, FolderSplit, load_data
from nearest_etf.torchport.training.data.cifar import read_cifar_binary, read_cifar_python
from nearest_etf.torchport.training.data.idx import read_idx, read_mnist
from nearest_etf.torchport.training.data.stl10 import read_stl10

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
    assert data.test.labels.tolist() == list(range(10))
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
    np.testing.assert_array_equal(data.test.images, images)
    assert data.test.labels.tolist() == list(range(6))


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
    np.testing.assert_array_equal(data.test.images, images)
    assert len(data.train) == 4 * (len(files) - 1)


def test_python_cifar_files_have_to_be_complete_and_of_their_kind(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "train").write_bytes(python_batch(colour_images(2, 32), b"labels"))
    with pytest.raises(DataError, match=r"cifar100: .*test is missing: expected train, test there"):
        load_data("cifar100", root=tmp_path)
    (folder / "test").write_bytes(python_batch(colour_images(2, 32), b"fine_labels"))
    with pytest.raises(DataError, match=r"train is no CIFAR python file: .* as many 'fine_labels'"):
        load_data("cifar100", root=tmp_path)


def test_stl10_counts_columns_first_and_labels_from_one(tmp_path: Path) -> None:
    images, folder = colour_images(3, 96), tmp_path / "stl10_binary"
    folder.mkdir()
    for part in ("train", "test"):
        (folder / f"{part}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        (folder / f"{part}_y.bin").write_bytes(bytes([1, 10, 4]))
    data = load_data("stl10", root=tmp_path)
    np.testing.assert_array_equal(data.test.images[:], images)
    assert data.test.labels.tolist() == [0, 9, 3]
    for labels, complaint in (
        (bytes([0, 1, 2]), r"test_y\.bin holds labels 0…2: expected 1…10"),
        (bytes([1, 11, 2]), r"test_y\.bin holds labels 1…11: expected 1…10"),
        (bytes([1, 2]), r"test_y\.bin has 2 bytes: expected a label for each of 3 images"),
    ):
        (folder / "test_y.bin").write_bytes(labels)
        with pytest.raises(DataError, match=complaint):
            load_data("stl10", root=tmp_path)


def image_folder(root: Path, classes: str = "ab", parts: tuple[str, ...] = ("train", "val")) -> Path:
    for part in parts:
        for k, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (20 + 10 * i, 30), (100 * k, 0, 50)).save(root / part / name / f"{i}.png")
    return root


def test_image_folder(tmp_path: Path) -> None:
    data = load_data(str(image_folder(tmp_path)), image_size=16)
    assert isinstance(data.train, FolderSplit)
    assert (data.class_names, data.image_shape) == (("a", "b"), (16, 16, 3))
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    assert data.test.images[3:5].shape == (2, 16, 16, 3)
    assert data.test.images[7][0, 0].tolist() == [100, 0, 50]
    random_part = data.train.read(7, np.random.default_rng(0), flip=True)
    np.testing.assert_array_equal(random_part, data.test.images[7])


def test_every_kind_of_8_bit_image_is_read_upright_and_in_colour(tmp_path: Path) -> None:
    image_folder(tmp_path)
    folder = tmp_path / "val" / "a"
    for path in folder.iterdir():
        path.unlink()
    grey = Image.fromarray(np.full((30, 20), 90, np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6  # the right side of the stored image is up
    stored = Image.new("RGB", (30, 20))
    stored.paste((255, 255, 255), (0, 0, 15, 20))  # white on the left, which is the top for the camera
    stored.save(folder / "0.png", exif=turned)
    for name, mode in (("1.jpeg", "L"), ("2.PNG", "RGBA"), ("3.tif", "CMYK"), ("4.gif", "P"), ("5.bmp", "1")):
        grey.convert("RGB").convert(mode).save(folder / name)
    (folder / "._2.PNG").write_bytes(b"what macOS leaves beside files")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    data = load_data(str(tmp_path), image_size=20)
    images = data.test.images[:6]
    assert (data.class_names, images.shape) == (("a", "b"), (6, 20, 20, 3))
    assert images[0, :8].min() > 250
    assert images[0, 12:].max() < 5
    np.testing.assert_allclose(images[1:5].mean((1, 2)), 90, atol=5)


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return print, ("ran",)


REFUSED: dict[str, tuple[Callable[[Path], object], bytes, str]] = {
    "foreign idx": (read_idx, b"PNG image", "expected 00 00 08"),
    "idx of floats": (read_idx, bytes([0, 0, 13, 1]) + bytes(4), "expected 00 00 08"),
    "short idx header": (read_idx, bytes([0, 0, 8, 3, 0]), "header of 16 bytes"),
    "short idx": (read_idx, idx_bytes(np.zeros((3, 4), np.uint8))[:-1], r"\(3, 4\), 12 bytes"),
    "short gzip": (read_idx, gzip.compress(bytes(1000))[:-9], "whole gzip file"),
    "short cifar": (read_cifar_binary, bytes(3072), "multiple of 3073"),
    "empty cifar": (read_cifar_binary, b"", "multiple of 3073"),
    "foreign pickle": (read_cifar_python, pickle.dumps([1, 2]), "expected 'data'"),
    "wrong pickle": (read_cifar_python, pickle.dumps({b"data": 3, b"labels": []}), "expected 'data'"),
    "no pickle": (read_cifar_python, b"binary", "damaged or no CIFAR"),
    "evil pickle": (read_cifar_python, pickle.dumps(Evil()), r"refused.*builtins.print"),
    "short stl10": (lambda path: read_stl10(path, path), bytes(100), "multiple of 27648"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_damaged_and_foreign_files_are_refused(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    read, content, expected = REFUSED[case]
    (tmp_path / "the-file").write_bytes(content)
    with pytest.raises(DataError, match=f"the-file.*{expected}"):
        read(tmp_path / "the-file")
    assert capsys.readouterr().out == ""


def test_labels_have_to_fit_images(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(idx_bytes(np.zeros((2, 5, 5), np.uint8)))
    (tmp_path / "labels").write_bytes(idx_bytes(np.zeros(3, np.uint8)))
    with pytest.raises(DataError, match=r"labels holds \(3,\) labels: expected one for each of 2"):
        read_mnist(tmp_path / "images", tmp_path / "labels")
    with pytest.raises(DataError, match=r"labels holds an array of shape \(3,\)"):
        read_mnist(tmp_path / "labels", tmp_path / "labels")


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


@pytest.mark.parametrize(
    ("classes", "parts", "expected"),
    [("a", ("train", "val"), "at least two classes"), ("ab", ("train",), "val: expected images")],
)
def test_incomplete_image_folders_are_refused(
    tmp_path: Path, classes: str, parts: tuple[str, ...], expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        load_data(str(image_folder(tmp_path, classes, parts)))


def test_a_broken_image_and_a_foreign_class_are_named(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "val" / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.png cannot be read"):
        load_data(str(tmp_path)).test.images[0]
    Image.fromarray(np.full((30, 30), 40000, np.uint16)).save(tmp_path / "val" / "a" / "0.png")
    with pytest.raises(DataError, match=r"0\.png has more than 8 bits per pixel \(mode I;16"):
        load_data(str(tmp_path)).test.images[0]
    (tmp_path / "val" / "c").mkdir()
    with pytest.raises(DataError, match=r"c is a class that .*train does not have"):
        load_data(str(tmp_path))
    (tmp_path / "train" / "c").mkdir()
    (tmp_path / "train" / "c" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"train/c holds no images \(looked for \.bmp, "):
        load_data(str(tmp_path))


def test_unknown_data_sets_are_refused() -> None:
    with pytest.raises(DataError, match="'cifar11': did you mean 'cifar10'"):
        load_data("cifar11")
    with pytest.raises(DataError, match="no such folder"):
        load_data("some/where")


def test_digits_are_split_evenly() -> None:
    data = load_data("digits")
    shares = np.bincount(data.test.labels) / np.bincount(np.r_[data.train.labels, data.test.labels])
    np.testing.assert_allclose(shares, 0.2, atol=0.01)
    assert data.train.images[:].max() == 255
