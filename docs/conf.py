"""Settings of the documentation."""

from flowmaps import __version__

project = "flowmaps"
author = "The flowmaps authors"
copyright = f"2026, {author}"  # noqa: A001
version = release = __version__
extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"flowmaps {__version__}"
