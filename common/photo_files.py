"""Finding image files: named ones, patterns, and folders with all below them; training and prediction find in one way.

Hidden files and folders (`._x.jpg` and `__MACOSX` of macOS, `.ipynb_checkpoints`) are passed over, linked folders are
followed once, and whatever else is left out is counted, so that nothing goes missing in silence.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from .photo import PhotoError

IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)


SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")  # what unpacking a macOS archive and Synology's photo index leave behind


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over by its name.

    >>> is_hidden("._1.jpg"), is_hidden("__MACOSX"), is_hidden("1.jpg")
    (True, True, False)
    """
    return name.startswith(".") or name in SYSTEM_FOLDERS


@dataclass
class FoundImages:
    """The outcome of a search.

    Attributes
    ----------
    paths : list of Path
        The images, sorted within each folder that was searched. A link to nowhere is among them: it is a broken image.
    other_files : Counter
        Files that are no images by their name, by suffix.
    followed_before : list of Path
        Linked folders that lead to a folder which was searched already, or back to one around them.
    closed : list of Path
        Folders that could not be opened.
    """

    paths: list[Path] = field(default_factory=list)
    other_files: Counter[str] = field(default_factory=Counter)
    followed_before: list[Path] = field(default_factory=list)
    closed: list[Path] = field(default_factory=list)

    def notes(self) -> list[str]:
        """A line for each kind of thing that was left out.

        >>> FoundImages(other_files=Counter({".heic": 2, "": 1})).notes()
        ['3 files are no images by their names: 2 .heic, 1 without suffix']
        """
        notes = []
        if count := self.other_files.total():
            kinds = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in self.other_files.most_common(5))
            more = ", …" if len(self.other_files) > 5 else ""
            are = "file is no image by its name" if count == 1 else "files are no images by their names"
            notes.append(f"{count} {are}: {kinds}{more}")
        if self.followed_before:
            notes.append(_counted(self.followed_before, "linked folder(s) lead to what was searched already"))
        if self.closed:
            notes.append(_counted(self.closed, "folder(s) cannot be opened"))
        return notes


def find_images(names: Iterable[str | Path]) -> FoundImages:
    """Files named directly, by a pattern (`"photos/*.png"`), or by a folder, with all below it.

    A folder gives the files with one of `IMAGE_SUFFIXES`, in either case; what a name or a pattern says is taken as it
    is.

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
    found = FoundImages()
    for name in names:
        path = Path(name)
        if path.is_dir():
            before = len(found.paths)
            search(path, found)
            if len(found.paths) == before:
                but = f"; {'; '.join(notes)}" if (notes := found.notes()) else ""
                raise PhotoError(f"{path} holds no images (looked for {', '.join(IMAGE_SUFFIXES)}){but}")
        elif path.is_file():
            found.paths.append(path)
        elif matches := sorted(Path(m) for m in glob.glob(str(name), recursive=True) if Path(m).is_file()):
            found.paths += matches
        else:
            raise PhotoError(f"{name} is neither a file, nor a folder, nor a pattern that matches any")
    return found


def search(folder: Path, found: FoundImages) -> FoundImages:
    """Add all images below a folder to what was found, sorted."""
    start = len(found.paths)
    _search(folder, found, set(map(str, Path(os.path.realpath(folder)).parents)))
    found.paths[start:] = sorted(found.paths[start:])
    return found


def _search(first: Path, found: FoundImages, seen: set[str]) -> None:
    """`seen` holds the real paths of the folders that were searched, and of those around the first one."""
    # Still to be searched, with their real paths; a stack, for folders may be nested a thousand deep.
    folders = [(first, os.path.realpath(first))]
    while folders:
        folder, real = folders.pop()
        if real in seen:
            found.followed_before.append(folder)
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as scan:
                entries = [entry for entry in scan if not is_hidden(entry.name)]
        except OSError:
            found.closed.append(folder)
            continue
        entries.sort(key=lambda e: (e.is_symlink(), e.name))  # links last, so that a folder goes by its own name
        for entry in reversed(entries):
            if entry.is_dir():
                path = folder / entry.name
                folders.append((path, os.path.realpath(path) if entry.is_symlink() else os.path.join(real, entry.name)))
        for entry in entries:
            path = folder / entry.name
            if entry.is_dir() or not (entry.is_file() or entry.is_symlink()):  # a pipe or device would be waited for
                continue
            if path.suffix.lower() in IMAGE_SUFFIXES:
                found.paths.append(path)
            else:
                found.other_files[path.suffix.lower()] += 1


def _counted(paths: list[Path], what: str) -> str:
    return f"{len(paths)} {what}: {paths[0]}{', …' if len(paths) > 1 else ''}"
