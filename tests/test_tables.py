"""One table in every format, with names that are code in that format; one curve for every figure and the page."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import latex
import numpy as np
import pandas as pd
import pytest

from analysis import output
from analysis.statistics.curves import Metric, average
from analysis.statistics.intervals import interval
from analysis.tables.table import (
    BEST,
    MINUS,
    NONE,
    PLAIN,
    TEXT,
    TIE,
    Marked,
    Table,
    frame_to_csv,
    to_csv,
    to_latex,
    to_markdown,
    write,
)

NAMES = [
    "nvil",
    "a|b",
    "a\\|b",
    "a\\",
    "*b*",
    "`b`",
    "<script>alert(1)</script>",
    "50 % & $x_1$ {~^} \\input{x}",
    "a\nb",
]
ANALYSIS = Path(__file__).parents[1] / "analysis"


def table_of(names):
    rows = [
        [name, Marked(f"{number}.50 ± 0.25", "")] + [f"{MINUS}{number}.1", NONE] for number, name in enumerate(names)
    ]
    return Table(["estimator", "nats", "difference", "more"], rows, ["First note.", "Second."], "On digits", ["Means."])


def cells_of(line):
    """The cells of a line of a table as GitHub's parser has them: a backslash takes the punctuation after it along."""
    inside = re.fullmatch(r"\| (.*) \|", line)[1]
    parts = re.findall(r"((?:\\[!-/:-@\[-`{-~]|[^|])*)(?:\||$)", inside)
    return [re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", part.strip()) for part in parts if part]


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows, self.tags, self.inside = [], set(), False

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "th")
        if self.inside:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, text):
        if self.inside:
            self.rows[-1][-1] += text


def test_names_that_are_code_stay_names():
    table = table_of(NAMES)
    shown = [name.replace("\n", " ") for name in NAMES]
    lines = [line for line in table.to_markdown().splitlines() if line.startswith("|")]
    assert [cells_of(line)[0] for line in lines[2:]] == shown and {len(cells_of(line)) for line in lines} == {4}
    assert "<script" not in re.sub(r"\\<", "", table.to_markdown())
    latex.check(to_latex([table]))
    assert r"\input" not in to_latex([table])
    page = Cells()
    page.feed(table.to_html())
    assert [row[0] for row in page.rows[1:]] == shown
    assert page.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert [row[0] for row in csv.reader(io.StringIO(to_csv([table])))][1:] == shown
    assert len(table.to_text(1000).splitlines()) == 2 + 2 + len(NAMES) + 1 + 3


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-cmd()", "@SUM(A1)", "\t=1", " =1"]


def test_no_text_is_a_formula_and_numbers_stay_numbers():
    rows = list(csv.reader(io.StringIO(to_csv([table_of(FORMULAS)]))))[1:]
    assert [row[0] for row in rows] == ["'" + text for text in FORMULAS]
    assert [row[1:] for row in rows] == [[f"{n}.50 ± 0.25", f"-{n}.1", "-"] for n in range(len(FORMULAS))]
    frame = pd.DataFrame(
        {"=name": FORMULAS[:3], "x": [-1.5, 2.0, float("-inf")], "n": [-1, 2, 3], "m": ["-1.5", "-", 3]}
    )
    assert frame_to_csv(frame).splitlines() == [
        "'=name,x,n,m",
        "'=1+1,-1.5,-1,-1.5",
        "'+cmd|' /C calc'!A0,2.0,2,-",
        "'-cmd(),-inf,3,3",
    ]


def test_no_text_acts_on_a_terminal_or_is_a_link():
    bad = ["\x1b[2J\x1b]0;title\x07", "a\u202eb", "c\x9bd", "[x](javascript:alert(1))", "![x](http://host/y)"]
    table = Table(["name"], [[name] for name in bad], bad, bad[0], bad)
    for text in (table.to_text(), table.to_markdown(), table.to_latex(), table.to_html(), to_csv([table])):
        assert not {chr(number) for number in output.HIDDEN} - {"\n"} & set(text)
    assert r"\x1b[2J" in table.to_text() and not re.search(r"(?<!\\)\]\(", table.to_markdown())


