"""Image files: exact pixels or a refusal by name, and the two views of photos that training and evaluation use."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from nearest_etf.common.photo import (
    PhotoError,
    evaluation_view,
    exact_pixels,
    find_images,
    open_photo,
    random_box,
    training_view,
)

GREY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10  # (H, W)
COLOUR = np.stack([GREY, GREY.T.reshape(4, 6), 255 - GREY], axis=-1)  # (H, W, 3)
ORIENTATION = 0x0112  # EXIF
Maker = Callable[[Path], object]


def test_lossless_kinds_come_back_exactly(tmp_path: Path) -> None:
    two_level = Image.fromarray(GREY > 100)
    palette = Image.fromarray(GREY).convert("RGB").quantize(64)
    kinds = {"grey.png": Image.fromarray(GREY), "two.png": two_level, "grey.tif": Image.fromarray(GREY)}
    for name, image in kinds.items():
        image.save(tmp_path / name)
    palette.save(tmp_path / "palette.png")
    Image.fromarray(COLOUR).save(tmp_path / "colour.bmp")

    np.testing.assert_array_equal(exact_pixels(tmp_path / "grey.png", (4, 6, 1))[..., 0], GREY)
    np.testing.assert_array_equal(exact_pixels(tmp_path / "grey.tif", (4, 6, 1))[..., 0], GREY)
    np.testing.assert_array_equal(exact_pixels(tmp_path / "two.png", (4, 6, 1))[..., 0], (GREY > 100) * np.uint8(255))
    np.testing.assert_array_equal(exact_pixels(tmp_path / "colour.bmp", (4, 6, 3)), COLOUR)
    np.testing.assert_array_equal(exact_pixels(tmp_path / "grey.png", (4, 6, 3)), np.stack([GREY] * 3, axis=-1))
    np.testing.assert_array_equal(
        exact_pixels(tmp_path / "palette.png", (4, 6, 3))[..., 1], np.asarray(palette.convert("L"))
    )


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(np.rot90(GREY))  # as a camera on its side would store it, (6, 4)
    exif = image.getexif()
    exif[ORIENTATION] = 6  # upright after a turn by 90° clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(GREY).save(tmp_path / "upright.png")
    np.testing.assert_array_equal(exact_pixels(tmp_path / "turned.png", (4, 6, 1))[..., 0], GREY)
    np.testing.assert_array_equal(np.asarray(open_photo(tmp_path / "turned.png")), GREY)
    turned, upright = (evaluation_view(tmp_path / f"{name}.png", 4) for name in ("turned", "upright"))
    np.testing.assert_array_equal(turned, upright)


UNREADABLE: dict[str, Maker] = {
    "empty.png": lambda path: path.write_bytes(b""),
    "text.png": lambda path: path.write_text("no image"),
    "truncated.png": lambda path: path.write_bytes(_png(Image.fromarray(COLOUR), path.parent)[:60]),
    "missing.png": lambda path: None,
    "folder.png": lambda path: path.mkdir(),
}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one.png", "has 1×1 pixels, but the model takes 6×4"),
        ("turned.png", "has 4×6 pixels, but the model takes 6×4"),
        ("cmyk.jpg", "is a CMYK image: convert it to 8-bit"),
        ("deep.png", "is a I;16 image"),
        ("float.tif", "is a F image"),
        ("alpha.png", "is a RGBA image"),
        ("seethrough.gif", "is a P with transparency image"),
        ("animated.gif", r"is animated \(2 frames\)"),
        ("colour.png", "is a colour image, but the model takes greyscale"),
        ("empty.png", "cannot be read .*: expected an image"),
        ("text.png", "cannot be read .*: expected an image"),
        ("truncated.png", "cannot be read .*: expected an image"),
        ("missing.png", "is missing: expected an image"),
    ],
)
def test_other_kinds_are_refused(tmp_path: Path, name: str, message: str) -> None:
    colour, grey = Image.fromarray(COLOUR), Image.fromarray(GREY)
    frames = [Image.fromarray(GREY + np.uint8(k)) for k in range(2)]
    makers: dict[str, Maker] = {
        **UNREADABLE,
        "one.png": lambda path: Image.new("L", (1, 1)).save(path),
        "turned.png": lambda path: Image.fromarray(GREY.T.copy()).save(path),
        "cmyk.jpg": lambda path: colour.convert("CMYK").save(path),
        "deep.png": lambda path: Image.fromarray(GREY.astype(np.uint16) * 256).save(path),
        "float.tif": lambda path: Image.fromarray(GREY.astype(np.float32)).save(path),
        "alpha.png": lambda path: colour.convert("RGBA").save(path),
        "seethrough.gif": lambda path: grey.convert("P").save(path, transparency=0),
        "animated.gif": lambda path: frames[0].save(path, save_all=True, append_images=frames[1:]),
        "colour.png": colour.save,
    }
    makers[name](tmp_path / name)
    with pytest.raises(PhotoError, match=message) as caught:
        exact_pixels(tmp_path / name, (4, 6, 1))
    assert name in str(caught.value)


def _png(image: Image.Image, folder: Path) -> bytes:
    image.save(folder / "whole.png")
    return (folder / "whole.png").read_bytes()


READERS: dict[str, Callable[[Path], object]] = {
    "evaluation": lambda path: evaluation_view(path, 4),
    "training": lambda path: training_view(path, 4, np.random.default_rng(0)),
    "photo": open_photo,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", UNREADABLE)
def test_every_reader_refuses_a_broken_file_in_one_line(tmp_path: Path, reader: str, name: str) -> None:
    UNREADABLE[name](tmp_path / name)
    with pytest.raises(PhotoError) as caught:
        READERS[reader](tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_decompression_bombs_are_refused(tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(PhotoError, match=r"bomb.png .*DecompressionBombError.*: expected an image"):
        READERS[reader](tmp_path / "bomb.png")


@pytest.mark.parametrize("reader", ["evaluation", "training"])
@pytest.mark.parametrize("name", ["deep.png", "float.tif"])
def test_views_refuse_more_than_8_bits(tmp_path: Path, reader: str, name: str) -> None:
    pixels = GREY.astype(np.uint16 if name == "deep.png" else np.float32)
    Image.fromarray(pixels).save(tmp_path / name)
    with pytest.raises(PhotoError, match="has more than 8 bits per pixel"):
        READERS[reader](tmp_path / name)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Noise of 50 × 30 pixels."""
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)).save(path)
    return path


