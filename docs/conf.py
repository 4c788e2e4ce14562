"""How the documentation is built."""

from __future__ import annotations

from remoter_kernel import __version__

project = "remoter-kernel"
author = "the remoter-kernel authors"
copyright = f"2026, {author}"
version = release = __version__

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = f"remoter-kernel {__version__}"
html_logo = "../kernelspec/logo-svg.svg"
html_show_sourcelink = False
