"""Links of the site: to pages in the repository's root, to files and folders outside docs/, and to other sites.

* Pages of the same names include SECURITY.md, CHANGELOG.md and CONTRIBUTING.md from the repository's root.
* A link to a file of the repository becomes a download.
* A link to a folder, or to a Markdown file outside docs/, becomes plain text.
* A script, style, font or picture that a built page would load from another site causes a warning, which `make docs`
  turns into an error.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sphinx.util import logging

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent
OF_THE_ROOT = {"security": "SECURITY.md", "changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|<)([^)#\s]+)(#[^)\s]*)?\)")
FOREIGN = re.compile(
    r"""<(?:script|img|iframe|source|video)\b[^>]*?\bsrc=["'](?:https?:)?//"""
    r"""|<link\b(?![^>]*rel=["'](?:canonical|search)["'])[^>]*?\bhref=["'](?:https?:)?//"""
    r"""|@import\s+(?:url\()?["']?(?:https?:)?//"""
    r"""|url\(["']?(?:https?:)?//"""
)
log = logging.getLogger(__name__)


def read_page(app: Any, name: str, source: list[str]) -> None:
    """Replace the source of a page by its Markdown with links that exist on the site."""
    path = ROOT / OF_THE_ROOT[name] if name in OF_THE_ROOT else Path(app.env.doc2path(name))
    if path.suffix != ".md":
        return
    page = DOCS / name

    def followed(match: re.Match[str]) -> str:
        text, target, anchor = match.group(1), match.group(2), match.group(3) or ""
        found = (path.parent / target).resolve()
        for known, file in OF_THE_ROOT.items():
            if found == ROOT / file:
                found = DOCS / f"{known}.md"
        if found.is_dir() or (found.suffix == ".md" and DOCS not in found.parents):
            return text
        return f"[{text}]({os.path.relpath(found, page.parent)}{anchor})"

    source[0] = LINK.sub(followed, path.read_text(encoding="utf-8"))


def search_for_foreign(app: Any, error: Exception | None) -> None:
    """Warn of everything that a built page would load from another site."""
    if error is None and app.builder.format == "html":
        for path in sorted(Path(app.outdir).rglob("*")):
            if path.suffix in (".html", ".css"):
                for found in FOREIGN.findall(path.read_text(encoding="utf-8")):
                    log.warning("%s loads something from another site: %s", path.relative_to(app.outdir), found)


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", read_page)
    app.connect("build-finished", search_for_foreign)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
