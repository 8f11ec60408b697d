"""Image files: exact pixels or an error, and the views of photos for training and evaluation.

Modes and orientations are compared with NumPy and with Pillow's own functions.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from nearest_etf.common.errors import UserError
from nearest_etf.common.photo import (
    CROP_MODES,
    INTERPOLATIONS,
    PhotoError,
    PhotoTransform,
    evaluation_view,
    exact_pixels,
    open_photo,
    random_box,
    training_view,
)

GREY = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10  # (H, W)
COLOUR = np.stack([GREY, GREY.T.reshape(4, 6), 255 - GREY], axis=-1)  # (H, W, 3)
ORIENTATION = 0x0112  # EXIF
SMALL = PhotoTransform(4, 4)
WHOLE = PhotoTransform(4, 6, crop=1.0)  # of GREY and COLOUR: pixel for pixel
Maker = Callable[[Path], object]


def test_pixels_of_lossless_formats_are_exact(tmp_path: Path) -> None:
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
    image = Image.fromarray(np.rot90(GREY))  # as stored by a camera that was turned, (6, 4)
    exif = image.getexif()
    exif[ORIENTATION] = 6  # upright after a rotation by 90° clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(GREY).save(tmp_path / "upright.png")
    np.testing.assert_array_equal(exact_pixels(tmp_path / "turned.png", (4, 6, 1))[..., 0], GREY)
    np.testing.assert_array_equal(np.asarray(open_photo(tmp_path / "turned.png", 1)), GREY)
    turned, upright = (evaluation_view(tmp_path / f"{name}.png", SMALL) for name in ("turned", "upright"))
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
        ("animated.gif", r"is animated \(more than one frame\)"),
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
    "evaluation": lambda path: evaluation_view(path, SMALL),
    "training": lambda path: training_view(path, SMALL, np.random.default_rng(0)),
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
    with pytest.raises(PhotoError, match=r"bomb.png has too many pixels \(Image size"):
        READERS[reader](tmp_path / "bomb.png")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, reader: str, dtype: type) -> None:
    Image.fromarray(GREY.astype(dtype)).save(tmp_path / "wide.tif")
    with pytest.raises(PhotoError, match=r"wide.tif has 32 bits per pixel, of an unknown range"):
        READERS[reader](tmp_path / "wide.tif")


def test_16_bit_greyscale_is_scaled_to_8(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (4, 6)).astype(np.uint16)
    deep[0, :4] = 0, 128, 129, 65535
    expected = np.rint(deep / 257.0)
    for name in ("deep.png", "deep.tif", "deep.pgm"):
        Image.fromarray(deep).save(tmp_path / name)
        for channels in (1, 3):
            view = evaluation_view(tmp_path / name, PhotoTransform(4, 6, channels, crop=1.0))
            np.testing.assert_array_equal(view, np.repeat(expected[..., None], channels, 2), err_msg=name)
    Image.fromarray(deep).save(tmp_path / "hidden.png", transparency=65535)
    np.testing.assert_array_equal(evaluation_view(tmp_path / "hidden.png", WHOLE)[..., 0], expected)
    Image.fromarray(deep).save(tmp_path / "hidden.png", transparency=0)
    found = evaluation_view(tmp_path / "hidden.png", WHOLE)[..., 0]
    np.testing.assert_array_equal(found, np.where(deep == 0, 255, expected))


def test_16_bit_tiff_with_white_as_zero_is_inverted(tmp_path: Path) -> None:
    deep = GREY.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "black.tif")
    Image.fromarray(65535 - deep).save(tmp_path / "white.tif", tiffinfo={262: 0})
    data = bytearray((tmp_path / "white.tif").read_bytes())
    entry = data.index(struct.pack("<HHI", 262, 3, 1)) + 8
    data[entry : entry + 2] = b"\0\0"  # Pillow writes 1 in any case
    (tmp_path / "white.tif").write_bytes(data)
    np.testing.assert_array_equal(evaluation_view(tmp_path / "white.tif", WHOLE)[..., 0], GREY)
    np.testing.assert_array_equal(evaluation_view(tmp_path / "black.tif", WHOLE)[..., 0], GREY)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_blended_with_white(tmp_path: Path, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, len(mode)), np.uint8)
    pixels[0, 0, -1], pixels[0, 1, -1] = 0, 255
    Image.fromarray(pixels, mode).save(tmp_path / "see.png")
    view = evaluation_view(tmp_path / "see.png", WHOLE)
    colour, alpha = pixels[..., :-1].astype(float), pixels[..., -1:] / 255
    assert np.abs(view - (alpha * colour + (1 - alpha) * 255)).max() <= 1, "up to rounding"
    assert view[0, 0].tolist() == [255, 255, 255]
    assert (view[0, 1] == pixels[0, 1, :-1]).all()


def test_a_transparent_colour_becomes_white_in_every_mode(tmp_path: Path) -> None:
    palette = Image.fromarray(COLOUR).quantize(24)
    indices = np.asarray(palette)
    kinds: dict[str, tuple[Image.Image, object, np.ndarray]] = {
        "grey.png": (Image.fromarray(GREY), int(GREY[1, 1]), GREY[1, 1] == GREY),
        "colour.png": (Image.fromarray(COLOUR), tuple(map(int, COLOUR[1, 1])), (COLOUR[1, 1] == COLOUR).all(2)),
        "palette.png": (palette, int(indices[1, 1]), indices == indices[1, 1]),
        "bytes.png": (palette, bytes([*[255] * indices[1, 1], 0]), indices == indices[1, 1]),
        "two.png": (Image.fromarray(GREY < 100), 0, GREY >= 100),
    }
    for name, (image, transparent, hidden) in kinds.items():
        image.save(tmp_path / name, transparency=transparent)
        expected = np.where(hidden[..., None], 255, np.asarray(image.convert("RGB")))
        np.testing.assert_array_equal(evaluation_view(tmp_path / name, WHOLE), expected, err_msg=name)


def test_cmyk_of_cameras_and_scanners_is_converted(tmp_path: Path) -> None:
    cmyk = Image.new("CMYK", (6, 4), (0, 255, 255, 0))  # red
    for name in ("ink.jpg", "ink.tif"):
        cmyk.save(tmp_path / name)
        view = evaluation_view(tmp_path / name, SMALL)
        np.testing.assert_allclose(view.reshape(-1, 3), [[255, 0, 0]] * 16, atol=3)


def test_the_first_frame_of_an_animation_is_used(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((200, 10, 10), (0, 0, 255))]
    for name in ("moves.gif", "moves.png", "moves.webp", "pages.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        np.testing.assert_allclose(evaluation_view(tmp_path / name, SMALL)[0, 0], [200, 10, 10], atol=6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_every_exif_orientation_agrees_with_pillow(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(noise).save(path, exif=exif)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert expected.size == ((20, 30) if orientation > 4 else (30, 20))
    np.testing.assert_array_equal(np.asarray(open_photo(path)), np.asarray(expected))


def exif_bytes(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data with these entries (tag, type, count, value)."""
    body = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


