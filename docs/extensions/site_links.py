"""Links of the site: pages that lie in the repository's root, folders that it does not have, and nothing foreign.

SECURITY.md, CHANGELOG.md and CONTRIBUTING.md are read where they lie; a page of the same name stands for each. A link
to a file of the repository is a download; a link to a folder, or to a page elsewhere in it, becomes plain text. When
all is built, every page is searched for scripts, styles, fonts and pictures from elsewhere: one is a warning, and
`make docs` makes warnings errors.
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
    """The Markdown of a page, with links that the site can follow."""
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
    """Warn of whatever a built page would load from another place."""
    if error is None and app.builder.format == "html":
        for path in sorted(Path(app.outdir).rglob("*")):
            if path.suffix in (".html", ".css"):
                for found in FOREIGN.findall(path.read_text(encoding="utf-8")):
                    log.warning("%s loads something from elsewhere: %s", path.relative_to(app.outdir), found)


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", read_page)
    app.connect("build-finished", search_for_foreign)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
