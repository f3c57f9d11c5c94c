"""A paper's figure is added with two files: the experiment that trains it, and the module with its ``draw``."""

import sys

import pytest
from fake_runs import make_config, write_run
from test_cli import call

from analysis import command, papers

EXPERIMENT = """# @package _global_
sweep: nobody_figure1
defaults:
  - _self_
  - override /task: toy
  - override /data: none
  - override /estimator: rloo
steps: 4
evaluate_every: 2
replicas: 2
"""
DRAWING = '''"""Nobody, arXiv 2601.00001, Figure 1."""

from analysis.figures.curves import learning_curves, save


def draw(frame, out):
    if frame["estimator"].nunique() != 1:
        raise ValueError("it is of one estimator")
    (out / "seeds.txt").write_text(f"{sorted(set(frame['seed']))} {sorted(set(frame['sweep']))}")
    return [out / "seeds.txt", *save(learning_curves(frame), out / "figure1")]
'''


@pytest.fixture
def drawing(tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "nobody_figure1.yaml").write_text(EXPERIMENT)
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "nobody_figure1.py").write_text(DRAWING)
    monkeypatch.setattr(papers, "__path__", [*papers.__path__, str(tmp_path / "papers")])
    yield tmp_path
    sys.modules.pop("analysis.papers.nobody_figure1", None)


def test_it_is_trained_and_drawn_by_its_name(drawing, monkeypatch, capsys):
    arguments = ["--config-dir", str(drawing), "+experiment=nobody_figure1", f"runs_dir={drawing}/runs"]
    assert call(monkeypatch, *arguments, "progress=false") is None
    sweep = drawing / "runs" / "nobody_figure1"
    assert command.main([str(sweep)]) == 0
    printed = capsys.readouterr().out
    for name in ("seeds.txt", "figure1.png", "figure1.pdf"):
        assert (sweep / "report" / name).stat().st_size and f"wrote {sweep}/report/{name}" in printed
    assert (sweep / "report" / "seeds.txt").read_text() == "[0, 1] ['nobody_figure1']"


def test_what_cannot_be_drawn_is_said_and_costs_nothing_else(drawing, capsys):
    sweep = drawing / "nobody_figure1"
    for estimator in ("nvil", "rloo"):
        write_run(sweep, make_config(estimator, sweep="nobody_figure1"))
    write_run(drawing / "other", make_config("nvil", sweep="other"))
    assert command.main([str(drawing), "--output", str(drawing / "out")]) == 0
    assert "no figures of nobody_figure1: it is of one estimator" in capsys.readouterr().out
    assert (drawing / "out" / "learning_curves.png").exists()
