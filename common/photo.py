"""Image files as arrays, by Pillow and NumPy alone: training, evaluation and prediction read files here, in one way.

`evaluation_view` and `training_view` turn photos of any size into squares, for image folders; `exact_pixels` changes
no pixel, for models that take one size. All three apply the EXIF orientation.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import UserError
from .files import reading

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class PhotoError(UserError):
    """An image file that is missing, damaged, or not of a kind that can be used."""


def find_images(names: Iterable[str | Path]) -> list[Path]:
    """Files named directly, by a pattern (`"photos/*.png"`), or by a folder, with all below it.

    Raises
    ------
    PhotoError
        If a name leads to no image.

    Examples
    --------
    >>> find_images(["nowhere"])
    Traceback (most recent call last):
    ...
    nearest_etf.common.photo.PhotoError: nowhere is neither a file, nor a folder, nor a pattern that matches any
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise PhotoError(f"{path} holds no images (looked for {', '.join(IMAGE_SUFFIXES)})")
            found += inside
        elif path.is_file():
            found.append(path)
        elif matches := sorted(Path(m) for m in glob.glob(str(name), recursive=True) if Path(m).is_file()):
            found += matches
        else:
            raise PhotoError(f"{name} is neither a file, nor a folder, nor a pattern that matches any")
    return found


def open_photo(path: str | Path) -> Image.Image:
    """A decoded image of whatever mode, EXIF orientation applied.

    Raises
    ------
    PhotoError
        If Pillow is missing, or cannot read the file.
    """
    with _opened(path) as image:
        from PIL import ImageOps

        return ImageOps.exif_transpose(image)


def evaluation_view(path: str | Path, size: int) -> NDArray[np.uint8]:
    """The middle of a photo, (size, size, 3): what a model is evaluated on.

    1/16 is cut off at each edge; of the rest, the largest centred square is scaled to `size`.

    Raises
    ------
    PhotoError
        If the file is no image, or has more than 8 bits per channel.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("L", (40, 30), 200).save(f"{folder}/grey.png")
    ...     view = evaluation_view(f"{folder}/grey.png", 16)
    >>> view.shape, view[0, 0].tolist()
    ((16, 16, 3), [200, 200, 200])
    """
    image = _colour(path)
    from PIL import Image, ImageOps

    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR, bleed=1 / 16))


def training_view(path: str | Path, size: int, rng: np.random.Generator, flip: bool = False) -> NDArray[np.uint8]:
    """A random part of a photo, (size, size, 3), with `flip` mirrored half of the time; see `random_box`.

    Raises
    ------
    PhotoError
        If the file is no image, or has more than 8 bits per channel.
    """
    image = _colour(path)
    from PIL import Image, ImageOps

    box = random_box(image.size, rng)
    view = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(ImageOps.mirror(view) if flip and rng.random() < 0.5 else view)


def random_box(size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A random part of an image as (left, upper, right, lower).

    Between 8 and 100 % of its area, and between 3:4 and 4:3 (Szegedy et al. 2014, arXiv 1409.4842, section 6).
    """
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, upper, left + w, upper + h
    return 0, 0, width, height


def exact_pixels(path: str | Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """An 8-bit image of exactly the size and channels (H, W, C) that a model takes, pixel for pixel.

    Palettes and two-level images are unpacked, a grey image fills three equal channels, and the EXIF orientation is
    applied: none of these guesses. CMYK, alpha, 16 bits, animations and other sizes are refused.

    Raises
    ------
    PhotoError
        If the file is no such image.
    """
    height, width, channels = shape
    with _opened(path) as image:
        from PIL import ImageOps

        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise PhotoError(f"{path} is animated ({frames} frames): save one frame as an image")
        if image.mode not in ("1", "L", "P", "RGB") or "transparency" in image.info:
            mode = f"{image.mode} with transparency" if "transparency" in image.info else image.mode
            raise PhotoError(f"{path} is a {mode} image: convert it to 8-bit {'RGB or ' * (channels == 3)}greyscale")
        if sorted(image.size) != sorted((width, height)):  # before anything is decoded
            raise _wrong_size(path, image.size, (width, height))
        upright = ImageOps.exif_transpose(image)
        if upright.size != (width, height):
            raise _wrong_size(path, upright.size, (width, height))
        if channels == 1 and image.mode in ("RGB", "P"):
            raise PhotoError(f"{path} is a colour image, but the model takes greyscale: convert it to 8-bit greyscale")
        return np.asarray(upright.convert("L" if channels == 1 else "RGB")).reshape(shape)


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """An image file of which Pillow has read the header; whatever fails in the block is a PhotoError about the file."""
    try:
        from PIL import Image
    except ImportError as error:
        raise PhotoError("image files need Pillow: pip install 'nearest-etf[deploy]', or pass arrays") from error
    with reading(path, "an image", PhotoError), Image.open(path) as image:
        yield image


def _colour(path: str | Path) -> Image.Image:
    """The photo in RGB; alpha is dropped."""
    image = open_photo(path)
    if image.mode.startswith(("I", "F")):  # they would be clipped to 8 bits, not scaled
        raise PhotoError(f"{path} has more than 8 bits per pixel (mode {image.mode}): convert it to 8 bits")
    with reading(path, "an image", PhotoError):
        return image.convert("RGB")


def _wrong_size(path: str | Path, found: tuple[int, int], expected: tuple[int, int]) -> PhotoError:
    sizes = [f"{width}×{height}" for width, height in (found, expected)]
    return PhotoError(f"{path} has {sizes[0]} pixels, but the model takes {sizes[1]}")
