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
    "mathml",  # these two: docs/extensions
    "site_links",
]
exclude_patterns = ["extensions", "pictures/*.py"]
nitpicky = True  # a name in a signature that has no page is an error, but for those of other libraries
nitpick_ignore_regex = [
    ("py:.*", r"(?!nearest_etf\.).*"),  # other libraries, and words in the types of docstrings
    ("py:.*", r"nearest_etf\..*\.(Array|Method|Formulation|Initial|Norms|Form|Averaging|Temperature|Layout|Precision)"),
]

suppress_warnings = ["ref.python"]  # a word in a docstring's type that is the name of several things, as weight is

myst_enable_extensions = ["dollarmath", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes stand in the docstrings; types, in the code
napoleon_google_docstring = False
napoleon_use_ivar = True  # an attribute is described once, in its class
default_role = "literal"  # docstrings write code between single backticks

html_theme = "furo"
html_title = f"nearest-etf {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
highlight_language = "none"  # blocks without a language are commands
pygments_style, pygments_dark_style = "friendly", "github-dark"
