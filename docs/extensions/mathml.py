"""Formulas as MathML, translated by docutils: pages need no script and no font."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

PAIRS = (r"\\\|", r"\\\|"), (r"\\langle", r"\\rangle")  # delimiters of a norm and of an inner product
ACCENTED = re.compile(r"(\\(?:bar|hat|tilde)\s*(?:\\?[A-Za-z]+|\{[^{}]*\}))(?=\s*[_^])")
log = logging.getLogger(__name__)


def mathml(node: nodes.Element, display: bool) -> str:
    """The MathML of a node; a formula that docutils cannot translate causes a warning and remains LaTeX."""
    source = ACCENTED.sub(r"{\1{}}", node.astext())  # else docutils sets the index of such a letter below it
    for opening, closing in PAIRS:  # with \\left and \\right delimiters are as high as their content
        bare = r"(?<!left)(?<!right)"
        source = re.sub(rf"{bare}({opening})(.+?){bare}({closing})", r"\\left\1\2\\right\3", source)
    try:
        return tex2mathml(source, as_block=display)
    except MathError as error:
        log.warning("formula %s: %s", node.astext(), error, location=node)
        return f"<code>{nodes.Text(node.astext())}</code>"


def visit_math(self: Any, node: nodes.math) -> None:
    self.body.append(mathml(node, display=False))
    raise nodes.SkipNode


def visit_display(self: Any, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", "", CLASS="formula") + mathml(node, display=True) + "</div>\n")
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_display, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
