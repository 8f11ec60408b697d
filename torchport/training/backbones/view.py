"""The preprocessing of a pretrained network: size, normalisation and crop, from its own configuration.

timm keeps them in `pretrained_cfg`, torchvision in `weights.transforms()`, and your own network may have `mean`, `std`,
`input_size`, `interpolation` and `crop_pct` as attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

from ....common.photo import CROP_MODES, INTERPOLATIONS

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean, std: red green blue


@dataclass(frozen=True)
class View:
    """The preprocessing of images for a network; None: not specified.

    Attributes
    ----------
    size : int
        Side in pixels.
    mean, std : per channel, on the 0…1 scale
    interpolation : str
        "bilinear", "bicubic", …
    crop : float
        Share of the photo's sides that is kept, as in `PhotoTransform`.
    crop_mode : str
    """

    size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop: float | None = None
    crop_mode: str | None = None

    @classmethod
    def of(cls, source: Any) -> View:
        """The view in a mapping or an object, by timm's names; other entries are ignored.

        >>> View.of({"input_size": (3, 224, 224), "mean": (0.5, 0.5, 0.5), "crop_pct": 0.95})
        View(size=224, mean=(0.5, 0.5, 0.5), std=None, interpolation=None, crop=0.95, crop_mode=None)
        """

        def get(name: str) -> Any:
            return source.get(name) if isinstance(source, dict) else getattr(source, name, None)

        size, crop = get("input_size"), get("crop_pct")
        if isinstance(size, tuple | list) and size:
            size = size[-1]
        interpolation, mode = get("interpolation"), get("crop_mode")
        return cls(
            size if isinstance(size, int) else None,
            _numbers(get("mean")),
            _numbers(get("std")),
            interpolation if interpolation in INTERPOLATIONS else None,  # timm has a "random" one, too
            min(float(crop), 1.0) if isinstance(crop, int | float) else None,
            mode if mode in CROP_MODES else None,
        )

    @classmethod
    def recorded(cls, data: Mapping[str, Any]) -> View:
        """The view that a checkpoint records of its data."""
        transform = data.get("transform", {})
        crop = (transform.get(name) for name in ("interpolation", "crop", "crop_mode"))
        return cls(data["image_shape"][0], tuple(data["mean"]), tuple(data["std"]), *crop)

    def or_else(self, other: View) -> View:
        """This view, completed from another one."""
        return View(*(b if a is None else a for a, b in zip(astuple(self), astuple(other), strict=True)))

    def channels(self, count: int) -> View:
        """The view for images of `count` channels; if it has another number of channels, their averages."""
        mean, std = (
            values if values is None or len(values) == count else (sum(values) / len(values),) * count
            for values in (self.mean, self.std)
        )
        return replace(self, mean=mean, std=std)


def _numbers(values: Any) -> tuple[float, ...] | None:
    """A list or tuple of numbers; None for anything else, such as the tensors of a network that normalises inside."""
    if not isinstance(values, tuple | list) or not values or not all(isinstance(v, int | float) for v in values):
        return None
    return tuple(float(v) for v in values)
