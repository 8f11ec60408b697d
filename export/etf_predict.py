"""`etf-predict`: label image files with an exported model; needs onnxruntime and Pillow, not torch."""

from __future__ import annotations

import csv
import json
import re
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.command import Parser, printer, run_command
from .errors import InputError

if TYPE_CHECKING:
    from .predict import OnnxClassifier, Prediction

COLUMNS = ("file", "rank", "label", "name", "probability", "cosine")


def build_parser() -> Parser:
    """The flags of `etf-predict`."""
    parser = Parser(
        "etf-predict",
        "Classify image files with an exported model; needs onnxruntime, not torch.",
        """
etf-predict model.onnx photos/ --top-k 3                     the three most probable classes of each photo
etf-predict model.onnx "photos/*.png" --format csv > out.csv
etf-predict model.onnx model-samples --score                 and how many are right""",
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
        help="also count those that are right, by the label that ends each name (17-3.png, as --samples writes)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 on success, 2 with one line on standard error otherwise."""
    given = build_parser().parse_args(arguments)
    return run_command("etf-predict", lambda: predict(given), extra="deploy")


def predict(given: Namespace) -> int:
    """Classify the images and print a row for each of the `--top-k` classes."""
    from ..common.photo import find_images
    from .predict import OnnxClassifier

    log = printer(given.quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier = OnnxClassifier(given.model, threads=given.threads)
    if not classifier.verified:
        log("etf-predict: note: no sidecar beside the model, so its checksum was not verified", file=sys.stderr)
    if not 1 <= given.top_k <= len(classifier.class_names):
        raise InputError(f"--top-k is {given.top_k}: expected 1…{len(classifier.class_names)}, the number of classes")
    paths = find_images(given.images)
    expected = [label_in_name(path) for path in paths] if given.score else []
    rows: list[dict[str, Any]] = []
    labels: list[int] = []
    for batch, prediction in classify_files(classifier, paths, given.batch_size, progress=not given.quiet):
        rows += table_rows(batch, prediction, classifier.class_names, given.top_k)
        labels += prediction.labels.tolist()
    print_rows(rows, given.format)
    if given.score:
        right = sum(map(int.__eq__, labels, expected))
        print(f"{right} of {len(paths)} right ({right / len(paths):.2%})", file=sys.stderr)
    return 0


def classify_files(
    classifier: OnnxClassifier, paths: Sequence[Path], batch_size: int = 64, progress: bool = True
) -> Iterator[tuple[Sequence[Path], Prediction]]:
    """Image files and their predictions, batch by batch, with a progress bar on a terminal."""
    import numpy as np

    from ..common.photo import exact_pixels

    shape = classifier.image_shape
    if shape is None or not classifier.takes_images:
        raise InputError(f"the model takes {classifier.input_dtype} {classifier.metadata['input']['name']}, not files")
    if batch_size < 1:
        raise InputError(f"the batch size is {batch_size}: expected at least 1")
    batches: Any = [paths[i : i + batch_size] for i in range(0, len(paths), batch_size)]
    if progress and sys.stderr.isatty():
        try:
            from tqdm import tqdm

            batches = tqdm(batches, unit="batch", leave=False)
        except ImportError:
            pass
    for batch in batches:
        images = np.stack([exact_pixels(path, shape) for path in batch])  # (B, H, W, C)
        yield batch, classifier.predict(images if classifier.layout == "NHWC" else images.transpose(0, 3, 1, 2))


def table_rows(paths: Sequence[Path], prediction: Prediction, names: Sequence[str], k: int) -> list[dict[str, Any]]:
    """One row per file and class named, with `COLUMNS`; the cosine is that of the first class."""
    rows = []
    for i, (path, top) in enumerate(zip(paths, prediction.top(k), strict=True)):
        for rank, label in enumerate(top.tolist()):
            probability = round(float(prediction.probabilities[i, label]), 6)
            cosine = round(float(prediction.cosines[i]), 6) if rank == 0 else None
            values = (str(path), rank + 1, label, names[label], probability, cosine)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def print_rows(rows: Sequence[dict[str, Any]], style: str) -> None:
    """Print the table as aligned text, CSV or JSON."""
    if style == "json":
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    elif style == "csv":
        writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        file = max((len(row["file"]) for row in rows), default=0)
        name = max((len(row["name"]) for row in rows), default=0)
        for row in rows:
            cosine = "" if row["cosine"] is None else f"  cosine {row['cosine']:.3f}"
            print(f"{row['file']:<{file}}  {row['name']:<{name}}  {row['probability']:7.2%}{cosine}")


def label_in_name(path: Path) -> int:
    """The label that ends the name of a sample.

    >>> label_in_name(Path("model-samples/17-3.png"))
    3
    """
    match = re.search(r"-(\d+)$", path.stem)
    if match is None:
        raise InputError(f"--score: the name of {path} does not end in a label, as 17-3.png does")
    return int(match[1])


if __name__ == "__main__":
    sys.exit(main())
