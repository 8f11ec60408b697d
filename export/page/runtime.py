"""onnxruntime-web for a page: the npm package of one version, downloaded once and checked by its SHA-512.

Version 1.18 is the last with a single-threaded program without shared memory. It runs from a local file, where browsers
offer no shared memory, and on phones, which cannot reserve four gigabytes of it.
"""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path

from ...common.files import reading
from ...torchport.training.data.download import data_root, resuming_download
from ..errors import ExportError

VERSION, LARGEST_OPSET = "1.18.0", 21
FILE = f"onnxruntime-web-{VERSION}.tgz"
ADDRESS = f"https://registry.npmjs.org/onnxruntime-web/-/{FILE}"
SHA512 = (
    "a3550a8f8001223d60986eda7b444a277fc64fedf2a05d114697c37dea1ed21b"
    "b3456e050d12df6e40c44e674502f9c9117b980c4d184fe8619226b4df9d92b5"
)
SCRIPT, PROGRAM = "package/dist/ort.wasm.min.js", "package/dist/ort-wasm-simd.wasm"
LARGEST_MEMBER = 2**24  # bytes; PROGRAM has 1.1e7


class PageError(ExportError):
    """A page that cannot be written; the model is written independently."""


@dataclass(frozen=True)
class Runtime:
    """The two files of onnxruntime-web that run a model: JavaScript, and the WebAssembly program that it loads."""

    script: str
    program: bytes


def fetch_runtime(data_dir: str | Path | None = None) -> Runtime:
    """onnxruntime-web from the data directory, after downloading it there if it is missing.

    Raises
    ------
    PageError
        If it is missing and cannot be downloaded, or differs from the expected file.
    """
    archive = data_root(data_dir) / FILE
    if not archive.is_file():
        _download(archive)
    elif sha512(archive) != SHA512:
        raise PageError(f"{archive} has changed since it was downloaded: delete it to download it again")
    return Runtime(member(archive, SCRIPT).decode("utf-8"), member(archive, PROGRAM))


def sha512(path: Path) -> str:
    """The SHA-512 of a file, in hexadecimal digits."""
    with reading(path, f"the npm package onnxruntime-web {VERSION}", PageError), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha512").hexdigest()


def _download(archive: Path) -> None:
    import pooch
    from filelock import FileLock

    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(archive.with_name(f".{FILE}.lock")):
            pooch.retrieve(
                ADDRESS, known_hash=f"sha512:{SHA512}", fname=FILE, path=archive.parent, downloader=resuming_download
            )
    except (OSError, ValueError) as error:
        reason = "its SHA-512 is wrong" if isinstance(error, ValueError) else type(error).__name__
        raise PageError(
            f"onnxruntime-web {VERSION}, which the page needs, could not be downloaded from {ADDRESS} ({reason}): "
            f"download it by other means and copy it to {archive}"
        ) from error


def member(archive: Path, name: str) -> bytes:
    """The contents of one file in a tar archive.

    Raises
    ------
    PageError
        If the archive is damaged or lacks the file, or the file is a link or larger than LARGEST_MEMBER.
    """
    with reading(archive, f"a tar archive with {name}", PageError), tarfile.open(archive) as contents:
        found = contents.getmember(name)
        content = contents.extractfile(found) if found.isreg() else None
        if content is None or found.size > LARGEST_MEMBER:
            raise PageError(
                f"{archive} has {name} as a link or with {found.size} bytes: expected a file of at most "
                f"{LARGEST_MEMBER} bytes"
            )
        return content.read()
