"""Classify with an exported file: numpy and onnxruntime, and Pillow where images come from files.

    etf-predict model.onnx photos/ --top-k 3
    etf-predict model.onnx "photos/*.png" --format csv > answers.csv

The file says what it takes and what it means; neither torch nor scipy nor onnx is imported.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ExportError, InputError, ModelFileError
from ..common.photo import find_images, load_images
from .model_file import FORMAT, METADATA_KEY, OUTPUTS, available_cores, matches_sidecar, open_session


@dataclass(frozen=True)
class Prediction:
    """Answers for N images.

    Attributes
    ----------
    labels : (N,) int64
    names : tuple of N strings
        The classes' names.
    probabilities : (N, K)
    cosines : (N,)
        Between the feature and the vertex of the predicted class: a geometric confidence, 1 at the vertex.
    logits : (N, K)
    """

    labels: NDArray[np.int64]
    names: tuple[str, ...]
    probabilities: NDArray[Any]
    cosines: NDArray[Any]
    logits: NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)

    def top(self, k: int) -> NDArray[np.int64]:
        """The k most probable classes of each image, best first, (N, k)."""
        return np.argsort(-self.logits, axis=1, kind="stable")[:, :k]


class OnnxClassifier:
    """A classifier from a file that `etf-export` or `export_onnx` wrote.

    Parameters
    ----------
    path : path
        The ONNX file; its sidecar, if there, is `path` with the suffix `.json`.
    threads : int, optional
        Threads that one call uses. Default: the cores that this process may use, four at most.

    Attributes
    ----------
    metadata : dict
        What the file says about itself.
    class_names : tuple of str
    input_shape : tuple of int
        Of one image (or feature vector), without the batch.
    input_dtype : numpy.dtype
    verified : bool
        Whether the sidecar vouched for the file.

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, does not match its sidecar, or was not written by this package.

    Warns
    -----
    UserWarning
        If there is no sidecar to verify the file with.

    Examples
    --------
    >>> OnnxClassifier("nowhere.onnx")
    Traceback (most recent call last):
    ...
    nearest_etf.export.errors.ModelFileError: cannot read nowhere.onnx: No such file or directory
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
        verified = matches_sidecar(path, data)
        if not verified:
            warnings.warn(
                f"{path} has no sidecar {path.with_suffix('.json').name}: damage to it would go unnoticed",
                stacklevel=2,
            )
        self._open(data, str(path), verified, threads)

    @classmethod
    def from_bytes(cls, data: bytes, *, threads: int | None = None) -> Self:
        """A classifier from the contents of a file, which nothing vouches for."""
        classifier = cls.__new__(cls)
        classifier._open(data, "the model", False, threads)
        return classifier

    def _open(self, data: bytes, name: str, verified: bool, threads: int | None) -> None:
        self.verified = verified
        self._session = open_session(data, name, available_cores() if threads is None else threads)
        try:
            self.metadata: dict[str, Any] = json.loads(self._session.get_modelmeta().custom_metadata_map[METADATA_KEY])
            found, entry = self.metadata["format"], self.metadata["input"]
            self.class_names = tuple(self.metadata["class_names"])
            self.input_shape = tuple(int(size) for size in entry["shape"])
            self.input_dtype = np.dtype(entry["dtype"])
            self._input_name = entry["name"]
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"{name} was not written by etf-export: its metadata does not say what it takes and means"
            ) from error
        if found != FORMAT:
            raise ModelFileError(
                f"{name} has format {found}, but this version reads format {FORMAT}: update nearest-etf"
            )
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        interface = ([entry.name for entry in inputs], [entry.name for entry in outputs], outputs[0].shape[1:])
        if interface != ([self._input_name], list(OUTPUTS), [len(self.class_names)]):
            raise ModelFileError(f"{name} contradicts its own metadata: inputs, outputs and classes are {interface}")

    @property
    def takes_images(self) -> bool:
        """Whether it takes 8-bit images, as files hold them."""
        return self.input_dtype == np.uint8

    @property
    def layout(self) -> str:
        """ "NHWC" or "NCHW"; "NF" for a file that takes features."""
        return str(self.metadata["input"]["layout"])

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of an image, whatever the layout; None for a file that takes features."""
        if self.layout == "NF":
            return None
        first, second, third = self.input_shape
        return (first, second, third) if self.layout == "NHWC" else (second, third, first)

    def predict(self, images: ArrayLike, *, batch_size: int = 64) -> Prediction:
        """Classify a batch of any size, an empty one too.

        Parameters
        ----------
        images : (N, *input_shape), of dtype `input_dtype`
        batch_size : int
            Images per run of the session, which bounds memory.

        Raises
        ------
        InputError
            If the array has another shape or dtype (byte order included), holds NaN or infinity, or makes the
            network's answer not finite.
        """
        x = self._valid(images)
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: expected at least 1")
        starts = range(0, len(x), batch_size)
        parts = [self._run(x[start : start + batch_size]) for start in starts] or [self._nothing()]
        logits, probabilities, labels, cosines = (np.concatenate(part) for part in zip(*parts, strict=True))
        if not np.isfinite(logits).all():
            raise InputError("the network's answer is not finite: the input is far outside what it was trained on")
        names = tuple(self.class_names[label] for label in labels)
        return Prediction(labels, names, probabilities, cosines, logits)

    def _run(self, x: NDArray[Any]) -> list[NDArray[Any]]:
        return self._session.run(list(OUTPUTS), {self._input_name: np.ascontiguousarray(x)})

    def _nothing(self) -> list[NDArray[Any]]:
        kind = np.dtype(np.float32) if self.takes_images else self.input_dtype
        none = np.empty((0, len(self.class_names)), kind)
        return [none, none, np.empty(0, np.int64), np.empty(0, kind)]

    def _valid(self, images: ArrayLike) -> NDArray[Any]:
        expected = f"(N, {', '.join(map(str, self.input_shape))}) of {self.input_dtype}"
        try:
            x = np.asarray(images)
        except ValueError as error:
            raise InputError(f"{self._input_name} is not one array: expected {expected}") from error
        if x.dtype != self.input_dtype:
            order = "" if x.dtype.isnative else " in foreign byte order"
            raise InputError(f"{self._input_name} has dtype {x.dtype.name}{order}: expected {expected}")
        if x.shape[1:] != self.input_shape or x.ndim == 0:
            hint = "; for a single one write x[None]" if x.shape == self.input_shape else ""
            raise InputError(f"{self._input_name} has shape {x.shape}: expected {expected}{hint}")
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise InputError(f"{self._input_name} holds {int((~np.isfinite(x)).sum())} NaN or infinite values")
        return x


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The flags of `etf-predict`."""
    parser = _Parser(
        prog="etf-predict",
        description="Classify image files with an exported model; needs onnxruntime, not torch.",
        epilog="example: etf-predict model.onnx photos/ --top-k 3 --format csv > answers.csv",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="an ONNX file that etf-export wrote")
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="image files, folders or quoted patterns")
    parser.add_argument("--top-k", type=int, default=1, metavar="K", help="classes to name per image [1]")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table", help="[table]")
    parser.add_argument("--threads", type=int, metavar="N", help="threads [the cores there are, at most 4]")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at a time [64]")
    parser.add_argument(
        "--score",
        action="store_true",
        help="also say how many are right, by the label that ends each name (17-3.png, as --samples writes)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 on success, 2 with one line on standard error otherwise."""
    given = build_parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            classifier = OnnxClassifier(given.model, threads=given.threads)
        if not classifier.verified:
            print(
                "etf-predict: note: no sidecar beside the model, so its checksum was not verified",
                file=sys.stderr,
            )
        if not 1 <= given.top_k <= len(classifier.class_names):
            raise InputError(
                f"--top-k is {given.top_k}: expected 1…{len(classifier.class_names)}, the number of classes"
            )
        paths = find_images(given.images)
        expected = [_label_in_name(path) for path in paths] if given.score else []
        rows, labels = [], []
        for batch, prediction in classify_files(classifier, paths, given.batch_size):
            rows += table_rows(batch, prediction, classifier.class_names, given.top_k)
            labels += prediction.labels.tolist()
        print_rows(rows, given.format)
        if expected:
            right = sum(map(int.__eq__, labels, expected))
            print(f"{right} of {len(paths)} right ({right / len(paths):.2%})", file=sys.stderr)
    except ExportError as error:
        print(f"etf-predict: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def classify_files(
    classifier: OnnxClassifier, paths: Sequence[Path], batch_size: int = 64
) -> Iterator[tuple[Sequence[Path], Prediction]]:
    """Image files and their predictions, batch by batch, with a progress bar on a terminal."""
    shape = classifier.image_shape
    if shape is None or not classifier.takes_images:
        raise InputError(f"the model takes {classifier.input_dtype} {classifier.metadata['input']['name']}, not files")
    if batch_size < 1:
        raise InputError(f"the batch size is {batch_size}: expected at least 1")
    batches: Any = [paths[i : i + batch_size] for i in range(0, len(paths), batch_size)]
    if sys.stderr.isatty():
        try:
            from tqdm import tqdm

            batches = tqdm(batches, unit="batch", leave=False)
        except ImportError:
            pass
    for batch in batches:
        images = load_images(batch, shape)
        yield batch, classifier.predict(images if classifier.layout == "NHWC" else images.transpose(0, 3, 1, 2))


def table_rows(paths: Sequence[Path], prediction: Prediction, names: Sequence[str], k: int) -> list[dict[str, Any]]:
    """One row per file and class named: file, rank, label, name, probability, and the cosine of the first."""
    rows = []
    for i, (path, order) in enumerate(zip(paths, prediction.top(k), strict=True)):
        for rank, label in enumerate(order):
            row: dict[str, Any] = {
                "file": str(path),
                "rank": rank + 1,
                "label": int(label),
                "name": names[label],
            }
            row["probability"] = round(float(prediction.probabilities[i, label]), 6)
            row["cosine"] = round(float(prediction.cosines[i]), 6) if rank == 0 else None
            rows.append(row)
    return rows


def print_rows(rows: Sequence[dict[str, Any]], style: str) -> None:
    """Print the table as aligned text, CSV or JSON."""
    columns = ["file", "rank", "label", "name", "probability", "cosine"]
    if style == "json":
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    elif style == "csv":
        writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        wide = max((len(row["file"]) for row in rows), default=0)
        name = max((len(row["name"]) for row in rows), default=0)
        for row in rows:
            cosine = "" if row["cosine"] is None else f"  cosine {row['cosine']:.3f}"
            print(f"{row['file']:<{wide}}  {row['name']:<{name}}  {row['probability']:7.2%}{cosine}")


def _label_in_name(path: Path) -> int:
    match = re.search(r"-(\d+)$", path.stem)
    if match is None:
        raise InputError(f"--score: the name of {path} does not end in a label, as 17-3.png does")
    return int(match[1])


if __name__ == "__main__":
    sys.exit(main())
