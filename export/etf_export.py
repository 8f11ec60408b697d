"""`etf-export`: write a run as a checked ONNX file, and repeat the check of such a file."""

from __future__ import annotations

import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.command import Parser, fail, printer, run_command
from .errors import ExportError

if TYPE_CHECKING:
    from .from_run import TrainedModel
    from .ood import OodScore


def build_export_parser() -> Parser:
    """The flags of `etf-export RUN`."""
    parser = Parser(
        "etf-export",
        "Export a run to one ONNX file. The model is checked against PyTorch on real images before it is written.",
        """
etf-export runs/x --to model.onnx                       check, then write model.onnx and model.json
etf-export runs/x --to model.onnx --samples 40          also write 40 held-out images, to try the model on
etf-export runs/x --to model.onnx --page demo.html      also write a page that classifies images in the browser, offline
etf-export runs/x --to model.onnx --ood                 add a score for images of none of the classes
etf-export runs/x --to model.onnx --calibrate           calibrate the probabilities by one factor on the logits
etf-export runs/x --to small.onnx --precision int8      integer convolutions, calibrated on training images
etf-export runs/x --to model.onnx --data /new/photos    for a run whose image folder has moved
etf-export check model.onnx --run runs/x                repeat the check""",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, or the word check (see the examples)")
    parser.add_argument("--to", required=True, metavar="FILE", help="the file to write, ending in .onnx")
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8", "fp64"),
        default="fp32",
        help="of the backbone, or of the head with --head-only; fp64 is for heads, int8 for backbones [fp32]",
    )
    parser.add_argument("--layout", choices=("NHWC", "NCHW"), default="NHWC", help="of the images [NHWC]")
    parser.add_argument("--float-input", action="store_true", help="the input is normalised float32, not 8-bit pixels")
    parser.add_argument("--head-only", action="store_true", help="export the head without the backbone, for features")
    about = "also write N held-out images: as PNG, or as copies of the files of an image folder"
    parser.add_argument("--samples", type=int, default=0, metavar="N", help=about)
    parser.add_argument(
        "--page",
        metavar="FILE",
        help="also write an HTML page that runs the model; it contains onnxruntime-web, which is downloaded once",
    )
    parser.add_argument(
        "--ood",
        action="store_true",
        help="add a score for out-of-distribution images, for etf-predict --ood; reads training and validation images",
    )
    parser.add_argument("--ood-score", choices=("neco", "nci", "mahalanobis"), help="the score of --ood [neco]")
    parser.add_argument(
        "--ood-share", type=float, metavar="X", help="share of validation images that the threshold accepts [0.95]"
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="fit one factor on the logits on validation images (else test images); labels do not change",
    )
    parser.add_argument("--opset", type=int, metavar="N", help="version of the operators [18; 13 with --head-only]")
    parser.add_argument("--licence", metavar="TEXT", help="licence terms, for the file's metadata")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    _add_shared_flags(parser, "its result, which etf-train prints at the end")
    return parser


def build_check_parser() -> Parser:
    """The flags of `etf-export check MODEL`."""
    parser = Parser("etf-export check", "Check an exported file against its run.")
    parser.add_argument("model", metavar="MODEL", help="an ONNX file that etf-export wrote")
    parser.add_argument("--run", required=True, metavar="RUN", help="the run folder of the file")
    _add_shared_flags(parser, "the one of the file")
    return parser


def _add_shared_flags(parser: Parser, default: str) -> None:
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last", "recalibrated"),
        help=f"of the run [{default}]",
    )
    parser.add_argument(
        "--check-images", type=int, default=1000, metavar="N", help="number of held-out images for the check [1000]"
    )
    parser.add_argument("--data", metavar="FOLDER", help="the run's image folder, if it has moved")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of data sets [$NEAREST_ETF_DATA, or a cache folder]")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 on success, 1 after a failed check, 2 after a usage error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    checking = build_check_parser()
    checked = checking.after("check", words)
    if checked is not None:
        given = checking.parse_args(checked)
        return run_command("etf-export", lambda: check(given), extra="export")
    given = build_export_parser().parse_args(words)
    return run_command("etf-export", lambda: export(given), extra="export")


