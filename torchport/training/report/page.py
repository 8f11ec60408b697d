"""What the page shows, gathered for its template `page.html.jinja`: words, tables, and figures as inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

import matplotlib as mpl
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ....common.errors import UserError
from ....common.files import replacing, write_file
from ..measurement import Measurement, save_measurement, saved_measurement
from ..run.reading import Run
from .figures import curve_figures, split_caption
from .geometry import Subject, distribution_figures, gram_figure, means_figure, singular_value_figure
from .groups import Group
from .metrics import CURVES, SOLVER_CURVES
from .style import STYLE, colour
from .tables import accuracy_at, final_metrics, provenance_table, settings_table, summary
from .words import comparison, verdict

Log = Callable[[str], object]
Named = Iterable[tuple[str, Figure]]


@dataclass(frozen=True)
class Section:
    """A heading, what there is to see, and figures."""

    anchor: str
    heading: str
    text: str
    figures: list[Markup]


def write_page(
    groups: Sequence[Group],
    target: Path,
    epochs: Sequence[int],
    figures_to: Path | None = None,
    log: Log = print,
) -> None:
    """Write the page, and each figure as SVG and PNG into `figures_to` if that is given; see `write.write_report`."""
    subjects, undrawn = measured_subjects(groups, log)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((resources.files(__package__) / "page.html.jinja").read_text(encoding="utf-8"))
    with mpl.rc_context(STYLE):
        sections = page_sections(groups, subjects, figures_to)
    first = groups[0].runs[0]
    page = template.render(
        title=f"Neural collapse on {first.data_name or first.settings.get('data')}",
        about=(
            f"{sum(len(group.runs) for group in groups)} runs of {', '.join(group.label for group in groups)}; "
            f"backbone {first.settings.get('backbone')}, up to {max(int(group.epochs[-1]) for group in groups)} epochs."
        ),
        comparison=comparison(groups),
        verdicts=[
            {"colour": colour(i), "label": group.label, "text": verdict(group)} for i, group in enumerate(groups)
        ],
        summary=summary(groups),
        accuracy=accuracy_at(groups, epochs),
        sections=sections,
        undrawn=undrawn,
        provenance=provenance_table(groups),
        final=final_metrics(groups),
        settings=settings_table(groups),
    )
    write_file(target, page)


def measured_subjects(groups: Sequence[Group], log: Log) -> tuple[list[Subject], list[dict[str, str]]]:
    """The typical run of each group that can be measured; label and reason of those that cannot."""
    subjects, undrawn = [], []
    for i, group in enumerate(groups):
        run = group.typical
        try:
            measurement = geometry(run, log)
        except (UserError, OSError, ModuleNotFoundError) as error:
            undrawn.append({"label": group.label, "reason": str(error).rstrip(".")})
            continue
        names = run.class_names or tuple(map(str, range(len(measurement.arrays["weight"]))))
        subjects.append(Subject(group.label, colour(i), names, measurement))
    return subjects, undrawn


def geometry(run: Run, log: Log) -> Measurement:
    """The last checkpoint of a run as it was measured, or measured now; the run folder keeps it where it can."""
    measurement = saved_measurement(run.path, "last", log)
    if measurement is None:
        from ..measure import measure  # with torch, which a report of measured runs does without

        measurement = measure(run.path, "last")
        try:
            save_measurement(run.path, "last", measurement)
        except OSError as error:
            log(f"{run.path}: the measurement is not kept ({error.strerror})")
    return measurement


def page_sections(groups: Sequence[Group], subjects: Sequence[Subject], figures_to: Path | None) -> list[Section]:
    """The sections that have figures, drawn."""
    lines = split_caption(groups)

    def each(name: str, draw: Callable[[Subject], Figure | None]) -> Named:
        drawn = ((f"{name}-{i}", draw(subject)) for i, subject in enumerate(subjects))
        return ((name, figure) for name, figure in drawn if figure is not None)

    def solver() -> Named:
        yield from curve_figures(groups, SOLVER_CURVES)
        spectrum = singular_value_figure(subjects)
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
            "geometry",
            "Geometry at the end",
            f"Of the seed that ends nearest to the median accuracy. Margins: {lines}. Cosines: solid between class "
            "means, dashed between rows of W. Dotted vertical line: a simplex ETF.",
            distribution_figures(subjects),
        ),
        (
            "gram",
            "Gram matrices",
            "Cosines between classes; for a simplex ETF 1 on the diagonal and −1/(K−1) elsewhere.",
            each("gram", gram_figure),
        ),
        (
            "means",
            "Class means",
            "Seen along the nearest simplex ETF, turned so that its vertices show as a regular polygon or tetrahedron "
            "(dotted): what is off the outline is off the ETF.",
            each("means", means_figure),
        ),
        (
            "solver",
            "Solver health",
            "Certificate and conditioning of the problem as an implicit or tight-frame head solved it, epoch by epoch; "
            "and the singular values of A in its last checkpoint.",
            solver(),
        ),
    ]
    sections = [
        Section(anchor, heading, text, [inline_svg(name, figure, figures_to) for name, figure in figures])
        for anchor, heading, text, figures in planned
    ]
    return [section for section in sections if section.figures]


def inline_svg(name: str, figure: Figure, figures_to: Path | None) -> Markup:
    """The figure as an SVG element whose ids no other figure shares."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    if figures_to is not None:
        figures_to.mkdir(parents=True, exist_ok=True)
        write_file(figures_to / f"{name}.svg", svg)
        with replacing(figures_to / f"{name}.png") as file:
            figure.savefig(file, format="png", dpi=200)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes]
    label = escape("; ".join(title for title in titles if title), quote=True)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}" ', 1))