def test_evaluation_view_is_the_middle(photo: Path) -> None:
    expected = ImageOps.fit(Image.open(photo), (16, 16), Image.Resampling.BILINEAR, bleed=1 / 16)
    np.testing.assert_array_equal(evaluation_view(photo, 16), np.asarray(expected))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK"])
def test_views_are_in_colour_whatever_the_mode(tmp_path: Path, photo: Path, mode: str) -> None:
    path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
    Image.open(photo).convert(mode).save(path)
    assert evaluation_view(path, 16).shape == (16, 16, 3)
    assert training_view(path, 16, np.random.default_rng(0)).shape == (16, 16, 3)


def test_training_view_is_a_random_box_perhaps_mirrored(photo: Path) -> None:
    mirrored = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        box = random_box((50, 30), rng)
        expected = np.asarray(Image.open(photo).resize((16, 16), Image.Resampling.BILINEAR, box=box))
        flipped = rng.random() < 0.5
        mirrored += flipped
        np.testing.assert_array_equal(training_view(photo, 16, np.random.default_rng(seed)), expected)
        view = training_view(photo, 16, np.random.default_rng(seed), flip=True)
        np.testing.assert_array_equal(view, expected[:, ::-1] if flipped else expected)
    assert 5 < mirrored < 15


def test_random_boxes_lie_inside_and_have_the_papers_areas() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_box((300, 200), rng) for _ in range(500)])
    left, upper, right, lower = boxes.T
    assert (left >= 0).all()
    assert (upper >= 0).all()
    assert (right <= 300).all()
    assert (lower <= 200).all()
    ratio = (right - left) / (lower - upper)
    assert 0.7 < ratio.min() < ratio.max() < 1.4
    area = (right - left) * (lower - upper) / 60000
    assert 0.07 < area.min() < 0.1
    assert 0.8 < area.max() <= 200 * 267 / 60000, "4:3 at most"
    assert random_box((1000, 1), rng) == (0, 0, 1000, 1), "no such box fits: the whole image"


def test_finds_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.txt", "deep/er/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    inside = [tmp_path / name for name in ("a.JPG", "b.png", "deep/er/d.png")]
    assert find_images([tmp_path]) == inside
    assert find_images([str(tmp_path / "*.png"), tmp_path / "c.txt"]) == [inside[1], tmp_path / "c.txt"]
    assert find_images([str(tmp_path / "**" / "*.png")]) == inside[1:]


def test_names_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="holds no images"):
        find_images([tmp_path])
    with pytest.raises(PhotoError, match="neither a file, nor a folder, nor a pattern"):
        find_images([tmp_path / "*.png"])


def test_without_pillow_the_remedy_is_named(photo: Path) -> None:
    script = f"""
import sys
sys.modules["PIL"] = None
from nearest_etf.common.photo import PhotoError, evaluation_view, exact_pixels
for read in (lambda: evaluation_view({str(photo)!r}, 8), lambda: exact_pixels({str(photo)!r}, (30, 50, 3))):
    try:
        read()
    except PhotoError as error:
        print(error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.count("need Pillow: pip install 'nearest-etf[deploy]'") == 2
