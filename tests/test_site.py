"""The pages of ``make docs``, which builds them strictly; here what they are made of and what finds a broken link."""

import re

import pytest

import estimators
from training.documents import site

PAGE = """<html><head><link rel="stylesheet" href="{sheet}"></head><body id="top">
<a href="{link}">words</a><img src="{picture}"></body></html>"""
RIGHT = {"sheet": "own.css", "link": "folder/other.html#top", "picture": "data:image/png;base64,AA=="}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({}, None),
        ({"link": "https://example.org/x"}, None),
        ({"link": "folder/none.html"}, "index.html: folder/none.html leads nowhere"),
        ({"link": "folder"}, "index.html: folder leads nowhere"),
        ({"link": "#bottom"}, "index.html: #bottom leads to no such place of the page"),
        (
            {"link": "folder/other.html#bottom"},
            "index.html: folder/other.html#bottom leads to no such place of the page",
        ),
        ({"picture": "folder/none.png"}, "index.html: folder/none.png leads nowhere"),
        ({"picture": "https://example.org/x.png"}, "index.html: loads https://example.org/x.png from elsewhere"),
        ({"sheet": "//example.org/x.css"}, "index.html: loads //example.org/x.css from elsewhere"),
        (
            {"css": "@import 'https://example.org/font.css';"},
            "own.css: loads https://example.org/font.css from elsewhere",
        ),
    ],
)
def test_what_is_broken_is_named(tmp_path, wrong, sentence):
    (tmp_path / "folder").mkdir()
    (tmp_path / "own.css").write_text(wrong.get("css", "p { background: url(own.css) }"))
    (tmp_path / "index.html").write_text(PAGE.format(**(RIGHT | wrong)))
    (tmp_path / "folder" / "other.html").write_text(PAGE.format(sheet="../own.css", link="../index.html", picture="#"))
    assert list(site.faults(tmp_path)) == ([] if sentence is None else [sentence])


def test_links_follow_their_pages(tmp_path):
    (tmp_path / "results").mkdir()
    written = "[a](docs/sweeps.md#x) ![b](docs/report.png) [c](CONTRIBUTING.md) [d](conf/config.yaml) [e](docs/results)"
    moved = site.moved_links(written, site.ROOT / "README.md", tmp_path / "index.md", tmp_path)
    assert moved == "[a](sweeps.md#x) ![b](report.png) [c](contributing.md) d [e](results/README.md)"
    page = tmp_path / "results" / "README.md"
    moved = site.moved_links(
        "[a](../tasks.md) [b](../../README.md) [c](#x)", site.ROOT / "docs/results/README.md", page, tmp_path
    )
    assert moved == "[a](../tasks.md) [b](../index.md) [c](#x)"


def test_every_method_has_a_formula_and_a_page():
    convert = pytest.importorskip("latex2mathml.converter").convert
    formulas = site.formulas_of_methods()
    assert list(formulas) == [method.__name__ for method in estimators.METHODS]
    for name, formula in formulas.items():
        mathml = convert(formula, display="block")
        assert mathml.startswith("<math") and "\\" not in mathml, name
    pages = dict(site.method_pages({"draws": 1, "false_alarm": 0.1, "estimators": []}))
    assert pages.keys() == {"index", *formulas}
    assert all(
        f"({name}.md)" in pages["index"] and f"autoclass:: estimators.{name}" in pages[name] for name in formulas
    )


def test_every_document_is_in_the_contents():
    docs = site.ROOT / "docs"
    contents = (docs / "contents.md").read_text()
    pages = {path.stem for path in docs.glob("*.md")} - {"contents"}
    assert {page for page in pages if not re.search(rf"(?m)^(.*<)?{page}>?$", contents)} == set()
