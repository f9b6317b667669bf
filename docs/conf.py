"""Sphinx configuration; the pages of the losses are written from the registry before each build."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import loss_table  # noqa: E402  they stand beside this file
import plots  # noqa: E402

import noisyloss  # noqa: E402

project = "noisyloss"
author = "The noisyloss developers"
copyright = author
version = release = noisyloss.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    # Types in signatures: those of projects that have no pages here, and private ones.
    (r"py:.*", r"(np|npt|numpy|collections|typing|os)\..*|Tensor|Sequence|Mapping|Dataset|.*\b(Unpack|\w*Options)\b.*"),
    (r"py:.*", r"Reduction|LogitBias|.*\bClassFunction|FloatArray|.*\bRecommendation|.*\bLabels"),
]

autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Shape", "Bounds", "Reference"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"noisyloss {release}"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def link_to_torch(app, env, node, contnode):
    """Link the names of torch to its documentation, without fetching its inventory."""
    from docutils import nodes  # here, so that pytest, which has no docutils, can import this file

    name = node.get("reftarget", "")
    if not name.startswith("torch."):
        return None
    return nodes.reference("", "", contnode, refuri=f"https://docs.pytorch.org/docs/stable/generated/{name}.html")


def setup(app):
    app.connect("builder-inited", lambda app: loss_table.write(DOCS / "losses"))
    app.connect("builder-inited", lambda app: plots.write(DOCS / "plots"))
    app.connect("missing-reference", link_to_torch)
