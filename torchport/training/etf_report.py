"""`etf-report`: compare runs, as one self-contained page, a picture, tables and sentences.

A table of the heads is always printed. Runs that differ only in the seed share a line. Runs on different data have
separate tables and are not compared.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ...common.command import Parser, printer, run_command

EXAMPLES = """
etf-report runs/demo/*-seed* --to report.html                one self-contained page
etf-report runs/demo/*-seed* --to report.html report.png     and one summary picture
etf-report runs/demo/*-seed* --to report.html --figures fig  each figure as SVG and PNG, too
etf-report runs/demo/*-seed* --aggregate tables --at 50 200  statistics over seeds: Markdown, CSV, LaTeX
etf-report runs/a runs/b --labels baseline ours              your own names for the lines of the tables
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 on success, 2 if a run or a target cannot be used."""
    parser = Parser("etf-report", "Compare runs: a table, a page, a picture, statistics over seeds.", EXAMPLES)
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", help="run folders of etf-train")
    add("--to", metavar="FILE", type=Path, nargs="+", default=[], help="page (.html) or picture (.png, .svg, .pdf)")
    add("--figures", metavar="DIR", type=Path, help="with a page: each figure as SVG and PNG, too")
    add("--aggregate", metavar="DIR", type=Path, help="statistics over seeds: Markdown, CSV, LaTeX")
    add("--at", metavar="EPOCH", type=int, nargs="+", help="epochs of the accuracy table [50, 200 and the last]")
    add(
        "--labels",
        metavar="NAME",
        nargs="+",
        default=[],
        help="names for the lines of the tables, in the order of the runs",
    )
    options = parser.parse_args(arguments)

    def body() -> int:
        from .report.data_sets import data_sets
        from .report.words import printed
        from .report.write import check_target, write_report, write_tables
        from .run.reading import read_run

        log = printer(options.quiet)
        for target in options.to:
            check_target(target)
        folders = {os.path.realpath(run): run for run in reversed(options.runs)}  # each once, by its first name
        sets = data_sets([read_run(run) for run in reversed(folders.values())], options.labels)
        log(printed(sets))
        if options.aggregate:
            for path in write_tables(sets, options.aggregate, options.at or ()):
                log(path)
        for target in options.to:
            write_report(sets, target, options.at or (), options.figures, log)
            log(target)
        return 0

    return run_command(parser.prog, body)


if __name__ == "__main__":
    sys.exit(main())
