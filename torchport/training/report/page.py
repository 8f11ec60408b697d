"""The report as one HTML page: no script, no request, figures inline as SVG; for desktop, phone and paper."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from ..measure import Measurement
from . import figures as draw
from .groups import Group, geometry
from .tables import Table, accuracy_at, comparison, median_with_range, summary, verdict

CSS = """
:root { --ink: #1f2933; --soft: #52606d; --line: #e4e7eb; --paper: #fff; --wash: #f5f7fa; }
* { box-sizing: border-box; }
html { color-scheme: light; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--wash); color: var(--ink); font: 16px/1.55 var(--font); }
:root { --font: system-ui, -apple-system, "Segoe UI", sans-serif; }
header, main, footer { max-width: 82rem; margin: 0 auto; padding: 1rem clamp(.8rem, 3vw, 2rem); }
header { padding-top: 2rem; }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .3rem; }
p { max-width: 46rem; margin: .4rem 0; }
.soft, footer { color: var(--soft); font-size: .9rem; }
nav { margin-top: .8rem; }
nav a { margin-right: 1rem; color: #0b5394; }
.verdicts, .figures { display: grid; gap: .8rem; align-items: start; margin: .8rem 0; }
.verdicts { grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); align-items: stretch; }
.figures { grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.verdict, figure, .scroll { background: var(--paper); border: 1px solid var(--line); border-radius: .4rem; }
.verdict { border-left: .35rem solid; padding: .7rem 1rem; }
.verdict h3 { margin: 0 0 .2rem; font-size: 1rem; }
.verdict p { margin: 0; font-size: .95rem; }
figure { margin: 0; padding: .6rem; }
figure svg { display: block; width: 100%; height: auto; }
figure svg text { font-family: var(--font) !important; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; width: 100%; }
th, td { text-align: left; padding: .45rem .8rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.long { white-space: normal; overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
th { font-weight: 600; color: var(--soft); }
summary { cursor: pointer; margin: .6rem 0; }
@media print {
  body { background: #fff; font-size: 10pt; }
  nav { display: none; }
  .figures { grid-template-columns: 1fr 1fr; }
  .verdicts { grid-template-columns: repeat(3, 1fr); }
  .verdict p, table { font-size: 8pt; }
  figure, .verdict, tr { break-inside: avoid; }
  h2, h2 + p { break-after: avoid; }
  header, main, footer { max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  th, td { white-space: normal; padding: .2rem .4rem; }
}
"""


def write_page(groups: Sequence[Group], target: Path, epochs: Sequence[int], figures_to: Path | None = None) -> None:
    """Write the page, and each figure as SVG and PNG into `figures_to` if that is given."""
    measured = [geometry(group.typical) for group in groups]
    with mpl.rc_context(draw.STYLE):
        text = _page(groups, measured, epochs, figures_to)
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(target)


def _page(
    groups: Sequence[Group], measured: Sequence[Measurement | str], epochs: Sequence[int], figures_to: Path | None
) -> str:
    first = groups[0].runs[0]
    title = f"Neural collapse on {first.config.get('data', {}).get('name', first.settings.get('data'))}"
    about = (
        f"{sum(len(group.runs) for group in groups)} runs of {', '.join(group.label for group in groups)}; "
        f"backbone {first.settings.get('backbone')}, up to {max(int(group.epochs[-1]) for group in groups)} epochs."
    )
    verdicts = "".join(
        f'<div class="verdict" style="border-left-color:{draw.colour(i)}">'
        f"<h3>{escape(group.label)}</h3><p>{escape(verdict(group))}</p></div>"
        for i, group in enumerate(groups)
    )
    left_out = "".join(
        f'<p class="soft">{escape(group.label)}: geometry not drawn, {escape(reason)}.</p>'
        for group, reason in zip(groups, measured, strict=True)
        if isinstance(reason, str)
    )

    def section(anchor: str, heading: str, text: str, figures: Iterable[tuple[str, Figure]]) -> str:
        drawn = "".join(_inline(name, figure, figures_to) for name, figure in figures)
        opening = f'<h2 id="{anchor}">{heading}</h2><p class="soft">{text}</p>'
        return f'{opening}<div class="figures">{drawn}</div>' if drawn else ""

    parts = [
        _head(title, about),
        f'<main><h2 id="verdict">Verdict</h2><p>{escape(comparison(groups))}</p>',
        f'<div class="verdicts">{verdicts}</div>',
        _table(summary(groups)),
        _table(accuracy_at(groups, epochs)),
        '<p class="soft">Medians over seeds, with the range; NC1–NC3 on the training data at the end.</p>',
        section(
            "curves",
            "Over the epochs",
            "Lines are medians over seeds and bands their range; solid on training data, dashed on test data.",
            draw.curve_figures(groups, draw.CURVES),
        ),
        section(
            "geometry",
            "Geometry at the end",
            "Of the seed that ends nearest to the median test accuracy. Margins: solid on training data, dashed on "
            "test data. Cosines: solid between class means, dashed between rows of W. Dotted: a simplex ETF.",
            draw.distribution_figures(groups, measured),
        ),
        left_out,
        section(
            "gram",
            "Gram matrices",
            "Cosines between classes; for a simplex ETF 1 on the diagonal and −1/(K−1) elsewhere.",
            _each(draw.gram_figure, "gram", groups, measured),
        ),
        section(
            "means",
            "Class means",
            "Seen along the nearest simplex ETF, turned so that its vertices show as a regular polygon or tetrahedron "
            "(dotted): what is off the outline is off the ETF.",
            _each(draw.means_figure, "means", groups, measured),
        ),
        section(
            "solver",
            "Solver health",
            "Certificate and conditioning of the nearest-ETF problem as the implicit head solved it, epoch by epoch; "
            "and the singular values of A in its last checkpoint.",
            draw.solver_figures(groups, measured),
        ),
        _details(groups),
        "</main><footer>Written by etf-report. All is in this file: it opens offline and prints.</footer>",
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _each(
    figure_of: Callable[[str, str, Measurement, Sequence[str]], Figure | None],
    name: str,
    groups: Sequence[Group],
    measured: Sequence[Measurement | str],
) -> Iterator[tuple[str, Figure]]:
    """A figure per group that could be measured."""
    for i, (group, m) in enumerate(zip(groups, measured, strict=True)):
        if not isinstance(m, str):
            numbers = range(len(m.arrays["weight"]))
            class_names = group.runs[0].config.get("data", {}).get("class_names") or numbers
            figure = figure_of(group.label, draw.colour(i), m, [str(class_name) for class_name in class_names])
            if figure is not None:
                yield f"{name}-{i}", figure


def _inline(name: str, figure: Figure, figures_to: Path | None) -> str:
    """The figure as an SVG element whose ids no other figure shares."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    if figures_to is not None:
        figures_to.mkdir(parents=True, exist_ok=True)
        (figures_to / f"{name}.svg").write_text(buffer.getvalue(), encoding="utf-8")
        figure.savefig(figures_to / f"{name}.png", dpi=200)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes]
    label = escape("; ".join(title for title in titles if title), quote=True)
    return f'<figure>{svg.replace("<svg", f"""<svg role="img" aria-label="{label}" """, 1)}</figure>'


def _head(title: str, about: str) -> str:
    anchors = ("verdict", "curves", "geometry", "solver", "details")
    links = "".join(f'<a href="#{anchor}">{anchor.capitalize()}</a>' for anchor in anchors)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p class="soft">{escape(about)}</p><nav>{links}</nav></header>'
    )


def _details(groups: Sequence[Group]) -> str:
    """All figures at the end, the settings, and where each run was made."""
    metrics = dict.fromkeys(metric for group in groups for metric in group.metrics)
    final = [["metric at the end", *(group.label for group in groups)]]
    final += [[metric, *(median_with_range(group.final(metric)) for group in groups)] for metric in metrics]
    settings = [["setting", *(group.label for group in groups)]]
    for name in groups[0].runs[0].settings:
        values = [
            "seeds " + ", ".join(str(run.seed) for run in g.runs)
            if name == "seed"
            else str(g.runs[0].settings.get(name))
            for g in groups
        ]
        settings.append([name, *values])
    runs = [["run", "device", "threads", "platform", "python", "torch", "commit"]]
    for run in (run for group in groups for run in group.runs):
        made = run.config.get("provenance", {})
        versions = made.get("versions", {})
        cells = (
            run.path,
            made.get("device"),
            made.get("threads"),
            made.get("platform"),
            made.get("python"),
            versions.get("torch"),
            made.get("commit"),
        )
        runs.append(["–" if cell is None else str(cell) for cell in cells])
    return (
        '<h2 id="details">Runs and configuration</h2>'
        f"<details open><summary>Runs and hardware</summary>{_table(runs)}</details>"
        f"<details><summary>Every metric at the end</summary>{_table(final)}</details>"
        f"<details><summary>Settings</summary>{_table(settings)}</details>"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table[0])
    cells = [[f"<td{' class=long' if len(cell) > 40 else ''}>{escape(cell)}</td>" for cell in row] for row in table[1:]]
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
