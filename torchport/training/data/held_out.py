"""Validation images held out from the training split: the same share of every class, drawn by the seed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .images import ImageData
from .split import DataError

SHOWN = 5  # class names in a message


def uncovered(data: ImageData) -> list[str]:
    """Lines about gaps in held-out data: no validation data, or classes without validation or test images.

    >>> from .split import Split
    >>> train, val = (Split(np.zeros((n, 1, 1, 1), np.uint8), np.arange(n)) for n in (3, 1))
    >>> uncovered(ImageData("zeros", train, val, None, ("cat", "dog", "emu"), (0.0,), (1.0,)))
    ["validation data have no images of 2 of 3 classes: 'dog', 'emu'"]
    """
    lines = []
    if data.val is None:
        hint = "" if data.name == "ufm" else " (--val-fraction 0.1 holds out a tenth)"
        lines.append(f"no validation data: the last epoch is the result{hint}")
    for split, name in (("val", "validation"), ("test", "test")):
        if (held := data.splits().get(split)) is not None:
            sizes = np.bincount(held.labels, minlength=data.num_classes)
            missing = [repr(data.class_names[k]) for k in np.flatnonzero(sizes == 0)]
            if missing:
                shown = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if missing[SHOWN:] else "")
                lines.append(f"{name} data have no images of {len(missing)} of {data.num_classes} classes: {shown}")
    return lines


def hold_out(data: ImageData, fraction: float, seed: int) -> ImageData:
    """Move a share of each class's training images to a validation split.

    Parameters
    ----------
    data : ImageData
        Without a validation split.
    fraction : float
        Share of each class, rounded to whole images; each class keeps at least one image on either side.
    seed : int
        Seed of the choice of images.

    Raises
    ------
    DataError
        If the data set has a validation split, or a class has a single image.

    Examples
    --------
    >>> from .split import Split
    >>> train = Split(np.zeros((30, 1, 1, 1), np.uint8), np.repeat([0, 1, 2], 10))
    >>> data = hold_out(ImageData("zeros", train, None, None, ("a", "b", "c"), (0.0,), (1.0,)), 0.2, seed=0)
    >>> np.bincount(data.train.labels).tolist(), np.bincount(data.val.labels).tolist()
    ([8, 8, 8], [2, 2, 2])
    """
    if data.val is not None:
        raise DataError(f"{data.name} has a validation split: val_fraction = {fraction} is for data sets without one")
    labels = data.train.labels
    rng = np.random.default_rng([seed, data.num_classes, 1])  # another stream than that of `modified`
    val = []
    for k, name in enumerate(data.class_names):
        members = rng.permutation(np.flatnonzero(labels == k))
        if len(members) == 1:
            raise DataError(
                f"{data.name}: class {name!r} has a single training image, which cannot be split for validation: "
                "add images to it, provide val/ images, or set val_fraction = 0"
            )
        if len(members):
            val.append(members[: np.clip(round(fraction * len(members)), 1, len(members) - 1)])
    chosen = np.sort(np.concatenate(val))
    kept = np.setdiff1d(np.arange(len(labels)), chosen)
    return replace(data, train=data.train.take(kept), val=data.train.take(chosen))
