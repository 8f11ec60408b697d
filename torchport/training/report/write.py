"""Write reports: the page or the picture, and the tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ....common.errors import UserError
from ....common.files import replacing, write_file
from .data_sets import DataSet
from .tables import (
    accuracy_at,
    as_csv,
    as_latex,
    as_markdown,
    default_epochs,
    differing_table,
    over_seeds_csv,
    summary,
)

PICTURES = (".png", ".svg", ".pdf")


class ReportError(UserError):
    """A report that cannot be written to its target."""


def check_target(target: Path) -> None:
    """Refuse a file that no report can be written to.

    Raises
    ------
    ReportError
        If it has another ending, or its folder does not exist.
    """
    if target.suffix not in (".html", *PICTURES):
        raise ReportError(f"{target}: expected a file that ends in .html, .png, .svg or .pdf")
    if not target.parent.is_dir():
        raise ReportError(f"{target}: there is no folder {target.parent}")


def write_report(
    sets: Sequence[DataSet],
    target: Path,
    epochs: Sequence[int],
    figures_to: Path | None = None,
    log: Callable[[str], object] = print,
) -> None:
    """Write the page (.html) or the picture (.png, .svg, .pdf) of these data sets.

    Parameters
    ----------
    sets : sequence of DataSet
    target : path
    epochs : sequence of int
        Epochs of the accuracy table; empty: `default_epochs` of each data set.
    figures_to : path, optional
        With a page: a folder for each figure as SVG and PNG.
    log : callable
        Called with lines about measurements that are repeated.

    Raises
    ------
    ReportError
        As `check_target`.
    """
    check_target(target)
    if target.suffix == ".html":
        from .page import write_page

        write_page(sets, target, epochs, figures_to, log)
        return
    from .figures import picture
    from .style import save

    figure = picture(sets, [_caption(found) for found in sets])
    with replacing(target) as file:
        save(figure, file, target.suffix[1:], dpi=130)


def _caption(found: DataSet) -> str:
    """The caption of a picture: data, seeds and device."""
    from .figures import split_caption

    first, most = found.groups[0].runs[0], max(found.groups, key=lambda group: len(group.runs))
    over = most.extent if len(most.runs) == 1 else f"median and range over {most.extent}"
    device = first.config.get("provenance", {}).get("device") or ""
    return f"{found.name}, {over}; {split_caption(found.groups)}. {device}"


def write_tables(sets: Sequence[DataSet], folder: Path, epochs: Sequence[int]) -> list[Path]:
    """Write every metric over seeds as CSV, and the summary and accuracy tables as Markdown, CSV and LaTeX.

    The settings in which groups differ, if any, are a third table. With several data sets, each has its own folder
    inside `folder`.
    """
    if len(sets) > 1:
        places = [folder / f"{i}-{_file_name(found.name)}" for i, found in enumerate(sets, start=1)]
        return [
            path for found, place in zip(sets, places, strict=True) for path in write_tables([found], place, epochs)
        ]
    (found,) = sets
    groups = found.groups
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"metrics.csv": over_seeds_csv(groups)}
    tables = {"summary": summary(groups), "accuracy": accuracy_at(groups, epochs or default_epochs(groups))}
    for name, table in (tables | {"settings": differing_table(groups)}).items():
        if table:
            texts |= {f"{name}.md": as_markdown(table), f"{name}.csv": as_csv(table), f"{name}.tex": as_latex(table)}
    for name, text in texts.items():
        write_file(folder / name, text)
    return [folder / name for name in texts]


def _file_name(name: str) -> str:
    """A name as part of the name of a folder, on any system."""
    return re.sub(r"[^\w.-]+", "-", name)[:40]
