"""The picture of the rooms, drawn from the imports: python -m docs.pictures.rooms

An arrow goes from a room to one that it imports, at any level of a file; arrows implied by others are left out.
tests/test_structure.py reads the imports and compares the picture with this script.
"""

from __future__ import annotations

from pathlib import Path

from tests.test_structure import GRAPH, room

PICTURE = Path(__file__).parent / "rooms.svg"
WIDTH, HEIGHT = 212, 62
PLACES = {  # room: left, top, title, two lines
    "export": (14, 14, "export", "one checked ONNX file,", "predicted without torch"),
    "torchport.training": (254, 14, "torchport.training", "etf-train, runs, data,", "backbones, reports"),
    "torchport.integrations": (494, 14, "torchport.integrations", "Lightning, Transformers,", "torchmetrics, hub"),
    "torchport": (254, 132, "torchport", "the layer in PyTorch:", "heads, gradient, metrics"),
    "root": (494, 132, "nearest_etf", "the package itself:", "the layer's names, lazily"),
    "reference": (254, 250, "reference", "the ground truth", "in NumPy and SciPy"),
    "common": (254, 368, "common", "errors, commands, files,", "photos, the machine"),
}


def arrows() -> set[tuple[str, str]]:
    """Pairs (room, room that it imports), except imports of the version from the root."""
    found = {(room(module), room(target)) for module, targets in GRAPH.items() for target in targets}
    return {(a, b) for a, b in found if a != b and b != "root"}


def without_implied(edges: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Arrows that are not implied by a chain of others."""

    def reached(start: str, leaving_out: tuple[str, str]) -> set[str]:
        seen: set[str] = set()
        ahead = [b for a, b in edges if a == start and (a, b) != leaving_out]
        while ahead:
            place = ahead.pop()
            if place not in seen:
                seen.add(place)
                ahead += [b for a, b in edges if a == place]
        return seen

    return sorted((a, b) for a, b in edges if b not in reached(a, (a, b)))


def line(a: str, b: str) -> str:
    """A straight arrow between the facing sides of two boxes."""
    start: tuple[float, float]
    end: tuple[float, float]
    (x1, y1), (x2, y2) = PLACES[a][:2], PLACES[b][:2]
    if y1 == y2:
        right = x1 < x2
        start, end = (x1 + WIDTH * right, y1 + HEIGHT / 2), (x2 + WIDTH * (not right), y2 + HEIGHT / 2)
    else:
        down, shift = y1 < y2, (x1 - x2) / 4
        start = (x1 + WIDTH / 2 - shift, y1 + HEIGHT * down)
        end = (x2 + WIDTH / 2 + shift, y2 + HEIGHT * (not down))
    (ax, ay), (bx, by) = start, end
    length = ((bx - ax) ** 2 + (by - ay) ** 2) ** 0.5
    bx, by = bx - 4 * (bx - ax) / length, by - 4 * (by - ay) / length
    return f'<line x1="{ax:.0f}" y1="{ay:.0f}" x2="{bx:.1f}" y2="{by:.1f}" marker-end="url(#tip)"/>'


def picture() -> str:
    """The SVG; inside a page it takes the colours of the page."""
    boxes = [
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="7"/>'
        f'<text class="name" x="{x + WIDTH / 2:.0f}" y="{y + 21}">{title}</text>'
        f'<text x="{x + WIDTH / 2:.0f}" y="{y + 38}">{first}</text>'
        f'<text x="{x + WIDTH / 2:.0f}" y="{y + 53}">{second}</text>'
        for x, y, title, first, second in PLACES.values()
    ]
    lines = [line(a, b) for a, b in without_implied(arrows())]
    style = (
        ".rooms rect{fill:var(--color-background-secondary,#f6f7f9);stroke:var(--color-foreground-border,#8a919e)}"
        ".rooms text{fill:var(--color-foreground-secondary,#4b5361);font:12.5px system-ui,sans-serif}"
        ".rooms text{text-anchor:middle}"
        ".rooms .name{fill:var(--color-foreground-primary,#111);font-size:14.5px;font-weight:600}"
        ".rooms line{stroke:var(--color-foreground-muted,#6b7280);stroke-width:1.5}"
        ".rooms marker path{fill:var(--color-foreground-muted,#6b7280)}"
    )
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" class="rooms" viewBox="0 0 720 444" role="img" '
        'aria-label="The rooms of the house and which imports which">'
    )
    parts = [head, f"<style>{style}</style>", f'<defs>{tip}<path d="M0 0L8 4L0 8z"/></marker></defs>', *lines, *boxes]
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    print(PICTURE, *(f"{a} -> {b}" for a, b in without_implied(arrows())), sep="\n")
