"""`etf-predict`: classify image files with an exported model. It needs onnxruntime and Pillow, not torch."""

from __future__ import annotations

import io
import os
import re
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..common.command import Parser, fail, printer, run_command
from .errors import InputError

if TYPE_CHECKING:
    from .predict import OnnxClassifier, Prediction

FORMATS = ("table", "csv", "json", "jsonl")


def build_parser() -> Parser:
    """The flags of `etf-predict`."""
    parser = Parser(
        "etf-predict",
        "Classify image files with an exported model; needs onnxruntime, not torch. Photos of any size are "
        "preprocessed as for evaluation in training. Unreadable files are reported and left out; the exit status is "
        "then 1.",
        """
etf-predict model.onnx photos/ --top-k 3                     the three most probable classes of each photo
etf-predict model.onnx "photos/*.png" --output out.csv       write a CSV file, complete or not at all
find photos -newer last | etf-predict model.onnx - --format jsonl    paths from standard input
etf-predict model.onnx photos/val --score                    also print the accuracy, by the names of the folders
etf-predict model.onnx photos/ --ood                         also detect out-of-distribution photos""",
    )
    parser.add_argument("model", metavar="MODEL", help="an ONNX file that etf-export wrote")
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="image files, folders (with subfolders), quoted patterns, or - for a list of files on standard input",
    )
    parser.add_argument("--top-k", type=int, default=1, metavar="K", help="classes to name per image [1]")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="one row per image and class; jsonl: one object per image [by the suffix of --output, else table]",
    )
    parser.add_argument("--output", metavar="FILE", help="write the rows to a file, which appears once it is complete")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file of --output")
    parser.add_argument(
        "--exact",
        action="store_true",
        help="change no pixel: refuse photos of another size or mode than the model's input",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads [the available cores, at most 4]")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images per batch [64]")
    parser.add_argument(
        "--provider", metavar="NAME", help="onnxruntime's execution provider, e.g. CUDAExecutionProvider [the CPU]"
    )
    parser.add_argument(
        "--score",
        action="store_true",
        help="also print the accuracy; the true class is the name of the photo's folder, or the label at the end of "
        "its own name (17-3.png, as etf-export --samples writes)",
    )
    parser.add_argument(
        "--ood",
        action="store_true",
        help="also print the score for out-of-distribution images, larger for in-distribution ones, and whether it "
        "reaches the threshold (for a model that was exported with etf-export --ood)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 on success, 1 if images were left out, 2 after a usage error."""
    given = build_parser().parse_args(arguments)
    return run_command("etf-predict", lambda: predict(given), extra="deploy")


def predict(given: Namespace) -> int:
    """Classify the images and print one row per image and class of `--top-k`."""
    import PIL  # noqa: F401  so that its absence is reported once, not for each image

    from .predict import OnnxClassifier
    from .prediction_rows import as_text, columns, image_rows

    log = printer(given.quiet)
    output = output_file(given.output, given.overwrite)
    style = given.format or style_of(given.output)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        providers = None if given.provider is None else [given.provider]
        classifier = OnnxClassifier(given.model, threads=given.threads, providers=providers)
    if not classifier.verified:
        log("etf-predict: note: the model has no sidecar, so its checksum was not verified", file=sys.stderr)
    names = classifier.class_names
    if not 1 <= given.top_k <= len(names):
        raise InputError(f"--top-k is {given.top_k}: expected 1…{len(names)}, the number of classes")
    if given.batch_size < 1:
        raise InputError(f"--batch-size is {given.batch_size}: expected at least 1")
    if given.ood and classifier.ood is None:
        raise InputError(f"{given.model} has no OOD score: export it with etf-export RUN --ood")
    if not classifier.takes_images:
        raise InputError(f"the model takes {classifier.input_dtype} {classifier.metadata['input']['name']}, not files")
    paths = listed_images(given.images, log)
    truth = {path: true_label(path, names) for path in paths} if given.score else {}
    right, unfamiliar, broken = 0, 0, []

    def report(path: Path, reason: str) -> None:
        broken.append(path)
        fail("etf-predict", reason)

    def images() -> Iterator[list[dict[str, Any]]]:
        nonlocal right, unfamiliar
        shown = not given.quiet and sys.stderr.isatty() and (output is not None or not sys.stdout.isatty())
        for batch, prediction in classify_files(
            classifier, paths, given.batch_size, exact=given.exact, report=report, progress=shown
        ):
            for i, path in enumerate(batch):
                right += int(truth.get(path) == prediction.labels[i])
                unfamiliar += int(prediction.accepted is not None and not prediction.accepted[i])
                yield image_rows(path, prediction, i, names, given.top_k, ood=given.ood)

    widths = columns(paths), columns(names)
    with written(output) as out:
        for text in as_text(images(), style, widths, ood=given.ood):
            out.write(text)
            out.flush()
    if given.score and (count := len(paths) - len(broken)):
        print(f"{right} of {count} right ({100 * right / count:.2f} %)", file=sys.stderr)
    if given.ood and classifier.ood and (count := len(paths) - len(broken)):
        limit = f"{classifier.ood['score']} below {classifier.ood['threshold']:.4g}"
        print(f"{unfamiliar} of {count} unfamiliar ({limit})", file=sys.stderr)
    if broken:
        if classifier.transform is None and not given.exact:
            height, width, _ = classifier.image_shape or (0, 0, 0)
            log(
                "etf-predict: note: the model file records no transform, so photos are not resized: expected photos of "
                f"{width}×{height} pixels",
                file=sys.stderr,
            )
        return fail(
            "etf-predict", f"{len(broken)} of {len(paths)} images {'was' if len(broken) == 1 else 'were'} left out", 1
        )
    return 0


def classify_files(
    classifier: OnnxClassifier,
    paths: Sequence[Path],
    batch_size: int = 64,
    *,
    exact: bool = False,
    report: Callable[[Path, str], None],
    progress: bool = False,
) -> Iterator[tuple[list[Path], Prediction]]:
    """Image files and their predictions, batch by batch; `progress` shows a progress bar if tqdm is installed.

    An unreadable file is left out, after a call of `report` with its path and the reason.
    """
    import numpy as np

    from ..common.photo import PhotoError

    batches: Any = [paths[i : i + batch_size] for i in range(0, len(paths), batch_size)]
    if progress:
        try:
            from tqdm import tqdm

            batches = tqdm(batches, unit="batch", leave=False)
        except ImportError:
            pass
    for batch in batches:
        kept, pixels = [], []
        for path in batch:
            try:
                pixels.append(classifier.read_photo(path, exact=exact))
                kept.append(path)
            except PhotoError as error:
                report(path, str(error))
        if kept:
            yield kept, classifier.predict(np.stack(pixels))


def listed_images(names: Sequence[str], log: Callable[..., None]) -> list[Path]:
    """The images of the command line; notes on other files go to `log`.

    `-` is a list on standard input, separated by line ends or by zero bytes (`find -print0`).
    """
    from ..common.photo_files import find_images

    paths: list[Path] = []
    for name in names:
        if name == "-":
            data = sys.stdin.buffer.read()
            parts = data.split(b"\0") if b"\0" in data else data.splitlines()
            paths += [Path(os.fsdecode(part)) for part in parts if part]
        else:
            found = find_images([name])
            paths += found.paths
            for note in found.notes():
                log(f"etf-predict: note: {name}: {note}", file=sys.stderr)
    if not paths:
        raise InputError("standard input contains no paths: expected one path per line")
    return paths


def output_file(name: str | None, overwrite: bool) -> Path | None:
    """The file of `--output`, if it may be written."""
    if name is None:
        return None
    path = Path(name)
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--output {path}: expected a file in an existing folder")
    if path.exists() and not overwrite:
        raise InputError(f"--output {path} exists: choose another name, or replace it by --overwrite")
    return path


def style_of(output: str | None) -> str:
    """The format of a file by the suffix of its name; "table" for an unknown one.

    >>> style_of("out.csv"), style_of("out.txt"), style_of(None)
    ('csv', 'table', 'table')
    """
    suffix = Path(output or "").suffix.lower().removeprefix(".")
    return suffix if suffix in FORMATS else "table"


@contextmanager
def written(output: Path | None) -> Iterator[TextIO]:
    """Standard output; or a UTF-8 file that appears when the block ends without an error."""
    if output is None:
        yield sys.stdout
        return
    from ..common.files import replacing

    with replacing(output) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        yield text
        text.detach()


def true_label(path: Path, names: Sequence[str]) -> int:
    """The label of a file: by the name of its folder, else by its own name as a sample, else by a folder above.

    >>> true_label(Path("val/cat/1.jpg"), ["cat", "dog"]), true_label(Path("model-samples/17-1.png"), ["cat", "dog"])
    (0, 1)
    """
    if path.parent.name in names:
        return names.index(path.parent.name)
    sample = re.fullmatch(r"\d+-(\d+)", path.stem)
    if sample and int(sample[1]) < len(names):
        return int(sample[1])
    for folder in path.parents:
        if folder.name in names:
            return names.index(folder.name)
    raise InputError(
        f"--score: no folder of {path} is named after a class, and its own name does not end in a label (as 17-3.png)"
    )


if __name__ == "__main__":
    sys.exit(main())
