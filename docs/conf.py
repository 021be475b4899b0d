"""The site that `make docs` builds. Warnings are errors, such as a link that leads nowhere."""

import re

from sphinx.application import Sphinx

from connectors import __version__

# The order in which people need the pages; a page that is not here fails the build.
NAVIGATION = {
    "Use it": ("choose", "run", "operate", "routing", "troubleshooting", "security", "migrating"),
    "Look it up": ("reference", "configuration", "metrics"),
    "Know more": ("understand", "l2", "native", "gpu"),
}

project = "kv-sidecar"
version = release = __version__
extensions = ["myst_parser"]
myst_heading_anchors = 4
highlight_language = "bash"
html_theme = "furo"
html_title = f"kv-sidecar {release}"
html_show_sphinx = html_copy_source = False
templates_path: list[str] = []


def setup(app: Sphinx) -> None:
    app.connect("source-read", _adapt)


def _adapt(app: Sphinx, page: str, source: list[str]) -> None:
    """Add the navigation, and offer files outside of docs/ that a page links to as downloads."""
    source[0] = re.sub(r"\]\((\.\./[^)#]+)(#[^)]*)?\)", r"](path:\1)", source[0])
    if page == "index":
        source[0] += "".join(map(_toctree, NAVIGATION))


def _toctree(caption: str) -> str:
    pages = "\n".join(NAVIGATION[caption])
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"
