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
from fake_runs import make_config, write_run

from analysis import output
from analysis.records import load
from analysis.statistics.comparisons import pairs
from analysis.statistics.curves import Metric, average
from analysis.statistics.intervals import interval
from analysis.statistics.summary import final_rows, select, summarise
from analysis.tables import summary, trained
from analysis.tables.comparisons import best_against_the_others
from analysis.tables.table import (
    BEST,
    MINUS,
    NONE,
    PLAIN,
    TEXT,
    TIE,
    Marked,
    Table,
    fixed,
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


def test_no_number_that_rounds_to_zero_has_a_sign():
    for digits in range(7):
        for value in (-0.0, -1e-9, 1e-9, -0.4 * 10.0**-digits, 0.0):
            assert float(fixed(value, digits)) == 0 and not {*"+-", MINUS} & set(fixed(value, digits, "+"))
        assert fixed(-(10.0**-digits), digits)[0] == "-" and fixed(-(10.0**-digits), digits, "+")[0] == MINUS
        assert fixed(10.0**-digits, digits, "+")[0] == "+"
    assert [fixed(float(word), 2) for word in ("nan", "inf", "-inf")] == ["nan", "inf", "-inf"]
    written = [path for path in ANALYSIS.rglob("*.py") if path.name not in ("benchmark.py", "table.py", "colors.py")]
    signed = [
        path.name
        for path in written
        if re.search(r"\{(mean|low|high|row\[[^]]*\])(:\+?\.\d+f|:\.\{digits)", path.read_text())
    ]
    assert signed == []


@pytest.fixture
def trained_runs(tmp_path):
    """Two estimators with two learning rates and two seeds; NVIL is ahead on ELBO and behind on the bound."""
    for estimator, bound, elbo in (("gumbel_softmax", -100.0, -104.0), ("nvil", -101.0, -103.0)):
        for lr, worse in ((0.001, 0.0), (0.01, 5.0)):
            for seed in range(2):
                config = make_config(
                    estimator, seed=seed, optimizer__lr=lr, estimator__temperature=0.5, task__kl="auto"
                )
                words = [f"estimator={estimator}", "task.kl=auto", f"optimizer.lr={lr}", f"seed={seed}", "device=cpu"]
                facts = {"commit": "0123456789abcdef", "versions": {"torch": "2.9.0"}, "device": "cpu (test)"}
                row = {"valid_elbo": elbo - worse - 0.1 * seed}
                numbers = {"valid": bound - worse, "test": bound - worse - 0.1 * seed}
                write_run(tmp_path, config, row=lambda _, row=row: row, overrides=words, **numbers, **facts)
    return load(tmp_path)


def test_a_table_says_what_was_trained_and_how_to_do_it_again(trained_runs):
    (table,) = summary.comparisons(summarise(trained_runs))
    text, markdown, tex = table.to_text(1000), table.to_markdown(), table.to_latex()
    facts = "optimizer adam, learning rate 0.001, 1000 steps, batch 100"
    assert f"Trained: {facts}, commit 0123456; all settings are in the files." in text
    assert "python train.py" not in text and "0123456789abcdef" not in text
    command = "python train.py -m estimator=gumbel_softmax,nvil task.kl=auto optimizer.lr=0.001 replicas=1 seed=0,1"
    assert f"- Command: `{command}`" in markdown and f"% {command}\n\\begin{{table}}" in tex
    whole = ["commit 0123456789abcdef, torch 2.9.0, on cpu (test)", "latents 200", "gumbel_softmax (temperature 0.5"]
    assert [words for words in [facts, *whole] if words not in markdown] == []
    assert "\\label{tab:vae-bernoulli-binarized-mnist}" in tex
    assert "\nGumbel-Softmax & \\textbf{" in tex and "Gumbel-Softmax (temperature 0.5" in tex
    assert "gumbel\\_softmax" not in tex.replace("% " + command, "")
    latex.check(tex)


def test_one_sentence_for_what_surprises(trained_runs, tmp_path):
    (table,) = summary.comparisons(summarise(trained_runs))
    said = " ".join(table.notes)
    assert "kl auto: sampled for unbiased estimators" in said
    order = "the validation ELBO and the table the test bound: they end in another order for gumbel_softmax and nvil."
    assert order in said
    alike = trained_runs.assign(valid_elbo=trained_runs["valid_bound"])
    alike.attrs = trained_runs.attrs
    (other,) = summary.comparisons(summarise(alike))
    assert "another order" not in " ".join(other.notes)
    assert "best is marked *: the lowest mean" in table.to_text(1000) and "best is in bold" in table.to_latex()
    chosen = select(final_rows(trained_runs))
    (compared,) = best_against_the_others(pairs(chosen)).values()
    assert "P(lower): the share of seeds in which it ends lower, ties as half" in " ".join(compared.notes)
    assert "0 of 1 pairs of estimators differ" in compared.notes[0] and "may be best by chance" in compared.notes[0]


def test_a_command_is_one_only_where_the_options_are_every_combination(tmp_path):
    one, two, three = (
        write_run(tmp_path, make_config(name, seed=seed), overrides=[f"estimator={name}", f"seed={seed}", "~schedule"])
        for name, seed in (("nvil", 0), ("nvil", 1), ("rloo", 0))
    )
    both = "python train.py -m estimator=nvil '~schedule' replicas=1 seed=0,1"
    assert trained.command([str(one), str(two)]) == both
    assert trained.command([str(one), str(two), str(three)]) is None
    rows = pd.DataFrame({"paths": [[str(one), str(two)], [str(three)]]})
    assert trained.commands(rows) == [both, "python train.py -m estimator=rloo '~schedule' replicas=1 seed=0"]
    (one / ".hydra" / "overrides.yaml").unlink()
    assert trained.command([str(one)]) is None and trained.commands(rows)[-1].endswith("seed=0")