SIDEWAYS = (ORIENTATION, 3, 1, b"\6\0\0\0")
STRANGE_EXIF = {
    "a string": (exif_bytes((ORIENTATION, 2, 2, b"6\0\0\0")), 1),
    "a fraction beyond the end": (exif_bytes((ORIENTATION, 5, 1, b"\xa0\x0f\0\0")), 1),
    "out of range": (exif_bytes((ORIENTATION, 3, 1, b"\x63\0\0\0")), 1),
    "a long": (exif_bytes((ORIENTATION, 4, 1, b"\6\0\0\0")), 6),
    "among entries of wrong types": (exif_bytes(SIDEWAYS, (0x011A, 3, 1, bytes(4)), (0x8769, 2, 4, b"abc\0")), 6),
    "beside pointers to nowhere": (exif_bytes(SIDEWAYS, (0x8825, 4, 1, b"\xff\xff\xff\x7f")), 6),
    "cut short": (b"Exif\0\0II*\0\xff\xff\xff\xff", 1),
    "no EXIF": (b"Exif\0\0garbage", 1),
}


@pytest.mark.parametrize("kind", STRANGE_EXIF)
@pytest.mark.filterwarnings("ignore::Warning:PIL")
def test_invalid_exif_is_ignored(tmp_path: Path, kind: str) -> None:
    exif, orientation = STRANGE_EXIF[kind]
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    noise.save(tmp_path / "strange.jpg", exif=exif)
    noise.save(tmp_path / "plain.jpg")
    expected = np.asarray(Image.open(tmp_path / "plain.jpg"))
    np.testing.assert_array_equal(
        np.asarray(open_photo(tmp_path / "strange.jpg")), np.rot90(expected, -1) if orientation == 6 else expected
    )