def export(given: Namespace) -> int:
    """`etf-export RUN --to FILE`."""
    _check_flags(given)
    from .convert import export_head_onnx, export_onnx
    from .from_run import load_trained, samples_folder, write_samples
    from .model_file import writable_target
    from .page import check_page, write_page

    log = printer(given.quiet)
    path = writable_target(given.to, given.overwrite)
    page = check_page(given.page, given.overwrite, given.opset) if given.page else None
    samples = samples_folder(path, given.overwrite) if given.samples else None
    trained = load_trained(Path(given.run), given.checkpoint, given.data_dir, given.data)
    _, images, labels = trained.check_images(given.check_images)
    calibration = trained.calibration() if given.calibrate else None
    shared: dict[str, Any] = {
        "mean": trained.mean,
        "std": trained.std,
        "class_names": trained.class_names,
        "check_images": images,
        "check_labels": labels,
        "metadata": {**trained.metadata, "licence": given.licence},
        "ood": fitted_ood(trained, given) if given.ood else None,
        "overwrite": given.overwrite,
        "calibration": calibration,
        **({} if given.opset is None else {"opset": given.opset}),
    }
    if given.head_only:
        report = export_head_onnx(trained.model, path, precision=given.precision, **shared)
    else:
        report = export_onnx(
            trained.model,
            path,
            image_shape=trained.data.image_shape,
            layout=given.layout,
            precision=given.precision,
            float_input=given.float_input,
            calibration_images=trained.calibration_images() if given.precision == "int8" else None,
            **shared,
        )
    log_source(trained, log)
    log(report)
    if calibration is not None:
        log(f"  {calibration}")
    if shared["ood"] is not None:
        log(shared["ood"])
    log(f"wrote {path} and {path.with_suffix('.json')}")
    if samples is not None:
        written = write_samples(samples, trained, given.samples)
        log(f"wrote {written} {trained.split} images to {samples}")
    if page is not None:
        log(write_page(path, page, data_dir=given.data_dir, overwrite=given.overwrite))
    return 0


def fitted_ood(trained: TrainedModel, given: Namespace) -> OodScore:
    """The score of the flags; a note is printed if its threshold comes from training images."""
    from .ood import ood_of_run

    score = ood_of_run(trained, given.ood_score or "neco", 0.95 if given.ood_share is None else given.ood_share)
    if score.split == "train":
        note = "the OOD threshold comes from training images, as the run has no validation images (--val-fraction)"
        printer(given.quiet)(f"etf-export: note: {note}: it accepts fewer new images", file=sys.stderr)
    return score


def check(given: Namespace) -> int:
    """`etf-export check MODEL --run RUN`."""
    _check_counts(given, {"check_images": 1})
    from ..torchport.training.run.reading import read_run
    from .check import check_onnx
    from .from_run import load_trained
    from .ood import recorded_ood
    from .predict import OnnxClassifier

    log = printer(given.quiet)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        about = OnnxClassifier(given.model)
    made_from = about.metadata.get("checkpoint")
    known = made_from in read_run(given.run, need_rows=False).checkpoints
    trained = load_trained(
        Path(given.run), given.checkpoint or (made_from if known else None), given.data_dir, given.data
    )
    _, images, labels = trained.check_images(given.check_images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ood = recorded_ood(trained, about.ood)
        report = check_onnx(trained.model, given.model, images, labels, mean=trained.mean, std=trained.std, ood=ood)
    log_source(trained, log)
    log(report)
    if not Path(given.model).with_suffix(".json").exists():
        log("etf-export: note: the model has no sidecar, so its checksum was not verified", file=sys.stderr)
    if report.passed:
        return 0
    return fail("etf-export", f"{given.model} differs from {trained.name}: {' and '.join(report.failures)}", 1)


def log_source(trained: TrainedModel, log: Callable[..., None]) -> None:
    """Print the checkpoint and the split of the check, with notes on changed data and training images."""
    log(f"{trained.name}{f' ({trained.reason})' if trained.reason else ''}; checked on {trained.split} images")
    if trained.changed:
        log(f"etf-export: note: {trained.changed}", file=sys.stderr)
    if trained.split == "train":
        note = "the data set has no test or validation images: checked on training images"
        log(f"etf-export: note: {note}", file=sys.stderr)


def _check_flags(given: Namespace) -> None:
    """Refuse flags that contradict each other, and numbers out of range."""
    if given.head_only and (given.float_input or given.precision == "int8"):
        raise ExportError("--head-only exports a head for features: leave out --float-input and --precision int8")
    if given.head_only and given.page:
        raise ExportError("a page needs images, and a head features: leave out one of --head-only and --page")
    for name in ("ood_score", "ood_share"):
        if getattr(given, name) is not None and not given.ood:
            raise ExportError(f"--{name.replace('_', '-')} needs --ood: give both")
    if given.ood_share is not None and not 0 < given.ood_share <= 1:
        raise ExportError(f"--ood-share is {given.ood_share}: expected a number above 0, at most 1")
    if given.precision == "fp64" and not given.head_only:
        raise ExportError("--precision fp64 needs --head-only: a backbone can be fp32, fp16 or int8")
    _check_counts(given, {"check_images": 1, "samples": 0})


def _check_counts(given: Namespace, least: dict[str, int]) -> None:
    for name, bound in least.items():
        if (found := getattr(given, name)) < bound:
            raise ExportError(f"--{name.replace('_', '-')} is {found}: expected at least {bound}")


if __name__ == "__main__":
    sys.exit(main())
