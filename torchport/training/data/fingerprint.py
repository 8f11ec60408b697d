"""The record of a run's data (class names, location, fingerprints), and its comparison with the present data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .folder_split import FolderSplit
from .images import ImageData
from .split import DataError

SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
SHOWN = 5  # class names in a message


def recorded(data: ImageData) -> dict[str, Any]:
    """The data entry of config.json and of every checkpoint.

    `ImageData.to_dict()` (name, class names, image shape, mean, std, and size and SHA-256 of every split: of pixels and
    labels in memory, of names, sizes and labels of files), and `path`, the absolute one of an image folder.

    Examples
    --------
    >>> from .load import load_data
    >>> record = recorded(load_data("digits"))
    >>> record["name"], record["train_size"], record["path"]
    ('digits', 1437, None)
    """
    path = str(data.train.root.absolute()) if isinstance(data.train, FolderSplit) else None
    return {**data.to_dict(), "path": path}


def compare_data(kept: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """One line on how the present data differ from those that a run was trained on; empty if they do not.

    Parameters
    ----------
    kept : mapping
        `recorded(data)` of the run. Without fingerprints, as in version 0.1.0, only classes are compared.
    now : mapping
        `recorded(data)` of the present data.

    Raises
    ------
    DataError
        If the class lists differ: a label would mean another class.
    """
    ours, theirs = tuple(kept["class_names"]), tuple(now["class_names"])
    if ours != theirs:
        raise DataError(f"{now['name']} has other classes than the run was trained on: {_difference(ours, theirs)}")
    if "train_sha256" not in kept:
        return ""
    changed = []
    for split, name in SPLIT_NAMES.items():
        if kept.get(f"{split}_sha256") != now.get(f"{split}_sha256"):
            before, after = (int(record.get(f"{split}_size", 0)) for record in (kept, now))
            changed.append(f"{name} images ({after}, {before} then)" if before != after else f"{name} images")
    if not changed:
        return ""
    line = f"{now['name']} has changed since the run was trained: other {', '.join(changed)}"
    held_out = len(changed) > 1 or not changed[0].startswith("training")
    return f"{line}; held-out images may include images that it was trained on" if held_out else line


def _difference(ours: Iterable[str], theirs: Iterable[str]) -> str:
    """Which classes one list has and the other lacks.

    >>> _difference(["cat", "dog"], ["dog", "zebra-cat"])
    "'cat' is missing, 'zebra-cat' is new; give them the names of the run, or train again"
    """
    missing, new = (sorted(set(a) - set(b)) for a, b in ((ours, theirs), (theirs, ours)))
    parts = [f"{_listed(names)} {state}" for names, state in ((missing, "missing"), (new, "new")) if names]
    found = ", ".join(parts) or "the same names in another order"
    return f"{found}; give them the names of the run, or train again"


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if names[SHOWN:] else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"
