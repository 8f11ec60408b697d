"""The data directory, and the official files in it: downloaded once, checked by their MD5 sums.

* An interrupted download leaves NAME.part, which the next attempt continues.
* From an archive only the data set's own files are extracted, each under its own name.
* The SHA-256 sums of downloaded files are stored beside them and checked at every use, which detects changes on disk.
* Files that a user puts there have no sums; only their size and structure are checked.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ....common.files import opened, reading, write_file
from .split import DataError

SUMS = "SHA256SUMS"  # as `sha256sum --check` reads it
LARGEST_FILE = 2**30  # bytes of one official file; the largest, of STL-10 without its unlabelled part, has 2.7e8


@dataclass(frozen=True)
class Source:
    """The official files of a data set: a folder of the data directory, and the downloads that fill it."""

    folder: str
    files: tuple[str, ...]
    downloads: tuple[tuple[str, str], ...]  # (address, MD5): archives that unpack to the folder, or single files


_MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _idx_source(folder: str, address: str, checksums: tuple[str, ...]) -> Source:
    files = tuple(f"{name}.gz" for name in _MNIST_FILES)
    downloads = tuple((f"{address}/{name}", md5) for name, md5 in zip(files, checksums, strict=True))
    return Source(folder, files, downloads)


SOURCES = {
    "mnist": _idx_source(
        "mnist",
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion-mnist": _idx_source(
        "fashion-mnist",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    "cifar10": Source(
        "cifar-10-batches-bin",
        (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
        (("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),),
    ),
    "cifar100": Source(
        "cifar-100-binary",
        ("train.bin", "test.bin"),
        (("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),),
    ),
    "stl10": Source(
        "stl10_binary",
        ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"),
        (("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb"),),
    ),
}


def data_root(given: str | Path | None = None) -> Path:
    """The data directory: the given one, `NEAREST_ETF_DATA`, or the user's cache folder."""
    if given or os.environ.get("NEAREST_ETF_DATA"):
        return Path(given or os.environ["NEAREST_ETF_DATA"]).expanduser()
    import pooch

    return Path(pooch.os_cache("nearest-etf"))


def fetch(name: str, source: Source, root: Path) -> Path:
    """The folder with a data set's official files, after downloading what is missing.

    Processes that need the same files wait for one another.

    Raises
    ------
    DataError
        If files are missing and cannot be downloaded, or have changed since the download; the message names the file
        and its place.
    """
    folder = root / source.folder
    if missing_files(folder, source):
        from filelock import FileLock

        with reading(root, "a data directory that can be written", DataError):
            root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(root / f".{source.folder}.lock")
            lock.acquire()
        try:
            if missing_files(folder, source):
                _download(name, source, root)
        finally:
            lock.release()
    still = missing_files(folder, source)
    if still:
        raise DataError(f"{name}: {folder / still[0]} is missing: expected {', '.join(source.files)} in {folder}")
    check_sums(folder, [official_file(folder, file) for file in source.files])
    return folder


def _download(name: str, source: Source, root: Path) -> None:
    """Fill the folder of a data set."""
    import pooch

    folder = root / source.folder
    for address, md5 in source.downloads:
        missing, file = missing_files(folder, source), address.rpartition("/")[2]
        archive = file.endswith(".tar.gz")
        if not missing or not (archive or file in missing):
            continue
        target = root if archive else folder
        try:
            fetched = pooch.retrieve(
                address, known_hash=f"md5:{md5}", fname=file, path=target, downloader=resuming_download
            )
        except (OSError, ValueError) as error:
            broken_off = f"{type(error).__name__}; another attempt continues the download"
            reason = "its MD5 sum is wrong" if isinstance(error, ValueError) else broken_off
            raise DataError(
                f"{name}: {folder / missing[0]} is missing and {address} could not be fetched ({reason}): "
                f"download it elsewhere (MD5 {md5}) and put it at {target / file}"
            ) from error
        if archive:
            unpack(Path(fetched), folder, missing)
        else:
            write_sums(folder, [folder / file])


