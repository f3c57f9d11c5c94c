"""Sphinx's settings for the pages that ``python -m training.documents.site`` lays out (``make docs``)."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project, release, author = PROJECT["name"], PROJECT["version"], PROJECT["authors"][0]["name"]
copyright = f"2026 {author}"  # noqa: A001
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
suppress_warnings = ["config.cache", "myst.header", "toc.not_included"]  # tables, to which the results link
html_theme = "furo"
html_title = project
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}

ARXIV = re.compile(r"\b(?:arXiv )?(\d{4}\.\d{5}|1\d{3}\.\d{4})\b")


def inline_math(writer: Any, node: nodes.math) -> None:
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block_math(writer: Any, node: nodes.math_block) -> None:
    """MathML that a browser draws itself; wide formulas scroll within their own box."""
    writer.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def as_it_stands(app: Any, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Docstrings' formulas in plain text become literal blocks, numbers of arXiv links."""
    written, paragraphs = [], "\n".join(lines).split("\n\n")
    for paragraph in paragraphs:
        if re.match(r"(gradient|value|z|y|s|b|Log-odds|Node)\b[^\n]*( = | ~ )", paragraph) and "``" not in paragraph:
            body = paragraph.replace("\\|", "|").replace("\n", "\n    ")
            paragraph = f".. code-block:: text\n\n    {body}"
        elif not paragraph.startswith((" ", "::", "..", ":")):
            paragraph = ARXIV.sub(r"`arXiv \1 <https://arxiv.org/abs/\1>`__", paragraph)
            parts = paragraph.split("``")  # every second one is code
            parts[::2] = [re.sub(r"(?<!\\)\|", r"\|", part) for part in parts[::2]]
            paragraph = "``".join(parts)
        written.append(paragraph)
    lines[:] = "\n\n".join(written).split("\n")


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("autodoc-process-docstring", as_it_stands, priority=300)  # before napoleon's sections
    return {"parallel_read_safe": True, "parallel_write_safe": True}