def test_titles_and_notes_that_are_code_stay_sentences():
    bad = "a_b & <b>c</b>\n\n# d"
    table = Table(["x"], [["y"]], [bad], bad, [bad])
    assert [line for line in table.to_markdown().splitlines() if line.startswith("#")] == [r"### a_b & \<b>c\</b> # d"]
    latex.check(to_latex([table]))
    assert "<b>" not in table.to_html() and "&lt;b&gt;" in table.to_html()


def test_every_format_writes_its_own_signs():
    rows = [["b", Marked("1.5 ± 0.2", BEST), f"{MINUS}0.1"], ["-", Marked("2.0", TIE), NONE]]
    table = Table(["a", "nats", "difference"], rows)
    assert table.to_markdown().splitlines()[1:] == [
        "| --- | ---: | ---: |",
        "| b | **1.5 ± 0.2** | -0.1 |",
        "| - | 2.0 ~ | - |",
    ]
    assert table.cells(TEXT)[1:] == [["b", "1.5 ± 0.2 *", "-0.1"], ["-", "2.0 ~", "-"]]
    assert table.cells(PLAIN)[1:] == [["b", "1.5 ± 0.2", "-0.1"], ["-", "2.0", "-"]]
    written = table.to_latex()
    assert r"b & \textbf{1.5 $\pm$ 0.2} & $-$0.1 \\" in written and r"- & 2.0$^\sim$ & -- \\" in written
    assert '<td class="number"><strong>1.5 ± 0.2</strong></td>' in table.to_html()


def test_files_and_numbers_at_full_precision(tmp_path):
    numbers = pd.DataFrame({"estimator": ["nvil"], "mean": [1 / 3]})
    table = Table(["estimator", "nats"], [["nvil", "0.33"]], title="t", numbers=numbers)
    files = write([table, table], tmp_path / "table.v1")
    assert [file.name for file in files] == ["table.v1.md", "table.v1.tex", "table.v1.csv"]
    assert pd.read_csv(files[2])["mean"].tolist() == [1 / 3, 1 / 3]
    assert files[0].read_text() == to_markdown([table, table]) and files[0].read_text().count("### t") == 2
    assert files[1].read_text().count("booktabs") == 1


def frame_of(values):
    """``values``: of each run what it has at steps 10, 20, ..."""
    rows = [
        {"path": run, "step": 10 * (place + 1), "seconds": float(place), "valid": value}
        for run, line in values.items()
        for place, value in enumerate(line)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("metric", "forth", "back"),
    [
        (Metric("valid"), float, float),
        (Metric("valid", negated=True), lambda value: -value, float),
        (Metric("valid", log=True), np.log, np.exp),
    ],
)
def test_a_curve_is_the_mean_over_seeds_with_its_interval(metric, forth, back):
    values = {"a": [1.0, 2.0, 4.0, 8.0], "b": [2.0, 2.0, 5.0, np.nan], "c": [4.0, 2.0, 9.0, 3.0]}
    found = average(frame_of(values), metric)
    assert found.x.tolist() == [10, 20, 30] and found.paths == ["a", "b", "c"]  # b has no fourth value
    expected = [tuple(map(back, interval([forth(line[place]) for line in values.values()]))) for place in range(3)]
    got = zip(found.mean, *found.band, strict=True)
    np.testing.assert_allclose(list(got), expected)
    alone = average(frame_of({"a": values["a"]}), metric)
    assert alone.band is None
    np.testing.assert_allclose(alone.mean, [back(forth(value)) for value in values["a"]])
    thin = alone.thinned(2)
    assert thin.x.tolist() == [10, 40] and thin.mean.tolist() == alone.mean[[0, 3]].tolist()


def test_a_curve_without_places_and_values_without_logarithm():
    assert average(frame_of({"a": [np.nan, np.nan]}), Metric("valid")) is None
    assert average(frame_of({"a": [0.0, 1.0], "b": [1.0, -1.0]}), Metric("valid", log=True)) is None
    assert average(frame_of({"a": [0.0, 1.0], "b": [1.0, 4.0]}), Metric("valid", log=True)).mean.tolist() == [2.0]


def test_one_file_writes_tables_and_one_averages_seeds():
    for path in ANALYSIS.rglob("*.py"):
        name, text = path.relative_to(ANALYSIS).as_posix(), path.read_text()
        if name != "tables/table.py":
            assert not re.search(r"--- ?\||\"---|' \| '|tabular|toprule|textbf|<td", text), name
        if name not in ("statistics/intervals.py", "statistics/curves.py"):
            assert "student_half_width" not in text, name
