# SPDX-License-Identifier: Apache-2.0
"""Sphinx's configuration; make_site.py copies it beside the pages."""

project = "grouped-ffi"
author = "the grouped-ffi authors"
copyright = author
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = "grouped-ffi"
html_copy_source = False
html_show_sphinx = False
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath", "strikethrough"]
pygments_style = "friendly"
