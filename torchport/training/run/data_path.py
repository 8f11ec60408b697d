"""The location of a run's data: the meaning of a value of `data`, from any working directory. Needs no torch."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from .settings import DATA_SETS, Settings, SettingsError

CLOSE = 0.75  # similarity from which a name that is not a folder counts as a mistyped data set


def data_folder(value: str) -> Path | None:
    """The absolute path of the image folder that a value of `data` names; None for a data set's name, even mistyped.

    A value names a folder if it has a path separator, is a folder here, or is not close to a data set's name. The
    folder need not exist.

    Examples
    --------
    >>> data_folder("digits"), data_folder("cifar11")
    (None, None)
    >>> data_folder("./digits").name, data_folder("photos").is_absolute()
    ('digits', True)
    """
    if value in DATA_SETS:
        return None
    folder = Path(os.path.abspath(Path(value).expanduser()))
    separated = any(separator in value for separator in (os.sep, os.altsep, "/") if separator)
    if separated or folder.is_dir() or not difflib.get_close_matches(value, DATA_SETS, n=1, cutoff=CLOSE):
        return folder
    return None


def data_label(value: str) -> str:
    """A short name of the data: a data set's name, or a folder's name without its path.

    >>> data_label("digits"), data_label("/home/me/photos")
    ('digits', 'photos')
    """
    folder = data_folder(value)
    return value if folder is None else folder.name


def folder_recipe(values: Mapping[str, Any]) -> str | None:
    """The default recipe of settings that name an image folder; None for other settings.

    >>> folder_recipe({"data": "./photos"}), folder_recipe({"data": "./photos", "pretrained": True})
    ('photos', 'fine-tune')
    """
    if data_folder(str(values.get("data", "digits"))) is None:
        return None
    return "fine-tune" if values.get("pretrained") or values.get("weights") else "photos"


def located(settings: Settings, data: str | None = None) -> Settings:
    """Settings whose image folder is an absolute path.

    Parameters
    ----------
    settings : Settings
    data : str, optional
        The new location of the image folder.

    Raises
    ------
    SettingsError
        If `data` differs and either value does not name a folder.
    """
    folder = data_folder(settings.data)
    if data is not None and data != settings.data:
        moved = data_folder(data)
        if folder is None or moved is None:
            found = settings.data if folder is None else data
            raise SettingsError(
                f"data is {data!r}, but has to be the new location of an image folder: {found} is not a folder"
            )
        folder = moved
    return settings if folder is None else replace(settings, data=str(folder))


def default_output(settings: Settings) -> str:
    """The default run folder, named after the recipe, the data unless the recipe implies them, head and seed.

    >>> default_output(Settings(recipe="cifar10-resnet18", data="cifar10", head="fixed"))
    'runs/cifar10-resnet18-fixed-seed0'
    >>> default_output(Settings(recipe="photos", data="/home/me/birds", head="fixed"))
    'runs/birds-fixed-seed0'
    """
    return f"{default_sweep(settings)}-{settings.head}-seed{settings.seed}"


def default_sweep(settings: Settings) -> str:
    """The default folder of a sweep's run folders."""
    label = data_label(settings.data)
    words = [settings.recipe] if settings.recipe not in ("custom", "photos") else []
    if label and not (words and f"{settings.recipe}-".startswith(f"{label}-")):
        words.append(label)
    return f"runs/{'-'.join(words) or 'custom'}"
