"""Image files as arrays that a model takes: what is unambiguous is read, the rest refused with a remedy."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..export.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


def find_images(names: Iterable[str | Path]) -> list[Path]:
    """Files named directly, by a pattern (`"photos/*.png"`), or by a folder, with all below it.

    Raises
    ------
    InputError
        If a name leads to no image.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise InputError(f"{path} holds no images (looked for {', '.join(SUFFIXES)})")
            found += inside
        elif path.is_file():
            found.append(path)
        elif matches := sorted(Path(m) for m in glob.glob(str(name), recursive=True) if Path(m).is_file()):
            found += matches
        else:
            raise InputError(f"{name} is neither a file, nor a folder, nor a pattern that matches any")
    return found


def load_image(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """One 8-bit image of exactly the size and channels (H, W, C) that a model was trained on.

    Palettes and two-level images are unpacked, a grey image fills three equal channels, and a camera's
    note about which side is up is followed: none of these guesses. CMYK, alpha, 16 bits, animations and
    other sizes are refused.

    Raises
    ------
    InputError
        If the file is no such image.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise InputError("reading image files needs Pillow: pip install Pillow, or pass arrays") from error

    height, width, channels = shape
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise InputError(f"{path} is animated ({image.n_frames} frames): save one frame as an image")  # type: ignore[attr-defined]
            if image.mode not in ("1", "L", "P", "RGB") or "transparency" in image.info:
                mode = f"{image.mode} with transparency" if "transparency" in image.info else image.mode
                raise InputError(
                    f"{path} is a {mode} image: convert it to 8-bit {'RGB or ' * (channels == 3)}greyscale"
                )
            if sorted(image.size) != sorted((width, height)):
                raise InputError(f"{path} has {_size(image.size)} pixels, but the model takes {_size((width, height))}")
            upright = ImageOps.exif_transpose(image)
            if upright.size != (width, height):
                raise InputError(
                    f"{path} has {_size(upright.size)} pixels, but the model takes {_size((width, height))}"
                )
            if channels == 1 and image.mode in ("RGB", "P"):
                raise InputError(
                    f"{path} is a colour image, but the model takes greyscale: convert it to 8-bit greyscale"
                )
            pixels = np.asarray(upright.convert("L" if channels == 1 else "RGB"))
    except InputError:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path} cannot be read as an image ({error})") from error
    return pixels.reshape(shape)


def load_images(paths: Sequence[Path], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Images of one shape, (N, H, W, C)."""
    return np.stack([load_image(path, shape) for path in paths])


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
