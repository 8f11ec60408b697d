"""Files: everything unambiguous is read, everything else is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nearest_etf.export import InputError
from nearest_etf.common.photo import find_images, load_image, load_images

GREY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10  # (H, W)
COLOUR = np.stack([GREY, GREY.T.reshape(4, 6), 255 - GREY], axis=-1)  # (H, W, 3)


def test_lossless_kinds_come_back_exactly(tmp_path: Path) -> None:
    two_level = Image.fromarray(GREY > 100)
    palette = Image.fromarray(GREY).convert("RGB").quantize(64)
    kinds = {"grey.png": Image.fromarray(GREY), "two.png": two_level, "grey.tif": Image.fromarray(GREY)}
    for name, image in kinds.items():
        image.save(tmp_path / name)
    palette.save(tmp_path / "palette.png")
    Image.fromarray(COLOUR).save(tmp_path / "colour.bmp")

    np.testing.assert_array_equal(load_image(tmp_path / "grey.png", (4, 6, 1))[..., 0], GREY)
    np.testing.assert_array_equal(load_image(tmp_path / "grey.tif", (4, 6, 1))[..., 0], GREY)
    np.testing.assert_array_equal(load_image(tmp_path / "two.png", (4, 6, 1))[..., 0], (GREY > 100) * np.uint8(255))
    np.testing.assert_array_equal(load_image(tmp_path / "colour.bmp", (4, 6, 3)), COLOUR)
    np.testing.assert_array_equal(load_image(tmp_path / "grey.png", (4, 6, 3)), np.stack([GREY] * 3, axis=-1))
    np.testing.assert_array_equal(
        load_image(tmp_path / "palette.png", (4, 6, 3))[..., 1], np.asarray(palette.convert("L"))
    )
    assert load_images([tmp_path / "grey.png"] * 3, (4, 6, 1)).shape == (3, 4, 6, 1)


def test_a_camera_s_orientation_is_followed(tmp_path: Path) -> None:
    image = Image.fromarray(np.rot90(GREY))  # as a camera on its side would store it, (6, 4)
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90° clockwise to see it upright
    image.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "turned.png", (4, 6, 1))[..., 0], GREY)


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
        ("empty.png", "cannot be read as an image"),
        ("text.png", "cannot be read as an image"),
        ("truncated.png", "cannot be read as an image"),
        ("missing.png", "cannot be read as an image"),
    ],
)
def test_other_kinds_are_refused(tmp_path: Path, name: str, message: str) -> None:
    colour, grey = Image.fromarray(COLOUR), Image.fromarray(GREY)
    frames = [Image.fromarray(GREY + np.uint8(k)) for k in range(2)]
    makers: dict[str, Callable[[Path], object]] = {
        "one.png": lambda path: Image.new("L", (1, 1)).save(path),
        "turned.png": lambda path: Image.fromarray(GREY.T.copy()).save(path),
        "cmyk.jpg": lambda path: colour.convert("CMYK").save(path),
        "deep.png": lambda path: Image.fromarray(GREY.astype(np.uint16) * 256).save(path),
        "float.tif": lambda path: Image.fromarray(GREY.astype(np.float32)).save(path),
        "alpha.png": lambda path: colour.convert("RGBA").save(path),
        "seethrough.gif": lambda path: grey.convert("P").save(path, transparency=0),
        "animated.gif": lambda path: frames[0].save(path, save_all=True, append_images=frames[1:]),
        "colour.png": colour.save,
        "empty.png": lambda path: path.write_bytes(b""),
        "text.png": lambda path: path.write_text("no image"),
        "truncated.png": lambda path: path.write_bytes(_png(colour, tmp_path)[:60]),
        "missing.png": lambda path: None,
    }
    makers[name](tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        load_image(tmp_path / name, (4, 6, 1))
    assert name in str(caught.value)


def _png(image: Image.Image, folder: Path) -> bytes:
    image.save(folder / "whole.png")
    return (folder / "whole.png").read_bytes()


def test_finds_files_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.txt", "deep/er/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    inside = [tmp_path / name for name in ("a.JPG", "b.png", "deep/er/d.png")]
    assert find_images([tmp_path]) == inside
    assert find_images([str(tmp_path / "*.png"), tmp_path / "c.txt"]) == [inside[1], tmp_path / "c.txt"]
    assert find_images([str(tmp_path / "**" / "*.png")]) == inside[1:]


def test_names_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no images"):
        find_images([tmp_path])
    with pytest.raises(InputError, match="neither a file, nor a folder, nor a pattern"):
        find_images([tmp_path / "*.png"])
