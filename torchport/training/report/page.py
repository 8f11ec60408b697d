"""The content of the page for its template `page.html.jinja`: sentences, tables, and figures as inline SVG."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ....common.errors import UserError
from ....common.files import replacing, write_file
from ....common.text import listed, shown
from ..data.split import DataError
from ..measurement import SPLIT_NAMES, Measurement, save_measurement, saved_measurement
from ..run.reading import Run
from .classes import Judged, confusion_figure, detail_tables
from .data_sets import DataSet, not_compared
from .figures import curve_figures, split_caption
from .geometry import Subject, distribution_figures, gram_figure, means_figure, singular_value_figure
from .groups import Group
from .metrics import CURVES, SOLVER_CURVES
from .style import MOST_TOLD_APART, STYLE, WIDTH, looks, save
from .tables import (
    Table,
    accuracy_at,
    default_epochs,
    differing_table,
    final_metrics,
    provenance_table,
    settings_table,
    summary,
)
from .words import comparison, verdict

NAMED = 6  # groups that are named at the head of the page

Log = Callable[[str], object]
Named = Iterable[tuple[str, Figure]]


@dataclass(frozen=True)
class Drawn:
    """A figure as inline SVG, and whether it takes the whole width of the page."""

    svg: Markup
    wide: bool


@dataclass(frozen=True)
class Section:
    """A heading, an explanation, figures, and tables with their captions."""

    anchor: str
    heading: str
    text: str
    figures: list[Drawn]
    tables: list[tuple[str, Table]]


@dataclass(frozen=True)
class Subjects:
    """Geometry and results by class of the typical runs, and notes on what is missing."""

    geometry: list[Subject]
    classes: list[Judged]
    missing: list[str]


def write_page(
    sets: Sequence[DataSet],
    target: Path,
    epochs: Sequence[int],
    figures_to: Path | None = None,
    log: Log = print,
) -> None:
    """Write the page, and each figure as SVG and PNG into `figures_to` if that is given; see `write.write_report`."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((resources.files(__package__) / "page.html.jinja").read_text(encoding="utf-8"))
    several = len(sets) > 1
    parts = []
    for i, found in enumerate(sets, start=1):
        with mpl.rc_context(STYLE):
            parts.append(page_part(found, epochs, f"data{i}-" if several else "", figures_to, log))
    links = [(f"{part['prefix']}data", found.heading) for part, found in zip(parts, sets, strict=True)]
    if not several:
        links = [("verdict", "Verdict"), *((s.anchor, s.anchor.capitalize()) for s in parts[0]["sections"])]
    groups = [group for found in sets for group in found.groups]
    page = template.render(
        title=f"Neural collapse on {listed(list(dict.fromkeys(found.name for found in sets)))}",
        about=about(groups),
        links=[{"anchor": anchor, "text": text} for anchor, text in (*links, ("details", "Details"))],
        not_compared=not_compared(sets),
        parts=parts,
        provenance=provenance_table(groups),
    )
    write_file(target, page)


def about(groups: Sequence[Group]) -> str:
    """One sentence: runs, groups, backbone, epochs."""
    runs = [run for group in groups for run in group.runs]
    count = f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}"
    labels = list(dict.fromkeys(group.label for group in groups))
    which = ", ".join(labels) if len(labels) <= NAMED else f"{len(groups)} settings"
    backbones = list(dict.fromkeys(shown(Path(str(run.settings.get("backbone"))).name) for run in runs))
    backbone = f"backbone {backbones[0]}" if len(backbones) == 1 else f"{len(backbones)} backbones"
    epochs = max(int(group.epochs[-1]) for group in groups)
    return f"{count} of {which}; {backbone}, up to {epochs} {'epoch' if epochs == 1 else 'epochs'}."


def page_part(found: DataSet, epochs: Sequence[int], prefix: str, figures_to: Path | None, log: Log) -> dict[str, Any]:
    """The variables of the template for one data set; without `prefix` it is the only one and has no heading."""
    groups = found.groups
    subjects = measured_subjects(groups, log)
    cards = zip(groups, looks(groups), strict=True)
    return {
        "prefix": prefix,
        "heading": found.heading if prefix else "",
        "comparison": comparison(groups),
        "verdicts": [{"colour": look.colour, "label": group.label, "text": verdict(group)} for group, look in cards],
        "summary": summary(groups),
        "accuracy": accuracy_at(groups, epochs or default_epochs(groups)),
        "differing": differing_table(groups),
        "sections": page_sections(groups, subjects, prefix, figures_to),
        "missing": subjects.missing,
        "final": final_metrics(groups),
        "settings": settings_table(groups),
    }


def measured_subjects(groups: Sequence[Group], log: Log) -> Subjects:
    """The typical run of each group: geometry of its last checkpoint, result by class."""
    found = Subjects([], [], [])
    for group, look in zip(groups, looks(groups), strict=True):
        run, label = group.typical, group.label
        result = last = None
        try:
            last = measured(run, "last", log)
            names = run.class_names or tuple(map(str, range(len(last.arrays["weight"]))))
            found.geometry.append(Subject(label, look, names, last))
            result = last if run.result == "last" else measured(run, run.result, log)
        except (UserError, OSError, ModuleNotFoundError) as error:
            what = "per-class accuracy" if last else "geometry"
            found.missing.append(f"{label}: {what} not drawn, {str(error).rstrip('.')}{_remedy(run, error)}.")
        if result is None:
            continue
        confusion = result.confusion(result.held_out)
        if confusion is None:
            command = f"etf-measure {shlex.quote(shown(run.path))}"
            found.missing.append(f"{label}: an earlier version did not count per-class accuracy; run {command}.")
        else:
            found.classes.append(Judged(label, run.result, result.held_out, names, confusion))
    return found


