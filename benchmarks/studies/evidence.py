"""The tables of docs/evidence.md, from the result files of the studies; no training.

    python benchmarks/studies/evidence.py              # update the tables of the page
    python benchmarks/studies/evidence.py --check      # name those that differ; the exit status is 1 if any does
    python benchmarks/studies/evidence.py fine-tuning-claims    # print one

A table of the page is between `<!-- begin: NAME -->` and `<!-- end -->`, below the command that prints it. Tables of
studies contain the complete settings, those with all heads and seeds, and name the others.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures  # type: ignore[import-not-found]
import defaults  # type: ignore[import-not-found]
import failures  # type: ignore[import-not-found]
import few_dimensions  # type: ignore[import-not-found]
import fine_tune  # type: ignore[import-not-found]
import fine_tune_seconds  # type: ignore[import-not-found]
import fine_tune_tables as of_b  # type: ignore[import-not-found]
import from_scratch  # type: ignore[import-not-found]
import gradient  # type: ignore[import-not-found]
import growing  # type: ignore[import-not-found]
import relu_floor  # type: ignore[import-not-found]
import scale  # type: ignore[import-not-found]
from paired import Results  # type: ignore[import-not-found]
from scratch import SMALL, Run, Study, plan, run_of  # type: ignore[import-not-found]
from scratch_tables import named, secondary  # type: ignore[import-not-found]

ROOT = Path(__file__).parents[2]
PAGE, RESULTS = ROOT / "docs" / "evidence.md", ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(?<=<!-- begin: )([a-z0-9-]+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
Rows = list[dict[str, Any]]
STUDIES: dict[str, Study] = {
    "from-scratch": from_scratch.STUDY,
    "gradient": gradient.STUDY,
    "defaults": defaults.STUDY,
    "failures": failures.STUDY,
    "architectures": architectures.STUDY,
    "few-dimensions": few_dimensions.STUDY,
}
QUESTIONS = {
    "fine-tune": "B: fine-tuning",
    "from-scratch": "A: training from scratch",
    "gradient": "C: the gradient through the solution",
    "defaults": "D: start, δ, τ, formulation, averaging",
    "scale": "E: scale",
    "failures": "F: failure signatures",
    "architectures": "G: architectures",
    "few-dimensions": "H: more classes than a simplex has room for",
    "relu-floor": "A: the lowest loss of non-negative features",
}


def files_of(name: str) -> list[Path]:
    """The result files of a study; parallel calls have one each."""
    return sorted(RESULTS.glob(f"{name}.json")) + sorted(RESULTS.glob(f"{name}-[0-9].json"))


def rows_of(name: str) -> Rows:
    return [row for path in files_of(name) for row in Results(path).rows]


def planned(name: str) -> list[Any]:
    """The reported runs of a study at small scale."""
    if name == "fine-tune":
        runs = fine_tune.plan(fine_tune.SMALL, rows_of(name))
    elif name == "scale":
        return [(K, threads) for K in scale.CLASSES if K <= 5000 for threads in scale.THREADS["small"]]
    elif name == "relu-floor":
        return [None] * (len(relu_floor.CLASSES) * len(relu_floor.TEMPERATURES) * 2**3)
    else:
        study = STUDIES[name]
        runs = plan(study, {**SMALL, **study.small}, rows_of("from-scratch"))
    return [run for run in runs if run.stage == "report"]


def of_study(name: str, tables: Callable[[Rows], str] | None = None) -> str:
    """The tables of the complete settings, and the names of the others."""
    rows = rows_of(name)
    done = {run_of(row).key() for row in rows if row["stage"] == "report"}
    runs: list[Run] = planned(name)
    missing = dict.fromkeys(run.factor for run in runs if run.key() not in done)
    if len(missing) == len({run.factor for run in runs}):
        return "Not yet run." if not rows else "Begun; no setting is complete yet."
    parts = [(tables or STUDIES[name].tables)([row for row in rows if row["factor"] not in missing])]
    parts += [f"Not yet complete: {', '.join(missing)}."] if missing else []
    return "\n\n".join(parts)


def state() -> str:
    """For each study, the numbers of finished and planned runs, and the hours of all runs."""
    lines = [["study", "reported runs done", "planned", "runs that tuned", "hours of training"]]
    for name, question in QUESTIONS.items():
        rows = rows_of(name)
        tuning = sum(row.get("stage") == "tune" for row in rows)
        seconds = [took(row["seconds"]) for row in rows if "seconds" in row]
        hours = f"{sum(seconds) / 3600:.1f}" if seconds else "–"
        lines.append([question, str(len(rows) - tuning), str(len(planned(name))), str(tuning), hours])
    return str(of_b.markdown(lines))


def took(seconds: float | dict[str, float]) -> float:
    return sum(seconds.values()) if isinstance(seconds, dict) else seconds


def provenance() -> str:
    """The provenance of the rows, by result file."""
    lines = [["file", "rows", "calls", "commit", "versions", "processor", "threads"]]
    for name in QUESTIONS:
        for path in files_of(name):
            found = Results(path)
            line = [path.name, str(len(found.rows)), str(len(found.calls))]
            versions = [", ".join(f"{n} {v}" for n, v in call["versions"].items()) for call in found.calls]
            told = ([c["commit"] for c in found.calls], versions, [c["device"] for c in found.calls])
            threads = [str(call["threads"]) for call in found.calls]
            lines.append([*line, *("; ".join(dict.fromkeys(map(str, part))) for part in (*told, threads))])
    return str(of_b.markdown(lines))


def growth() -> str:
    rows = rows_of("scale")
    return str(scale.tables(rows, rows_of("from-scratch"))) if rows else "Not yet run."


def growing_classes() -> str:
    """The table of `growing.py`."""
    return str(growing.table(json.loads((RESULTS / "growing.json").read_text(encoding="utf-8"))["rows"]))


def seconds() -> str:
    """The seconds of `fine_tune_seconds.py`, if measured."""
    rows = rows_of("seconds-fine-tune")
    return str(fine_tune_seconds.table(rows, rows_of("fine-tune"))) if rows else "Not yet measured."


def b(table: Callable[..., str], *arguments: Any, **only: Any) -> Callable[[], str]:
    """A table of study B's rows; `only` selects rows by values of their columns."""

    def made() -> str:
        rows = [row for row in rows_of("fine-tune") if all(row[name] in values for name, values in only.items())]
        return table(rows, *arguments)

    return made


