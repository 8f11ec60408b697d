"""`etf-report`: runs compared, as one self-contained page, a picture, tables and words.

A table of the heads is printed in any case. Runs that differ in nothing but the seed are gathered into one line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ...common.command import Parser, printer, run_command

EXAMPLES = """
etf-report runs/demo/*-seed* --to report.html                one self-contained page
etf-report runs/demo/*-seed* --to report.html report.png     and one summary picture
etf-report runs/demo/*-seed* --to report.html --figures fig  each figure as SVG and PNG, too
etf-report runs/demo/*-seed* --aggregate tables --at 50 200  statistics over seeds: Markdown, CSV, LaTeX
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
    options = parser.parse_args(arguments)

    def body() -> int:
        from .report.groups import group_runs
        from .report.tables import as_text, summary
        from .report.words import comparison, verdict
        from .report.write import check_target, default_epochs, write_report, write_tables
        from .run.reading import read_run

        log = printer(options.quiet)
        for target in options.to:
            check_target(target)
        groups = group_runs([read_run(run) for run in options.runs])
        epochs = options.at or default_epochs(groups)
        log(as_text(summary(groups)))
        log("\n".join(["", *(f"{group.label}: {verdict(group)}" for group in groups)]))
        if len(groups) > 1:
            log(comparison(groups))
        if options.aggregate:
            for path in write_tables(groups, options.aggregate, epochs):
                log(path)
        for target in options.to:
            write_report(groups, target, epochs, options.figures, log)
            log(target)
        return 0

    return run_command(parser.prog, body)


if __name__ == "__main__":
    sys.exit(main())