def measured(run: Run, checkpoint: str, log: Log) -> Measurement:
    """The measurement of a checkpoint: the stored one, or a new one, which is stored if possible."""
    measurement = saved_measurement(run.path, checkpoint, log)
    if measurement is None:
        from ..measure import measure  # imports torch, which a report of measured runs does not need

        measurement = measure(run.path, checkpoint)
        try:
            save_measurement(run.path, checkpoint, measurement)
        except OSError as error:
            log(f"{run.path}: the measurement cannot be stored ({error.strerror})")
    return measurement


def page_sections(groups: Sequence[Group], subjects: Subjects, prefix: str, figures_to: Path | None) -> list[Section]:
    """The sections that have figures or tables, drawn."""
    lines = split_caption(groups)
    left_out = f" Only the first {MOST_TOLD_APART} of {len(groups)} groups." if len(groups) > MOST_TOLD_APART else ""

    def each(name: str, draw: Callable[[Any], Figure | None], of: Sequence[Any]) -> Named:
        drawn = ((f"{name}-{i}", draw(subject)) for i, subject in enumerate(of[:MOST_TOLD_APART]))
        return ((name, figure) for name, figure in drawn if figure is not None)

    def solver() -> Named:
        yield from curve_figures(groups, SOLVER_CURVES)
        spectrum = singular_value_figure(subjects.geometry)
        if spectrum is not None:
            yield "singular-values", spectrum

    planned: list[tuple[str, str, str, Named]] = [
        (
            "curves",
            "Over the epochs",
            f"Lines are medians over seeds and bands their range; {lines}.",
            curve_figures(groups, CURVES),
        ),
        (
            "classes",
            "Class by class",
            classes_caption(subjects.classes) + left_out,
            each("classes", confusion_figure, subjects.classes),
        ),
        (
            "geometry",
            "Geometry at the end",
            f"The seed whose final accuracy is nearest to the median. Margins: {lines}. Cosines: solid between class "
            "means, dashed between rows of W. Dotted vertical line: a simplex ETF.",
            distribution_figures(subjects.geometry),
        ),
        (
            "gram",
            "Gram matrices",
            "Cosines between classes; for a simplex ETF 1 on the diagonal and −1/(K−1) elsewhere." + left_out,
            each("gram", gram_figure, subjects.geometry),
        ),
        (
            "means",
            "Class means",
            "Projected so that the vertices of the nearest simplex ETF form a regular polygon or tetrahedron (dotted): "
            f"deviations from the outline are deviations from the ETF.{left_out}",
            each("means", means_figure, subjects.geometry),
        ),
        (
            "solver",
            "Solver health",
            "Certificate and conditioning of the problem that an implicit or tight-frame head solves, by epoch; and "
            "the singular values of A in its last checkpoint.",
            solver(),
        ),
    ]
    sections = [
        Section(
            anchor,
            heading,
            text,
            [
                Drawn(inline_svg(prefix + name, figure, figures_to), figure.get_figwidth() > WIDTH)
                for name, figure in figures
            ],
            detail_tables(subjects.classes) if anchor == "classes" else [],
        )
        for anchor, heading, text, figures in planned
    ]
    return [section for section in sections if section.figures or section.tables]


def _remedy(run: Run, error: Exception) -> str:
    """The command that measures a run whose data have moved; etf-report has no --data."""
    return f" (etf-measure {shlex.quote(shown(run.path))} --data FOLDER)" if isinstance(error, DataError) else ""


def classes_caption(results: Sequence[Judged]) -> str:
    """The caption of the figures by class."""
    splits = dict.fromkeys(SPLIT_NAMES[judged.split] for judged in results)
    drawn = bool(results) and results[0].drawn
    shades = "; shade: share of the true class; red: mistakes" if drawn else ""
    return (
        f"On {' or '.join(splits)} images, the result (the checkpoint that training announced) of the seed whose final "
        f"accuracy is nearest to the median{shades}."
    )


def inline_svg(name: str, figure: Figure, figures_to: Path | None) -> Markup:
    """The figure as an SVG element with unique ids."""
    buffer = io.StringIO()
    save(figure, buffer, "svg", metadata={"Date": None, "Creator": None})
    titles = [figure.get_suptitle(), *(axes.get_title(loc="left") or axes.get_title() for axes in figure.axes)]
    svg = buffer.getvalue()
    if figures_to is not None:
        figures_to.mkdir(parents=True, exist_ok=True)
        write_file(figures_to / f"{name}.svg", svg)
        with replacing(figures_to / f"{name}.png") as file:
            save(figure, file, "png", dpi=200)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    label = escape("; ".join(title for title in titles if title), quote=True)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}" ', 1))
