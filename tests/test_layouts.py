"""Tables in the papers' layouts, from hand-made runs with known answers."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import latex
import pytest
from fake_runs import make_config, write_run

from analysis.papers import layouts
from analysis.records import load
from analysis.statistics.summary import ProtocolsDiffer
from analysis.tables.summary import MARKDOWN, TEXT

ROOT = Path(__file__).parents[1]
JANG = layouts.layouts()["jang_table1"]


@pytest.fixture
def frame(tmp_path):
    """Two tasks of Table 1; on the first the seeds of Gumbel-Softmax are best and those of ST Gumbel-Softmax tie."""
    bounds = {
        "nvil": [112.0, 112.0, None],
        "gumbel_softmax": [105.0, 106.0, 107.0],
        "st_gumbel_softmax": [107, 108, 109],
    }
    for estimator, values in bounds.items():
        for seed, value in enumerate(values):
            status = "finished" if value else "diverged"
            for lr, shift in ((0.1, 0.0), (0.2, 5.0)):
                config = make_config(estimator, seed=seed, optimizer__lr=lr)
                bound = -(value or 0.0) - shift
                write_run(tmp_path / "jang_table1", config, test=bound, valid=bound, status=status, steps=1)
    write_run(tmp_path / "jang_table1", make_config("darn", "vae_categorical"), test=-128.8, steps=1)
    write_run(tmp_path / "jang_table1", make_config("rloo", "vae_categorical"), test=-1.0, steps=1)  # in no column
    return load(tmp_path)


def test_cells_by_hand(frame):
    table = layouts.fill(JANG, frame).set_index(["row", "column"])
    assert table.index.tolist() == [
        *(("VAE (Bern.)", name) for name in ("SF", "Gumbel-S.", "ST Gumbel-S.")),
        ("VAE (Cat.)", "DARN"),
    ]
    assert table["mean"].tolist() == [112.0, 106.0, 108.0, 128.8]
    assert table["mark"].tolist() == ["", "best", "tie", ""]
    assert table["n"].tolist() == [2, 3, 3, 1] and table["diverged"].tolist() == [1, 0, 0, 0]
    assert table["setting"].tolist() == ["optimizer.lr=0.1"] * 3 + [""]
    assert table["published"].tolist() == [112.2, 105.0, 111.5, 128.8]
    assert table["difference"].tolist() == pytest.approx([-0.2, 1.0, -3.5, 0.0])
    assert table["high"].iloc[1] - 106.0 == pytest.approx(2.484138, abs=1e-6)


def test_body_has_the_papers_order_and_only_rows_with_runs(frame):
    header, *lines = layouts.body(JANG, layouts.fill(JANG, frame), TEXT)
    assert header[2:] == ["SF", "DARN", "MuProp", "ST", "Annealed ST", "Gumbel-S.", "ST Gumbel-S."]
    assert lines[0] == ["VAE (Bern.)", "ours", "112.00", "-", "-", "-", "-", "106.00 *", "108.00 ~"]
    assert lines[1] == ["", "interval", "±0.00", "-", "-", "-", "-", "±2.48", "±2.48"]
    assert lines[2][2:] == ["112.2", "-", "-", "-", "-", "105.0", "111.5"]
    assert lines[3][2:] == ["-0.2", "-", "-", "-", "-", "+1.0", "-3.5"]
    seeds = next(line for line in lines if line[1] == "seeds")
    assert seeds[2:] == ["2 (1 diverged)", "-", "-", "-", "-", "3", "3"]
    assert [line[0] for line in lines if line[0]] == ["VAE (Bern.)", "VAE (Cat.)"]
    assert {len(line) for line in lines} == {9}


def test_three_formats(frame, tmp_path):
    files = layouts.write(JANG, frame, tmp_path)
    assert [file.name for file in files] == ["jang_table1.md", "jang_table1.tex", "jang_table1.csv"]
    markdown, tex, text = (file.read_text() for file in files)
    latex.check(tex)
    assert "**106.00**" in markdown and r"\textbf{106.00}" in tex and r"108.00$^\sim$" in tex
    for words in ("best of each row marked", "prior uniform", "optimizer.lr=0.1, best of 2 on validation"):
        assert words in re.sub(r"\s+", " ", markdown) and words in re.sub(r"\s+", " ", tex)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["mean"]) for row in rows] == [112.0, 106.0, 108.0, 128.8]
    bodies = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in bodies} == {10}


def test_a_cell_with_two_data_sets_and_runs_in_no_cell_are_refused(frame, tmp_path):
    write_run(tmp_path / "more", make_config("nvil", data="mnist"), steps=1)
    with pytest.raises(ValueError, match="the cell VAE .Bern.., SF of jang_table1 has nvil vae_bernoulli .*--where"):
        layouts.fill(JANG, load(tmp_path))
    with pytest.raises(ValueError, match="no run stands in a cell of muprop_table2"):
        layouts.fill(layouts.layouts()["muprop_table2"], frame)
    write_run(tmp_path / "more", make_config("nvil", seed=9), protocol={"kl": "sampled"}, steps=1)
    with pytest.raises(ProtocolsDiffer):
        layouts.fill(JANG, load(tmp_path))


def test_another_metric_is_compared_upwards_and_by_column(tmp_path):
    for estimator, accuracies, bound in (("exact", (90.0, 94.0), 106.8), ("gumbel_softmax", (92.0, 98.0), 109.6)):
        for seed, accuracy in enumerate(accuracies):
            config = make_config(estimator, "semi_supervised", "mnist", seed=seed, data__binarization="dynamic")
            write_run(tmp_path, config, test=-bound, steps=1, row=lambda step, a=accuracy: {"test_accuracy": a})
    layout = layouts.layouts()["jang_table2"]
    table = layouts.fill(layout, load(tmp_path)).set_index(["row", "column"])
    assert table["mean"].tolist() == [106.8, 92.0, 109.6, 95.0]
    assert table["mark"].tolist() == ["best", "tie", "", "best"]
    assert table["published"].tolist() == [106.8, 92.6, 109.6, 92.4]
    assert table["difference"].tolist() == pytest.approx([0.0, -0.6, 0.0, 2.6])
    header, *lines = layouts.body(layout, table.reset_index(), MARKDOWN)
    assert header == ["", "", "negative bound", "accuracy"] and lines[0][:4] == [
        "Marginalization",
        "ours",
        "**106.80**",
        "92.00 ~",
    ]


@pytest.mark.parametrize("name", layouts.layouts())
def test_a_layout_is_of_its_experiments_tasks_and_estimators(name):
    """The experiment's file has every task, data set and estimator that the layout has a row or a column for."""
    text = (ROOT / "conf" / "experiment" / f"{name}.yaml").read_text()
    assert f"\nsweep: {name}\n" in text
    layout = layouts.layouts()[name]
    for place in (*layout.rows, *layout.columns):
        for field in ("task", "data", "estimator"):
            assert re.search(rf"\b{place.values.get(field, 'sweep')}\b", text), (place, field)


def test_every_layout_is_whole_and_named_as_its_sweep():
    for name, layout in layouts.layouts().items():
        assert layout.name == name and layout.title and layout.rows and layout.columns
        for places in (layout.rows, layout.columns):
            assert len({place.label for place in places}) == len(places)
    several = layouts.layouts()["gumbel_rao_table"].columns
    assert [place.label for place in several][:2] == ["batch 20, binary", "batch 20, 4-ary"]
    assert several[1].values == {"batch_size": "20", "task.categories": "4"}
    sweeps = ["demo", "jang_table1", "jang_table1_cpu", "mine_arm_tables", "rebar_table1_my_budget"]
    assert [layout.name for layout in layouts.of_sweeps(sweeps)] == ["jang_table1", "rebar_table1"]
