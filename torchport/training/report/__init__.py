"""`etf-report`: runs compared, as one self-contained page, a picture, tables and words.

    etf-report runs/demo/* --to report.html              a page that opens offline, with every metric and figure
    etf-report runs/demo/* --to report.png               one summary picture
    etf-report runs/demo/* --aggregate tables            statistics over seeds: Markdown, CSV, LaTeX

In any case a table of the heads is printed. Runs that differ in nothing but the seed are gathered into one line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from .groups import Group, Run, RunError, group_runs, load_run
from .tables import accuracy_at, as_csv, as_latex, as_markdown, as_text, comparison, over_seeds_csv, summary, verdict

__all__ = ["Group", "Run", "RunError", "group_runs", "load_run", "main", "write_report", "write_tables"]

EXAMPLES = """examples:
  etf-report runs/demo/* --to report.html                one self-contained page
  etf-report runs/demo/* --to report.html report.png     and one summary picture
  etf-report runs/demo/* --to report.html --figures fig  each figure as SVG and PNG, too
  etf-report runs/demo/* --aggregate tables --at 50 200  statistics over seeds: Markdown, CSV, LaTeX
"""


def write_report(groups: Sequence[Group], target: Path, epochs: Sequence[int], figures_to: Path | None = None) -> None:
    """Write the page (.html) or the picture (.png, .svg, .pdf) of these groups.

    Raises
    ------
    RunError
        If the target has another ending, or lies in a folder that does not exist.
    """
    from . import figures, page

    if target.suffix not in (".html", ".png", ".svg", ".pdf"):
        raise RunError(f"{target}: expected a file that ends in .html, .png, .svg or .pdf")
    if not target.parent.is_dir():
        raise RunError(f"{target}: there is no folder {target.parent}")
    if target.suffix == ".html":
        page.write_page(groups, target, epochs, figures_to)
        return
    made = groups[0].runs[0].config
    device = made.get("provenance", {}).get("device", "")
    seeds = max(len(group.runs) for group in groups)
    name = made.get("data", {}).get("name", "")
    note = f"{name}, median and range over {seeds} seed(s); train solid, test dashed. {device}"
    figures.picture(groups, note).savefig(target, dpi=130)


def write_tables(groups: Sequence[Group], folder: Path, epochs: Sequence[int]) -> list[Path]:
    """Write every metric over seeds as CSV, and the summary and accuracy tables as Markdown, CSV and LaTeX."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"metrics.csv": over_seeds_csv(groups)}
    for name, table in (("summary", summary(groups)), ("accuracy", accuracy_at(groups, epochs))):
        texts |= {f"{name}.md": as_markdown(table), f"{name}.csv": as_csv(table), f"{name}.tex": as_latex(table)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def default_epochs(groups: Sequence[Group]) -> list[int]:
    """Epochs of the accuracy table: the paper's 50 and 200 where they were reached, and the last one."""
    reached = {int(epoch) for group in groups for epoch in group.epochs}
    return sorted(({50, 200} & reached) | {max(reached)})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: 0 on success, 2 if a run or a target cannot be used."""
    parser = _Parser(
        prog="etf-report",
        description="Compare runs: a table, a page, a picture, statistics over seeds.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders of etf-train")
    parser.add_argument(
        "--to",
        metavar="FILE",
        type=Path,
        nargs="+",
        default=[],
        help="the page (.html), the picture (.png, .svg, .pdf)",
    )
    parser.add_argument("--figures", metavar="DIR", type=Path, help="with a page: each figure as SVG and PNG, too")
    parser.add_argument("--aggregate", metavar="DIR", type=Path, help="statistics over seeds: Markdown, CSV, LaTeX")
    parser.add_argument(
        "--at", metavar="EPOCH", type=int, nargs="+", help="epochs of the accuracy table (50, 200, last)"
    )
    options = parser.parse_args(arguments)
    try:
        groups = group_runs([load_run(run) for run in options.runs])
        epochs = options.at or default_epochs(groups)
        print(as_text(summary(groups)))
        print("\n".join(["", *(f"{group.label}: {verdict(group)}" for group in groups)]))
        if len(groups) > 1:
            print(comparison(groups))
        if options.aggregate:
            for path in write_tables(groups, options.aggregate, epochs):
                print(path)
        for target in options.to:
            write_report(groups, target, epochs, options.figures)
            print(target)
    except (RunError, OSError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
