"""The data directory, and the official files in it: downloaded once, checked by their MD5 sums.

An interrupted download leaves NAME.part, from which the next one goes on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .split import DataError


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

    Raises
    ------
    DataError
        If files are missing and cannot be downloaded; the message names the file and where to put it.
    """
    folder = root / source.folder
    missing = missing_files(folder, source)
    if not missing:
        return folder
    import pooch

    for address, md5 in source.downloads:
        file = address.rpartition("/")[2]
        archive = file.endswith(".tar.gz")
        if not archive and file not in missing:
            continue
        target = root if archive else folder
        try:
            pooch.retrieve(
                address,
                known_hash=f"md5:{md5}",
                fname=file,
                path=target,
                processor=pooch.Untar(extract_dir=".") if archive else None,
                downloader=resuming_download,
            )
        except (OSError, ValueError) as error:
            broken_off = f"{type(error).__name__}; trying again goes on where it stopped"
            reason = "its MD5 sum is wrong" if isinstance(error, ValueError) else broken_off
            raise DataError(
                f"{name}: {folder / missing[0]} is missing and {address} could not be fetched ({reason}): "
                f"download it elsewhere (MD5 {md5}) and put it at {target / file}"
            ) from error
    still = missing_files(folder, source)
    if still:
        raise DataError(f"{name}: {folder / still[0]} is missing: expected {', '.join(source.files)} in {folder}")
    return folder


def official_file(folder: Path, name: str) -> Path:
    """Where an official file lies: under its name, or unpacked under the same name without .gz."""
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