def unpack(archive: Path, folder: Path, names: Iterable[str]) -> None:
    """Extract the files FOLDER/NAME from a tar archive to a folder of that name, each atomically.

    Raises
    ------
    DataError
        If the archive is damaged, or such a file is a link or larger than LARGEST_FILE.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as beside:
        taken = []
        with reading(archive, "a tar archive, whole", DataError), tarfile.open(archive) as contents:
            for name in names:
                try:
                    member = contents.getmember(f"{folder.name}/{name}")
                except KeyError:
                    continue  # reported as missing
                content = contents.extractfile(member) if member.isreg() else None
                if content is None or member.size > LARGEST_FILE:
                    raise DataError(
                        f"{archive} has {member.name} as a link or with {member.size} bytes: expected a file of at "
                        f"most {LARGEST_FILE} bytes"
                    )
                with open(Path(beside) / name, "wb") as file:
                    shutil.copyfileobj(content, file, 2**20)
                    file.flush()
                    os.fsync(file.fileno())
                taken.append(Path(beside) / name)
        write_sums(folder, taken)  # before the files: one without a sum would never be checked
        for path in taken:
            os.replace(path, folder / path.name)


def write_sums(folder: Path, files: Iterable[Path]) -> None:
    """Record the SHA-256 sums of files for the folder that they are in, or will be moved to."""
    sums = read_sums(folder) | {path.name: sha256(path) for path in files}
    write_file(folder / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))


def read_sums(folder: Path) -> dict[str, str]:
    """Sums by file name; empty if nothing was downloaded."""
    path = folder / SUMS
    if not path.exists():
        return {}
    with reading(path, "SHA-256 sums, a line for each file", DataError):
        pairs = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines())
        return {name: digest for digest, name in pairs}


def check_sums(folder: Path, files: Iterable[Path]) -> None:
    """Compare files with their recorded sums, if any.

    Raises
    ------
    DataError
        For the first file that has changed.
    """
    sums = read_sums(folder)
    for path in files:
        if path.name in sums and sha256(path) != sums[path.name]:
            raise DataError(
                f"{path} has changed since it was downloaded: expected SHA-256 {sums[path.name]}. Delete it to "
                f"download it again; if the change is intended, delete its line in {folder / SUMS}"
            )


def sha256(path: Path) -> str:
    """The SHA-256 sum of a file, in hexadecimal digits."""
    with reading(path, "a file of a data set", DataError), opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def official_file(folder: Path, name: str) -> Path:
    """The path of an official file: under its name, or unpacked under the same name without .gz."""
    unpacked = folder / name.removesuffix(".gz")
    return unpacked if unpacked.is_file() else folder / name


def missing_files(folder: Path, source: Source) -> list[str]:
    """Names of a data set's official files that a folder lacks."""
    return [name for name in source.files if not official_file(folder, name).is_file()]


def resuming_download(address: str, output_file: str, _: object) -> None:
    """A downloader for pooch, which checks the sum: bytes go to NAME.part until the file is complete."""
    import requests  # type: ignore[import-untyped]  # pooch needs it too
    from tqdm import tqdm

    part = Path(output_file).with_name(address.rpartition("/")[2] + ".part")
    begun = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={begun}-"} if begun else {})}
    with requests.get(address, headers=headers, stream=True, timeout=30) as response:
        nothing_left = begun and response.status_code == requests.codes.requested_range_not_satisfiable
        if not nothing_left:
            response.raise_for_status()
            if response.status_code != requests.codes.partial_content:  # the whole file
                begun = 0
            total = begun + int(response.headers.get("Content-Length", 0)) or None
            bar = tqdm(total=total, initial=begun, unit="B", unit_scale=True, desc=part.stem, disable=None)
            with bar, open(part, "ab" if begun else "wb") as file:
                for chunk in response.iter_content(2**16):
                    bar.update(file.write(chunk))
    os.replace(part, output_file)
