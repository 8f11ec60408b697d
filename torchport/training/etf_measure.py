"""`etf-measure`: every figure of neural collapse of a run's checkpoints, on each split of its data."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from ...common.command import Parser, printer, run_command
from ...common.files import write_file

EXAMPLES = """
etf-measure runs/digits                             best, last and recalibrated checkpoint, where they exist
etf-measure runs/digits --checkpoint recalibrated   one of them
etf-measure runs/photos --data /new/place/photos    of a run whose image folder has moved
etf-measure runs/digits --json figures.json         figures as JSON; - for standard output, without the table
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 on success, 2 if a run cannot be measured."""
    parser = Parser(
        "etf-measure",
        "Measure neural collapse of a run's checkpoints on its training, validation and test data.",
        EXAMPLES,
    )
    parser.add_argument("run", metavar="RUN", help="run folder of etf-train")
    parser.add_argument("--checkpoint", choices=("best", "last", "recalibrated"), help="only this one [all that exist]")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON; - for standard output")
    parser.add_argument("--data", metavar="FOLDER", help="the run's image folder, if it has moved")
    parser.add_argument("--data-dir", metavar="DIR", help="where data sets lie, as for etf-train")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 … (a GPU where there is one)")
    options = parser.parse_args(arguments)

    def body() -> int:
        from .measure import measure_run
        from .measurement import measurement_table

        measurements = measure_run(
            options.run,
            options.checkpoint,
            data=options.data,
            data_dir=options.data_dir,
            device=options.device,
            log=lambda line: print(f"etf-measure: note: {line}", file=sys.stderr),
        )
        figures = {name: {"epoch": m.epoch, **m.figures} for name, m in measurements.items()}
        text = json.dumps(figures, indent=2) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
            return 0
        printer(options.quiet)(measurement_table(measurements))
        if options.json:
            write_file(options.json, text)
        return 0

    return run_command(parser.prog, body)


if __name__ == "__main__":
    sys.exit(main())