@pytest.mark.filterwarnings("ignore::Warning:PIL")
def test_damaged_files_of_every_format_raise_only_photo_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # limits the time for damaged sizes
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (12, 9)).astype(np.uint16))
    kinds = {**dict.fromkeys(("jpg", "png", "gif", "tif", "bmp", "ppm", "webp"), image), "pgm": deep}
    refusals: list[tuple[str, str]] = []
    for suffix, whole in kinds.items():
        path = tmp_path / f"broken.{suffix}"
        whole.save(path)
        data = path.read_bytes()
        for _ in range(60):
            damaged = bytearray(data)
            for place in rng.integers(0, min(len(data), int(rng.choice([30, 100, 1000]))), rng.integers(1, 5)):
                damaged[place] = int(rng.choice([0, 255, int(rng.integers(256))]))
            path.write_bytes(damaged[: rng.integers(len(data)) if rng.random() < 0.2 else None])
            for read in (*READERS.values(), lambda path: exact_pixels(path, (12, 9, 3))):
                try:
                    read(path)
                except PhotoError as error:
                    refusals.append((path.name, str(error)))
    assert len(refusals) > 200
    assert all(name in message and "\n" not in message for name, message in refusals)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Noise of 50 × 30 pixels."""
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)).save(path)
    return path


def test_evaluation_view_is_the_centre_crop(photo: Path) -> None:
    expected = ImageOps.fit(Image.open(photo), (16, 16), Image.Resampling.BILINEAR, bleed=1 / 16)
    np.testing.assert_array_equal(evaluation_view(photo, PhotoTransform(16, 16)), np.asarray(expected))


def test_nearest_interpolation_selects_pixels(photo: Path) -> None:
    pixels = np.asarray(Image.open(photo))  # (30, 50, 3)
    centre = PhotoTransform(10, 20, crop=0.8, interpolation="nearest")
    rows, columns = 3 + 2 * np.arange(10) + 3, 5 + 2 * np.arange(20) + 1  # of 24 × 40, the middle 20 × 40
    np.testing.assert_array_equal(evaluation_view(photo, centre), pixels[rows][:, columns])
    squashed = PhotoTransform(6, 10, crop=1.0, crop_mode="squash", interpolation="nearest")
    np.testing.assert_array_equal(evaluation_view(photo, squashed), pixels[2::5][:, 2::5])


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_photo_of_the_right_size_is_unchanged(photo: Path, crop_mode: str, interpolation: str) -> None:
    same = PhotoTransform(30, 50, crop=1.0, crop_mode=crop_mode, interpolation=interpolation)
    np.testing.assert_array_equal(evaluation_view(photo, same), np.asarray(Image.open(photo)))
    np.testing.assert_array_equal(evaluation_view(photo, same), exact_pixels(photo, (30, 50, 3)))


@pytest.mark.parametrize("size", [(1, 1), (3000, 20), (20, 3000), (2, 1)])
@pytest.mark.parametrize("crop_mode", CROP_MODES)
def test_photos_of_every_shape_fill_the_view(tmp_path: Path, size: tuple[int, int], crop_mode: str) -> None:
    Image.new("RGB", size, (9, 8, 7)).save(tmp_path / "shape.png")
    for transform in (PhotoTransform(16, 24, crop_mode=crop_mode), PhotoTransform(16, 24, crop=0.01)):
        assert np.unique(evaluation_view(tmp_path / "shape.png", transform).reshape(-1, 3), axis=0).tolist() == [
            [9, 8, 7]
        ]
    assert training_view(tmp_path / "shape.png", SMALL, np.random.default_rng(0)).shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"height": 0}, r"the shape of a photo is \(0, 8, 3\)"),
        ({"channels": 4}, "1 or 3 channels"),
        ({"crop": 0.0}, "crop is 0.0: expected a share"),
        ({"crop": float("nan")}, "crop is nan"),
        ({"crop_mode": "centre"}, "unknown crop_mode 'centre': did you mean 'center'"),
        ({"interpolation": "cubic"}, "unknown interpolation 'cubic': did you mean 'bicubic'"),
    ],
)
def test_transforms_out_of_range_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PhotoTransform(**{"height": 8, "width": 8, **values})  # type: ignore[arg-type]


def test_a_transform_survives_json() -> None:
    transform = PhotoTransform(20, 30, 1, 0.9, "squash", "bicubic")
    assert PhotoTransform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform
    with pytest.raises(KeyError):
        PhotoTransform.from_dict({"height": 3})


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK"])
def test_views_have_the_channels_of_the_transform_in_every_mode(tmp_path: Path, photo: Path, mode: str) -> None:
    path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
    Image.open(photo).convert(mode).save(path)
    for channels in (1, 3):
        transform = PhotoTransform(16, 12, channels)
        assert evaluation_view(path, transform).shape == (16, 12, channels)
        assert training_view(path, transform, np.random.default_rng(0)).shape == (16, 12, channels)


def test_training_view_is_a_random_box_mirrored_at_random(photo: Path) -> None:
    mirrored = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        box = random_box((50, 30), rng)
        expected = np.asarray(Image.open(photo).resize((16, 16), Image.Resampling.BILINEAR, box=box))
        flipped = rng.random() < 0.5
        mirrored += flipped
        transform = PhotoTransform(16, 16)
        np.testing.assert_array_equal(training_view(photo, transform, np.random.default_rng(seed)), expected)
        view = training_view(photo, transform, np.random.default_rng(seed), flip=True)
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
    smallest = min((r - x) * (b - y) for x, y, r, b in (random_box((300, 200), rng, 0.5) for _ in range(200)))
    assert 0.49 < smallest / 60000 < 0.6
    assert random_box((1000, 1), rng) == (0, 0, 1000, 1), "no box fits: the whole image"


def test_without_pillow_the_remedy_is_named(photo: Path) -> None:
    script = f"""
import sys
sys.modules["PIL"] = None
from nearest_etf.common.photo import PhotoError, PhotoTransform, evaluation_view, exact_pixels
photo = {str(photo)!r}
for read in (lambda: evaluation_view(photo, PhotoTransform(8, 8)), lambda: exact_pixels(photo, (30, 50, 3))):
    try:
        read()
    except PhotoError as error:
        print(error)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.count("need Pillow: pip install 'nearest-etf[deploy]'") == 2
