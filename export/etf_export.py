"""`etf-export`: from a run folder to a checked ONNX file, and the same check again on demand."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from .errors import CheckError, ExportError

EXAMPLES = """examples:
  etf-export runs/x --to model.onnx                       checks, then writes model.onnx and model.json
  etf-export runs/x --to model.onnx --samples 40          and 40 held-out images, to try the model on
  etf-export runs/x --to small.onnx --precision int8      integer convolutions, calibrated on training images
  etf-export check model.onnx --run runs/x                the check again
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """The flags of `etf-export RUN` and of `etf-export check MODEL`."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--checkpoint", choices=("best", "last"), default="best", help="of the run [best]")
    shared.add_argument("--check-images", type=int, default=1000, metavar="N", help="test images to check on [1000]")
    shared.add_argument("--data-dir", metavar="DIR", help="where data sets lie ($NEAREST_ETF_DATA, or a cache folder)")

    form: Any = argparse.RawDescriptionHelpFormatter
    about = "Export a run to one ONNX file, which is checked against PyTorch on real images before it is written."
    export = _Parser(
        prog="etf-export",
        description=about,
        epilog=EXAMPLES,
        formatter_class=form,
        parents=[shared],
        allow_abbrev=False,
    )
    export.add_argument("run", metavar="RUN", help="a run folder; or the word check (see the examples)")
    export.add_argument("--to", required=True, metavar="FILE", help="the file to write, ending in .onnx")
    export.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8", "fp64"),
        default="fp32",
        help="of the backbone, or of the head with --head-only; fp64 is for heads, int8 for backbones [fp32]",
    )
    export.add_argument("--layout", choices=("NHWC", "NCHW"), default="NHWC", help="of the images [NHWC]")
    export.add_argument("--float-input", action="store_true", help="take normalised float32, not 8-bit pixels")
    export.add_argument("--head-only", action="store_true", help="take features: leave out backbone and pixels")
    export.add_argument("--samples", type=int, default=0, metavar="N", help="also write N held-out images as PNG")
    export.add_argument("--licence", metavar="TEXT", help="terms that the file should state")
    export.add_argument("--overwrite", action="store_true", help="replace existing files")

    check = _Parser(
        prog="etf-export check",
        description="Check an exported file against its run.",
        parents=[shared],
        allow_abbrev=False,
    )
    check.add_argument("model", metavar="MODEL", help="an ONNX file that etf-export wrote")
    check.add_argument("--run", required=True, metavar="RUN", help="the run folder that it came from")
    return export, check


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 on success, 1 where a check fails, 2 where it was asked for in the wrong way."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    export, check = build_parsers()
    try:
        if words[:1] == ["check"]:
            return run_check(check.parse_args(words[1:]))
        return run_export(export.parse_args(words))
    except CheckError as error:
        print(f"etf-export: {error}", file=sys.stderr)
        return 1
    except ExportError as error:
        print(f"etf-export: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"etf-export: {error.name} is missing: pip install 'nearest-etf[export]'", file=sys.stderr)
        return 2


def run_export(given: argparse.Namespace) -> int:
    """`etf-export RUN --to FILE`."""
    _check_flags(given)
    from .export import export_head_onnx, export_onnx, writable_target
    from .from_run import load_run, samples_folder, write_samples

    path = writable_target(given.to, given.overwrite)
    samples = samples_folder(path, given.overwrite) if given.samples else None
    run = load_run(Path(given.run), given.checkpoint, given.data_dir)
    _, images, labels = run.test_images(given.check_images)
    shared: dict[str, Any] = {
        "mean": run.mean,
        "std": run.std,
        "class_names": run.data.class_names,
        "check_images": images,
        "check_labels": labels,
        "metadata": {**run.metadata, "licence": given.licence},
        "overwrite": given.overwrite,
    }
    if given.head_only:
        report = export_head_onnx(run.model, path, precision=given.precision, **shared)
    else:
        report = export_onnx(
            run.model,
            path,
            image_shape=run.data.image_shape,
            layout=given.layout,
            precision=given.precision,
            float_input=given.float_input,
            calibration_images=run.calibration_images() if given.precision == "int8" else None,
            **shared,
        )
    print(report)
    print(f"wrote {path} and {path.with_suffix('.json')}")
    if samples is not None:
        write_samples(samples, run, given.samples)
        print(f"wrote {given.samples} held-out images to {samples}")
    return 0


def run_check(given: argparse.Namespace) -> int:
    """`etf-export check MODEL --run RUN`."""
    if given.check_images < 1:
        raise ExportError(f"--check-images is {given.check_images}: expected at least 1")
    from .check import check_onnx
    from .from_run import load_run

    run = load_run(Path(given.run), given.checkpoint, given.data_dir)
    _, images, labels = run.test_images(given.check_images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = check_onnx(given.model, run.model, images, labels, mean=run.mean, std=run.std)
    print(report)
    if not Path(given.model).with_suffix(".json").exists():
        print("etf-export: note: no sidecar beside the model, so its checksum was not verified", file=sys.stderr)
    return 0 if report.passed else 1


def _check_flags(given: argparse.Namespace) -> None:
    """Flags that contradict each other, or numbers out of range."""
    if given.head_only and (given.float_input or given.precision == "int8"):
        raise ExportError("--head-only takes features: it goes with neither --float-input nor --precision int8")
    if given.precision == "fp64" and not given.head_only:
        raise ExportError("--precision fp64 is for --head-only: a backbone is trained in less")
    for flag, least in (("check_images", 1), ("samples", 0)):
        if getattr(given, flag) < least:
            raise ExportError(f"--{flag.replace('_', '-')} is {getattr(given, flag)}: expected at least {least}")


if __name__ == "__main__":
    sys.exit(main())
