"""Reports on disk: the page or the picture, and the tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ....common.errors import UserError
from ....common.files import replacing, write_file
from .groups import Group
from .tables import accuracy_at, as_csv, as_latex, as_markdown, over_seeds_csv, summary

PICTURES = (".png", ".svg", ".pdf")


class ReportError(UserError):
    """A report that cannot be written where it was asked for."""


def check_target(target: Path) -> None:
    """Refuse a file that no report can be written to.

    Raises
    ------
    ReportError
        If it has another ending, or lies in a folder that does not exist.
    """
    if target.suffix not in (".html", *PICTURES):
        raise ReportError(f"{target}: expected a file that ends in .html, .png, .svg or .pdf")
    if not target.parent.is_dir():
        raise ReportError(f"{target}: there is no folder {target.parent}")


def write_report(
    groups: Sequence[Group],
    target: Path,
    epochs: Sequence[int],
    figures_to: Path | None = None,
    log: Callable[[str], object] = print,
) -> None:
    """Write the page (.html) or the picture (.png, .svg, .pdf) of these groups.

    Parameters
    ----------
    groups : sequence of Group
    target : path
    epochs : sequence of int
        Of the accuracy table.
    figures_to : path, optional
        With a page: a folder for each figure as SVG and PNG.
    log : callable
        Takes notes about measurements that had to be made again.

    Raises
    ------
    ReportError
        As `check_target`.
    """
    check_target(target)
    if target.suffix == ".html":
        from .page import write_page

        write_page(groups, target, epochs, figures_to, log)
        return
    from .figures import picture, split_caption

    first, seeds = groups[0].runs[0], max(len(group.runs) for group in groups)
    over = "one seed" if seeds == 1 else f"median and range over {seeds} seeds"
    device = first.config.get("provenance", {}).get("device") or ""
    figure = picture(groups, f"{first.data_name}, {over}; {split_caption(groups)}. {device}")
    with replacing(target) as file:
        figure.savefig(file, format=target.suffix[1:], dpi=130)


def write_tables(groups: Sequence[Group], folder: Path, epochs: Sequence[int]) -> list[Path]:
    """Write every metric over seeds as CSV, and the summary and accuracy tables as Markdown, CSV and LaTeX."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"metrics.csv": over_seeds_csv(groups)}
    for name, table in (("summary", summary(groups)), ("accuracy", accuracy_at(groups, epochs))):
        texts |= {f"{name}.md": as_markdown(table), f"{name}.csv": as_csv(table), f"{name}.tex": as_latex(table)}
    for name, text in texts.items():
        write_file(folder / name, text)
    return [folder / name for name in texts]


def default_epochs(groups: Sequence[Group]) -> list[int]:
    """Epochs of the accuracy table: the paper's 50 and 200 where they were reached, and the last one."""
    reached = {int(epoch) for group in groups for epoch in group.epochs}
    return sorted(({50, 200} & reached) | {max(reached)})
