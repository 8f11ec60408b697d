"""Image folders in every layout: which splits they give, what is read, what is refused."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nearest_etf.common.photo import PhotoError, PhotoTransform, evaluation_view
from nearest_etf.torchport.training.data.folder_split import FolderSplit
from nearest_etf.torchport.training.data.images import AnySplit, ImageData, readable
from nearest_etf.torchport.training.data.load import load_data, training_data
from nearest_etf.torchport.training.data.split import DataError
from nearest_etf.torchport.training.run.settings import Settings


def image_folder(root: Path, classes: str = "ab", splits: tuple[str, ...] = ("train", "val"), count: int = 4) -> Path:
    for split in splits:
        for k, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (20 + 10 * i, 30), (100 * k, 0, 50)).save(root / split / name / f"{i}.png")
    return root


def validation(data: ImageData) -> AnySplit:
    assert data.val is not None
    return data.val


def test_image_folder(tmp_path: Path) -> None:
    data = load_data(str(image_folder(tmp_path)), image_size=16)
    assert isinstance(data.train, FolderSplit)
    assert (data.class_names, data.image_shape) == (("a", "b"), (16, 16, 3))
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    assert validation(data).images[3:5].shape == (2, 16, 16, 3)
    assert validation(data).images[7][0, 0].tolist() == [100, 0, 50]
    random_crop = data.train.read(7, np.random.default_rng(0), flip=True)
    np.testing.assert_array_equal(random_crop, validation(data).images[7])


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
    images = validation(data).images[:6]
    assert (data.class_names, images.shape) == (("a", "b"), (6, 20, 20, 3))
    assert images[0, :8].min() > 250
    assert images[0, 12:].max() < 5
    np.testing.assert_allclose(images[1:5].mean((1, 2)), 90, atol=5)


@pytest.mark.parametrize(
    ("classes", "splits", "expected"),
    [
        ("a", ("train", "val"), "train: expected a folder of images for each of at least two classes in it$"),
        ("a", (".",), "at least two classes in it, or a folder train/ of such folders"),
        ("ab", ("val",), "has val/ but no train/"),
        ("ab", ("test", "val"), "has val/ but no train/"),
    ],
)
def test_incomplete_image_folders_are_refused(
    tmp_path: Path, classes: str, splits: tuple[str, ...], expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        load_data(str(image_folder(tmp_path, classes, splits)))


def test_an_empty_folder_of_a_split_is_refused(tmp_path: Path) -> None:
    (image_folder(tmp_path, splits=("train",)) / "test").mkdir()
    with pytest.raises(DataError, match=r"test: expected images in it, as .*test/CLASS/NAME\.jpg"):
        load_data(str(tmp_path))


def test_a_broken_image_and_a_foreign_class_are_named(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "val" / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(PhotoError, match=r"0\.png cannot be read .*expected an image"):
        validation(load_data(str(tmp_path))).images[0]
    Image.fromarray(np.full((30, 30), 40000, np.uint16)).save(tmp_path / "val" / "a" / "0.png")
    assert validation(load_data(str(tmp_path))).images[0][0, 0].tolist() == [156] * 3, "40000 / 257"
    (tmp_path / "val" / "c").mkdir()
    with pytest.raises(DataError, match=r"c is a class that .*train lacks"):
        load_data(str(tmp_path))
    (tmp_path / "train" / "c").mkdir()
    (tmp_path / "train" / "c" / "notes.txt").write_text("no image")
    with pytest.raises(
        DataError, match=r"train/c holds no images \(looked for \.avif, .*; 1 file has no .*: 1 \.txt\)"
    ):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [
        (("train", "val", "test"), {"train": 20, "val": 20, "test": 20}),
        (("train", "val"), {"train": 20, "val": 20}),
        (("train", "test"), {"train": 20, "test": 20}),
        (("train",), {"train": 16, "val": 4}),
        ((".",), {"train": 16, "val": 4}),  # CLASS/NAME.png without train/
    ],
)
def test_splits_of_every_layout(tmp_path: Path, splits: tuple[str, ...], sizes: dict[str, int]) -> None:
    root = image_folder(tmp_path, splits=splits, count=10)
    (root / ".cache").mkdir()
    (root / splits[0] / "a" / ".thumbnails").mkdir()
    Image.new("RGB", (9, 9)).save(root / splits[0] / "a" / ".thumbnails" / "0.png")
    data = training_data(Settings(data=str(root), image_size=16))
    assert data.class_names == ("a", "b")
    assert {name: len(split) for name, split in data.splits().items()} == sizes
    assert len({split.fingerprint() for split in data.splits().values()}) == len(sizes)


def test_held_out_and_training_images_of_a_folder_are_disjoint(tmp_path: Path) -> None:
    root = image_folder(tmp_path, splits=("train", "test"), count=10)
    data = training_data(Settings(data=str(root), image_size=16, val_fraction=0.3))
    assert isinstance(data.train, FolderSplit)
    assert isinstance(data.val, FolderSplit)
    assert sorted(data.train.paths + data.val.paths) == sorted((root / "train").rglob("*.png"))
    assert data.val.labels.tolist() == [0] * 3 + [1] * 3
    assert [path.parent.name for path in data.val.paths] == ["a"] * 3 + ["b"] * 3
    none = training_data(Settings(data=str(image_folder(tmp_path / "more", splits=(".",))), val_fraction=0.0))
    assert list(none.splits()) == ["train"]


def test_folders_that_cannot_be_split_are_refused(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    with pytest.raises(DataError, match=r"has a validation split: val_fraction = 0\.2 is for data sets without one"):
        training_data(Settings(data=str(root), val_fraction=0.2))
    flat = image_folder(tmp_path / "flat", splits=(".",), count=1)
    with pytest.raises(DataError, match=r"class 'a' has a single training image.*add images.*or set val_fraction = 0"):
        training_data(Settings(data=str(flat)))


def test_skipped_files_of_a_folder_are_reported(tmp_path: Path) -> None:
    image_folder(tmp_path, splits=("train", "val"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_data(str(tmp_path))
    for name in ("train/a/x.heic", "val/b/y.HEIC", "val/b/Thumbs.db"):
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match=r": 3 files have no known image suffix: 2 \.heic, 1 \.db$"):
        load_data(str(tmp_path))


@pytest.mark.filterwarnings("ignore:.*linked folder")
def test_links_in_a_folder_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root, elsewhere = image_folder(tmp_path / "data", splits=("train",)), tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.new("RGB", (9, 9)).save(elsewhere / "far.png")
    os.symlink(elsewhere, root / "train" / "c")  # a class
    os.symlink(elsewhere, root / "train" / "a" / "more")
    os.symlink(root, root / "train" / "again")  # no class: it holds this folder
    os.symlink(root / "train", root / "train" / "a" / "up")
    (root / "train" / "a" / "album.jpg").mkdir()
    data = load_data(str(root))
    assert data.class_names == ("a", "b", "c")
    assert np.bincount(data.train.labels).tolist() == [5, 4, 1]
    assert len(data.train.fingerprint()) == 64


def test_undecodable_names_and_broken_links_have_fingerprints(tmp_path: Path) -> None:
    root = image_folder(tmp_path, splits=("train",))
    plain = load_data(str(root)).train.fingerprint()
    (root / "train" / "a" / "0.png").rename(os.fsdecode(bytes(root / "train" / "a") + b"/0\xff.png"))
    os.symlink(root / "nowhere.png", root / "train" / "a" / "x.png")
    assert load_data(str(root)).train.fingerprint() != plain


def test_readable_images_are_those_of_an_evaluation(tmp_path: Path) -> None:
    split = load_data(str(image_folder(tmp_path))).train
    assert isinstance(split, FolderSplit)
    chosen = np.array([1, 2, 6])
    for i, paths in enumerate([(), split.paths[2:3]]):
        for path in paths:
            path.write_bytes(b"no image")
        index, images, labels = readable(split, chosen)
        assert (index.tolist(), labels.tolist()) == ([1, 2, 6][:: 1 + i], [0, 0, 1][:: 1 + i])
        np.testing.assert_array_equal(images, split.images[index])
    with pytest.raises(PhotoError, match=r"2\.png cannot be read"):
        readable(split, np.array([2]))
    digits = load_data("digits").train
    index, images, labels = readable(digits, chosen)
    assert (index.tolist(), images.shape, labels.tolist()) == ([1, 2, 6], (3, 8, 8, 1), digits.labels[chosen].tolist())


def test_images_are_read_with_the_recorded_transform(tmp_path: Path) -> None:
    data = load_data(str(image_folder(tmp_path)), image_size=16)
    assert data.preprocessing()["transform"] == PhotoTransform(16, 16).to_dict()
    assert isinstance(data.train, FolderSplit)
    np.testing.assert_array_equal(data.train.images[3], evaluation_view(data.train.paths[3], data.transform))
    digits = load_data("digits")
    assert digits.transform == PhotoTransform(8, 8, 1, crop=1.0)


def test_folders_that_other_systems_leave_are_no_classes(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"):
        for place in (root / "train" / name, root / "train" / "a" / name):
            place.mkdir()
            (place / "1.jpg").write_bytes(b"no image")
    data = load_data(str(root), image_size=16)
    assert (data.class_names, len(data.train)) == (("a", "b"), 8)
    (root / "train" / "new folder").mkdir()
    with pytest.raises(DataError, match=r"new folder holds no images \(.*\): add some, or remove it$"):
        load_data(str(root), image_size=16)
