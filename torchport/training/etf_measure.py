"""`etf-measure`: neural collapse of a run's checkpoints, or of any network, on every split of its data."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from ...common.command import Parser, printer, run_command
from ...common.errors import UserError
from ...common.files import write_file

EXAMPLES = """
etf-measure runs/digits                             all checkpoints: best, last and recalibrated
etf-measure runs/digits --checkpoint recalibrated   one of them
etf-measure runs/photos --data /new/place/photos    a run whose image folder has moved
etf-measure runs/digits --json figures.json         metrics as JSON; - for standard output, without the table
etf-measure --model net.py:make --weights net.pt --classifier fc --data photos     a network trained elsewhere
etf-measure --model timm:resnet18 --layer global_pool --data photos    features alone, on your own classes
"""
OF_A_MODEL = ("weights", "classifier", "layer", "image_size", "mean", "std")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 on success, 2 if a run cannot be measured."""
    parser = Parser(
        "etf-measure",
        "Measure neural collapse of a run's checkpoints on its training, validation and test data.",
        EXAMPLES,
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="run folder of etf-train; or --model")
    parser.add_argument("--checkpoint", choices=("best", "last", "recalibrated"), help="only this one [all that exist]")
    parser.add_argument("--json", metavar="FILE", help="write the metrics as JSON; - for standard output")
    parser.add_argument("--data", metavar="FOLDER", help="the run's image folder, if it has moved; or the model's")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data sets, as for etf-train")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 … [a GPU if there is one]")
    model = parser.add_argument_group(
        "a network trained elsewhere",
        "It needs --data (a folder of CLASS/… or {train,val,test}/CLASS/…, or the name of a data set), and "
        "--classifier, --layer or both. Metrics are those of the classifier's input, or of the layer's output. The "
        "order of the folders must be that of the logits.",
    )
    model.add_argument(
        "--model",
        metavar="NAME",
        help="PACKAGE.MODULE:FUNCTION or FILE.py:FUNCTION that returns it; timm:NAME, torchvision:NAME",
    )
    model.add_argument(
        "--weights", metavar="FILE", help="safetensors, or a checkpoint of torch.save [set by the function or library]"
    )
    model.add_argument("--classifier", metavar="NAME", help="the linear layer that outputs the logits, such as fc")
    model.add_argument("--layer", metavar="NAME", help="the layer whose output is measured [the classifier's input]")
    model.add_argument("--image-size", type=int, metavar="N", help="side of the images [the network's own, else 224]")
    for name in ("mean", "std"):
        about = (
            f"{name} of pixels on the 0…1 scale: one number, or one per channel [the network's own, else ImageNet's]"
        )
        model.add_argument(f"--{name}", nargs="+", type=float, metavar="X", help=about)
    options = parser.parse_args(arguments)
    return run_command(parser.prog, lambda: _measured(options))


def _measured(options: Namespace) -> int:
    from .data.worker import needing_workers

    with needing_workers():
        return _of_run(options) if options.model is None else _of_model(options)


def _of_run(options: Namespace) -> int:
    """`etf-measure RUN`."""
    if options.run is None:
        raise UserError("name a run folder, or a network with --model (see etf-measure --help)")
    for name in OF_A_MODEL:
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is for --model: a run has its own")
    from .measure import measure_run
    from .measurement import class_accuracies, measurement_table, mistakes_text
    from .run.reading import read_run

    measurements = measure_run(
        options.run,
        options.checkpoint,
        data=options.data,
        data_dir=options.data_dir,
        device=options.device,
        log=_note,
    )
    run = read_run(options.run, need_rows=False)
    figures = {
        name: {"epoch": m.epoch, **m.figures, "class_accuracy": class_accuracies(m, run.class_names)}
        for name, m in measurements.items()
    }
    name = run.result if run.result in measurements else next(iter(measurements))
    mistakes = f"\n{name}.pt, {mistakes_text(measurements[name], run.class_names)}"
    return _shown(options, f"{measurement_table(measurements)}\n{mistakes}", figures)


def _of_model(options: Namespace) -> int:
    """`etf-measure --model NAME`."""
    if options.run is not None or options.checkpoint is not None:
        raise UserError("--model excludes a run folder and --checkpoint: measure one or the other")
    if options.data is None:
        raise UserError("--model needs --data: a folder of images by class, or the name of a data set")
    from .measure_model import ImagesFor, measure_model
    from .measurement import measurement_table

    images = ImagesFor(options.data, options.image_size, options.mean, options.std, options.data_dir)
    layers = {"classifier": options.classifier, "layer": options.layer}
    measurement = measure_model(
        options.model,
        images,
        weights=options.weights,
        **layers,
        device=options.device,
        log=(lambda line: None) if options.quiet else _note,
    )
    figures = {options.model: {"weights": options.weights, **layers, **measurement.figures}}
    return _shown(options, measurement_table({options.model: measurement}), figures)


def _shown(options: Namespace, text: str, figures: dict[str, Any]) -> int:
    """Print text, or with `--json -` the metrics; write them with `--json FILE`."""
    written = json.dumps(figures, indent=2) + "\n"
    if options.json == "-":
        sys.stdout.write(written)
        return 0
    printer(options.quiet)(text)
    if options.json:
        write_file(options.json, written)
    return 0


def _note(line: str) -> None:
    print(f"etf-measure: note: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
