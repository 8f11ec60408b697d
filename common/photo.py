"""Image files as arrays, by Pillow and NumPy: the one reader for training, evaluation and prediction.

- `evaluation_view` and `training_view` turn photos of any size and mode into the input of a network.
- `exact_pixels` reads images of exactly the size of the input without loss, and refuses all others.

All of them apply the EXIF orientation, and turn every error of Pillow into a `PhotoError`.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from .errors import UserError, first_line, nearest_name
from .files import reading

if TYPE_CHECKING:
    from PIL import Image

CROP_MODES = ("center", "squash")
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
# Pillow reads more formats, one of which runs another program (EPS). HEIF needs a plugin.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF")
LARGEST = 2**30  # bytes of a file, and of its pixels during conversion
ORIENTATION, BITS, PHOTOMETRIC = 0x0112, 0x0102, 0x0106  # tags of EXIF and TIFF
UPRIGHT = {  # the inverse of each EXIF orientation, as Pillow names it
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class PhotoError(UserError):
    """An image file that is missing, damaged or of an unsupported kind."""


@dataclass(frozen=True)
class PhotoTransform:
    """The preprocessing of photos for evaluation; checkpoints and exported files record it.

    Colours are converted first:

    - CMYK and palettes become RGB;
    - transparent pixels are blended with white;
    - 16-bit greyscale is scaled to 8 bits;
    - of an animation, the first frame is used.

    Then the photo is cropped and resized with antialiasing.

    Attributes
    ----------
    height, width : int
        Size of the result in pixels.
    channels : {3, 1}
        RGB, or greyscale.
    crop : float
        Share of each side that is kept, in (0, 1]: 0.875 removes 1/16 at each edge.
    crop_mode : {"center", "squash"}
        "center" keeps the largest centred part with the aspect ratio of the result, "squash" changes the aspect ratio.
    interpolation : {"nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"}

    Raises
    ------
    UserError
        If a value is out of range.

    Examples
    --------
    >>> PhotoTransform(224, 224).to_dict()["crop"]
    0.875
    """

    height: int
    width: int
    channels: int = 3
    crop: float = 0.875
    crop_mode: str = "center"
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 1 or self.channels not in (1, 3):
            shape = (self.height, self.width, self.channels)
            raise UserError(
                f"the shape of a photo is {shape}: expected a positive height and width, and 1 or 3 channels"
            )
        if not 0 < self.crop <= 1:
            raise UserError(f"crop is {self.crop}: expected a share of the sides, above 0 and at most 1")
        for kind, name, known in (
            ("crop_mode", self.crop_mode, CROP_MODES),
            ("interpolation", self.interpolation, INTERPOLATIONS),
        ):
            if name not in known:
                raise UserError(nearest_name(kind, str(name), known))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the result."""
        return self.height, self.width, self.channels

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The transform from the values of `to_dict`.

        >>> PhotoTransform.from_dict(PhotoTransform(8, 8, 1).to_dict()).shape
        (8, 8, 1)
        """
        return cls(**{f.name: values[f.name] for f in fields(cls)})


def evaluation_view(path: str | Path, transform: PhotoTransform) -> NDArray[np.uint8]:
    """A photo, preprocessed by the transform, (H, W, C).

    Raises
    ------
    PhotoError
        If the file is not an image, or its pixels have more than 16 bits.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("L", (40, 30), 200).save(f"{folder}/grey.png")
    ...     view = evaluation_view(f"{folder}/grey.png", PhotoTransform(16, 16))
    >>> view.shape, view[0, 0].tolist()
    ((16, 16, 3), [200, 200, 200])
    """
    image = open_photo(path, transform.channels)
    from PIL import Image, ImageOps

    size, method = (transform.width, transform.height), Image.Resampling[transform.interpolation.upper()]
    edge = (1 - transform.crop) / 2
    if transform.crop_mode == "center":
        view = ImageOps.fit(image, size, method, bleed=edge)
    else:
        left, upper = edge * image.width, edge * image.height
        view = image.resize(size, method, box=(left, upper, image.width - left, image.height - upper))
    return np.asarray(view).reshape(transform.shape)


def training_view(
    path: str | Path, transform: PhotoTransform, rng: np.random.Generator, *, flip: bool = False, scale: float = 0.08
) -> NDArray[np.uint8]:
    """A random crop of a photo, (H, W, C), with `flip` mirrored with probability 1/2; see `random_box`.

    Size, channels and interpolation are those of the transform.

    Raises
    ------
    PhotoError
        As `evaluation_view`.
    """
    image = open_photo(path, transform.channels)
    from PIL import Image, ImageOps

    box = random_box(image.size, rng, scale)
    method = Image.Resampling[transform.interpolation.upper()]
    view = image.resize((transform.width, transform.height), method, box=box)
    return np.asarray(ImageOps.mirror(view) if flip and rng.random() < 0.5 else view).reshape(transform.shape)


def random_box(size: tuple[int, int], rng: np.random.Generator, scale: float = 0.08) -> tuple[int, int, int, int]:
    """A random part of an image as (left, upper, right, lower).

    Its share of the area lies between `scale` and 1, and its aspect ratio between 3:4 and 4:3 (Szegedy et al. 2014,
    arXiv 1409.4842, section 6). If ten random parts do not fit into the image, the whole image is returned.
    """
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(scale, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, upper, left + w, upper + h
    return 0, 0, width, height


def exact_pixels(path: str | Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The pixels of an 8-bit image that has exactly the shape (H, W, C) of a model's input.

    All conversions are lossless: palettes and two-level images are expanded, a greyscale image is repeated in three
    channels, and the EXIF orientation is applied. CMYK, alpha, 16 bits, animations and other sizes are refused.

    Raises
    ------
    PhotoError
        If the file is not such an image.
    """
    height, width, channels = shape
    with _opened(path) as image:
        if getattr(image, "is_animated", False):  # n_frames would read every frame
            raise PhotoError(f"{path} is animated (more than one frame): save one frame as an image")
        if image.mode not in ("1", "L", "P", "RGB") or "transparency" in image.info:
            mode = f"{image.mode} with transparency" if "transparency" in image.info else image.mode
            raise PhotoError(f"{path} is a {mode} image: convert it to 8-bit {'RGB or ' * (channels == 3)}greyscale")
        if sorted(image.size) != sorted((width, height)):  # before decoding
            raise _wrong_size(path, image.size, (width, height))
        image.load()
        upright = _upright(image, image)
        if upright.size != (width, height):
            raise _wrong_size(path, upright.size, (width, height))
        if channels == 1 and image.mode in ("RGB", "P"):
            raise PhotoError(f"{path} is a colour image, but the model takes greyscale: convert it to 8-bit greyscale")
        return np.asarray(upright.convert("L" if channels == 1 else "RGB")).reshape(shape)