CENTRE, OTHERS = ("centre",), tuple(name for name, *_ in fine_tune.SMALL.variations)
TABLES: dict[str, Callable[[], str]] = {
    "state": state,
    "provenance": provenance,
    "fine-tuning-claims": b(of_b.claims),
    "fine-tuning-accuracies": b(of_b.standings, factor=CENTRE),
    "fine-tuning-named": b(of_b.differences, of_b.NAMED, factor=CENTRE),
    "fine-tuning-factors": b(of_b.differences, of_b.NAMED, factor=OTHERS),
    "fine-tuning-factors-accuracies": b(of_b.standings, factor=OTHERS),
    "fine-tuning-between": b(of_b.across),
    "fine-tuning-secondary": b(of_b.differences, of_b.SECONDARY, factor=CENTRE),
    "fine-tuning-way-4": b(of_b.way, 4),
    "fine-tuning-way-20": b(of_b.way, 20),
    "fine-tuning-temperatures": b(of_b.over_temperature),
    "fine-tuning-trials-4": b(of_b.grid, 4),
    "fine-tuning-trials-20": b(of_b.grid, 20),
    "fine-tuning-seconds": seconds,
    "relu-floor": lambda: relu_floor.table(rows_of("relu-floor")),
    "from-scratch-named": lambda: of_study("from-scratch", named),
    "from-scratch-secondary": lambda: of_study("from-scratch", secondary),
    **{name: lambda name=name: of_study(name) for name in STUDIES},  # type: ignore[misc]
    "scale": growth,
    "growing": growing_classes,
}


def rebuilt(page: str) -> str:
    """The page with the present output of every table's command.

    Raises
    ------
    KeyError
        If the page names a table that does not exist.
    """

    def made(match: re.Match[str]) -> str:
        name, close = match.groups()
        return f"{name}{close}`python benchmarks/studies/evidence.py {name}`\n\n{TABLES[name]()}\n"

    return BLOCK.sub(made, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", choices=TABLES, help="print this one")
    parser.add_argument("--check", action="store_true", help="compare the page with the result files")
    options = parser.parse_args()
    if options.table:
        print(TABLES[options.table]())
        return
    page = PAGE.read_text(encoding="utf-8")
    new = rebuilt(page)
    if not options.check:
        PAGE.write_text(new, encoding="utf-8")
        return
    pairs = zip(BLOCK.finditer(page), BLOCK.finditer(new), strict=True)
    differing = [old[1] for old, now in pairs if old[0] != now[0]]
    if differing:
        sys.exit(f"{PAGE}: not what the result files give: {', '.join(differing)}")


if __name__ == "__main__":
    main()
