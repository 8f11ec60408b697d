"""The site: Markdown pages and the docstrings of the rooms, by Sphinx, MyST and furo. `make docs` builds it."""

import sys
from pathlib import Path

from nearest_etf import __version__

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "nearest-etf"
author = copyright = "The nearest-etf developers"
release = version = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "mathml",  # this one and the next: docs/extensions
    "site_links",
]
exclude_patterns = ["extensions", "pictures/*.py"]
nitpicky = True  # a name in a signature without a page is an error, except names of other libraries
nitpick_ignore_regex = [
    ("py:.*", r"(?!nearest_etf\.).*"),  # other libraries, and words in the types of docstrings
    ("py:.*", r"nearest_etf\..*\.(Array|Method|Formulation|Initial|Norms|Form|Averaging|Temperature|Layout|Precision)"),
]

suppress_warnings = ["ref.python"]  # a word in a docstring's type that several objects are named, such as weight

myst_enable_extensions = ["dollarmath", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings have the shapes, the code has the types
napoleon_google_docstring = False
napoleon_use_ivar = True  # an attribute is described once, in its class
default_role = "literal"  # in docstrings, code stands between single backticks

html_theme = "furo"
html_title = f"nearest-etf {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
highlight_language = "none"  # blocks without a language are commands
pygments_style, pygments_dark_style = "friendly", "github-dark"