def open_photo(path: str | Path, channels: int = 3) -> Image.Image:
    """A photo in 8-bit RGB, or in greyscale for one channel, with its EXIF orientation applied; see `PhotoTransform`.

    Raises
    ------
    PhotoError
        If Pillow is missing or cannot read the file, or if its pixels have more than 16 bits.
    """
    with _opened(path) as image:
        if not all(image.size):
            raise PhotoError(f"{path} has no pixels")
        image.load()  # first: some decoders apply the orientation themselves and remove it from the EXIF data
        return _upright(_eight_bits(path, image).convert("L" if channels == 1 else "RGB"), image)


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """An image file whose header Pillow has read; any error in the block becomes a PhotoError about the file."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise PhotoError("image files need Pillow: pip install 'nearest-etf[deploy]', or pass arrays") from error
    with reading(path, "an image", PhotoError):
        about = os.stat(path)
        if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
            raise PhotoError(f"{path} is a pipe or a device: expected an image file")
        if about.st_size > LARGEST:
            raise PhotoError(f"{path} has {about.st_size} bytes: expected an image of at most {LARGEST}")
        try:
            image = Image.open(path, formats=_formats())
        except UnidentifiedImageError as error:  # its message only repeats the path
            known = ", ".join(_formats())
            raise PhotoError(f"{path} cannot be read (its format is none of {known}): expected an image") from error
        except Image.DecompressionBombError as error:
            raise PhotoError(f"{path} has too many pixels ({first_line(error)})") from error
        with image:
            _refuse_too_large(path, image)
            yield image


@cache
def _formats() -> tuple[str, ...]:
    """The members of `FORMATS` that the installed Pillow supports."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _refuse_too_large(path: str | Path, image: Image.Image) -> None:
    """Refuse too large photos before decoding: opaque ones above 89 megapixels, where Pillow warns, others at less."""
    width, height = image.size
    if image.mode.startswith(("I", "F")):
        each = 32  # bytes per pixel while it is converted
    else:
        each = 16 if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info else 12
    if width * height * each > LARGEST:
        megapixels = LARGEST // each // 10**6
        raise PhotoError(
            f"{path} has {width}×{height} pixels of mode {image.mode}: expected at most {megapixels} megapixels of "
            "this mode: scale it down"
        )


def _eight_bits(path: str | Path, image: Image.Image) -> Image.Image:
    """The image with at most 8 bits per channel and without transparency."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        tags = getattr(image, "tag_v2", {})
        white = 2 ** tags.get(BITS, (16,))[0] - 1  # a TIFF may have 12 bits
        values = np.asarray(image).astype(np.int64)
        if tags.get(PHOTOMETRIC) == 0:  # white is zero, which Pillow handles for 8 bits only
            values = white - values
        if (hidden := image.info.get("transparency")) is not None:
            values[values == hidden] = white
        return Image.fromarray(((values * 510 + white) // (2 * white)).astype(np.uint8))  # rounded
    if image.mode in ("I", "F"):
        raise PhotoError(f"{path} has 32 bits per pixel, of an unknown range: convert it to 8 or 16 bits")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode in ("1", "L", "P") else image.convert("RGB")  # Pillow cannot convert LAB to greyscale


def _upright(image: Image.Image, original: Image.Image) -> Image.Image:
    """The image with the EXIF orientation of the original applied; an invalid orientation is ignored."""
    from PIL import Image

    try:
        orientation = original.getexif().get(ORIENTATION)
    except Exception:  # damaged EXIF data is ignored: the pixels may be intact
        return image
    if not isinstance(orientation, int) or orientation not in UPRIGHT:
        return image
    return image.transpose(Image.Transpose[UPRIGHT[orientation]])


def _wrong_size(path: str | Path, found: tuple[int, int], expected: tuple[int, int]) -> PhotoError:
    sizes = [f"{width}×{height}" for width, height in (found, expected)]
    return PhotoError(f"{path} has {sizes[0]} pixels, but the model takes {sizes[1]}")
