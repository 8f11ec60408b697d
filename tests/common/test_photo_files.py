"""The search for images: what it finds, and how it reports skipped files."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from nearest_etf.common.photo import PhotoError
from nearest_etf.common.photo_files import IMAGE_SUFFIXES, FoundImages, find_images, search


def make(folder: Path, *names: str) -> list[Path]:
    """Empty files below a folder."""
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def test_finds_files_folders_and_patterns(tmp_path: Path) -> None:
    a, b, c, d = make(tmp_path, "a.JPG", "b.png", "c.txt", "deep/er/d.png")
    assert find_images([tmp_path]).paths == [a, b, d]
    assert find_images([str(tmp_path / "*.png"), c]).paths == [b, c]
    assert find_images([str(tmp_path / "**" / "*.png")]).paths == [b, d]


def test_names_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="holds no images"):
        find_images([tmp_path])
    with pytest.raises(PhotoError, match="neither a file, nor a folder, nor a pattern"):
        find_images([tmp_path / "*.png"])
    make(tmp_path, "a.heic")
    with pytest.raises(PhotoError, match=r"holds no images .*; 1 file has no known image suffix: 1 \.heic"):
        find_images([tmp_path])


def test_an_existing_file_is_not_read_as_a_pattern(tmp_path: Path) -> None:
    named, _ = make(tmp_path, "x[1].png", "x1.png")
    assert find_images([named]).paths == [named]


def test_every_suffix_counts_in_upper_and_lower_case(tmp_path: Path) -> None:
    names = [f"{i}{suffix.upper() if i % 2 else suffix}" for i, suffix in enumerate(IMAGE_SUFFIXES)]
    assert find_images([tmp_path] if make(tmp_path, *names) else []).paths == sorted(tmp_path.iterdir())


def test_hidden_files_and_folders_are_skipped(tmp_path: Path) -> None:
    (seen,) = make(tmp_path, "a.png")
    make(tmp_path, "._a.png", ".hidden.jpg", ".ipynb_checkpoints/a-checkpoint.png", "sub/.cache/b.png")
    found = find_images([tmp_path])
    assert found.paths == [seen]
    assert found.notes() == []
    assert len(find_images([tmp_path / ".ipynb_checkpoints"]).paths) == 1, "unless they are named"


def test_other_files_are_counted_by_suffix(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "b.heic", "c.HEIC", "Thumbs.db", "README", *(f"x.{k}" for k in "uvwxyz"))
    found = find_images([tmp_path])
    assert len(found.paths) == 1
    assert found.other_files == Counter({".heic": 2, ".db": 1, "": 1, **{f".{k}": 1 for k in "uvwxyz"}})
    (note,) = found.notes()
    assert note.startswith("10 files have no known image suffix: 2 .heic, ")
    assert note.endswith(", …")


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    (inside,) = make(tmp_path, "album.jpg/a.png")
    assert find_images([tmp_path]).paths == [inside]


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    (far,) = make(tmp_path, "far/away.png")
    here, sub = make(tmp_path, "photos/here.png", "photos/sub/deep.png")
    photos = tmp_path / "photos"
    links = {"a-loop": photos, "linked": far.parent, "sub/up": tmp_path, "twice": photos / "sub"}
    for name, target in links.items():
        os.symlink(target, photos / name)
    found = find_images([photos])
    assert found.paths == [here, photos / "linked" / "away.png", sub]
    assert sorted(found.followed_before) == [photos / "a-loop", photos / "sub" / "up", photos / "twice"]
    assert found.notes() == [
        f"3 linked folder(s) lead to a folder that was already searched: {found.followed_before[0]}, …"
    ]


def test_broken_links_count_as_images_and_pipes_do_not(tmp_path: Path) -> None:
    os.symlink(tmp_path / "nowhere.png", tmp_path / "link.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert find_images([tmp_path]).paths == [tmp_path / "link.png"]


def test_folders_that_cannot_be_opened_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.png", "closed/b.png")
    scan = os.scandir

    def closed(path: Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    found = search(tmp_path, FoundImages())
    assert found.paths == [tmp_path / "a.png"]
    assert found.notes() == [f"1 folder(s) cannot be opened: {tmp_path / 'closed'}"]
