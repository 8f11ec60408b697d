"""The search for image files by names, patterns and folders, for training and prediction.

- Hidden files and folders (`._x.jpg` and `__MACOSX` of macOS, `.ipynb_checkpoints`) are skipped.
- Linked folders are followed once.
- All other skipped files and folders are counted and reported.
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
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")  # left by macOS archives and by Synology's photo index


def is_hidden(name: str) -> bool:
    """Whether a file or folder is skipped because of its name.

    >>> is_hidden("._1.jpg"), is_hidden("__MACOSX"), is_hidden("1.jpg")
    (True, True, False)
    """
    return name.startswith(".") or name in SYSTEM_FOLDERS


@dataclass
class FoundImages:
    """The result of a search.

    Attributes
    ----------
    paths : list of Path
        The images, sorted within each searched folder. Broken links are included, and fail when they are read.
    other_files : Counter
        Number of files without one of `IMAGE_SUFFIXES`, by suffix.
    followed_before : list of Path
        Linked folders whose target was already searched, or contains them.
    closed : list of Path
        Folders that could not be opened.
    """

    paths: list[Path] = field(default_factory=list)
    other_files: Counter[str] = field(default_factory=Counter)
    followed_before: list[Path] = field(default_factory=list)
    closed: list[Path] = field(default_factory=list)

    def notes(self) -> list[str]:
        """A line for each kind of skipped files and folders.

        >>> FoundImages(other_files=Counter({".heic": 2, "": 1})).notes()
        ['3 files have no known image suffix: 2 .heic, 1 without suffix']
        """
        notes = []
        if count := self.other_files.total():
            kinds = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in self.other_files.most_common(5))
            more = ", …" if len(self.other_files) > 5 else ""
            have = "file has" if count == 1 else "files have"
            notes.append(f"{count} {have} no known image suffix: {kinds}{more}")
        if self.followed_before:
            notes.append(_counted(self.followed_before, "linked folder(s) lead to a folder that was already searched"))
        if self.closed:
            notes.append(_counted(self.closed, "folder(s) cannot be opened"))
        return notes


def find_images(names: Iterable[str | Path]) -> FoundImages:
    """Image files from names, patterns (`"photos/*.png"`) and folders, which are searched recursively.

    In folders, files with one of `IMAGE_SUFFIXES` (in any case) are found. Named files and matches of a pattern are
    accepted with any suffix.

    Raises
    ------
    PhotoError
        If a name or pattern matches no file, or a folder holds no image.

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
    """Add all images below a folder to `found`, sorted."""
    start = len(found.paths)
    _search(folder, found, set(map(str, Path(os.path.realpath(folder)).parents)))
    found.paths[start:] = sorted(found.paths[start:])
    return found


def _search(first: Path, found: FoundImages, seen: set[str]) -> None:
    """Search below a folder; `seen` holds the real paths of searched folders and of the parents of the first one."""
    # A stack of folders and their real paths: nesting a thousand deep exceeds the recursion limit.
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
        entries.sort(key=lambda e: (e.is_symlink(), e.name))  # links last, so that a folder keeps its own name
        for entry in reversed(entries):
            if entry.is_dir():
                path = folder / entry.name
                folders.append((path, os.path.realpath(path) if entry.is_symlink() else os.path.join(real, entry.name)))
        for entry in entries:
            path = folder / entry.name
            if entry.is_dir() or not (entry.is_file() or entry.is_symlink()):  # reading a pipe or a device may block
                continue
            if path.suffix.lower() in IMAGE_SUFFIXES:
                found.paths.append(path)
            else:
                found.other_files[path.suffix.lower()] += 1


def _counted(paths: list[Path], what: str) -> str:
    return f"{len(paths)} {what}: {paths[0]}{', …' if len(paths) > 1 else ''}"
