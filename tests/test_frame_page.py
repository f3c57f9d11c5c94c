"""The page about the frame: its recipes draw, and its list of columns is that of the code and of real frames."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fake_runs import make_config, write_run

from analysis.defaults import defaults
from analysis.records import legacy, load
from training.config.compose import runs_of_command
from training.config.identity import role
from training.documents import columns

PAGE = Path(__file__).parents[1] / "docs" / "frame.md"


@pytest.fixture
def demo(tmp_path, monkeypatch):
    for estimator in ("gumbel_softmax", "nvil", "straight_through"):
        for task in ("vae_bernoulli", "vae_categorical"):
            for seed in range(2):
                bound = -25.0 - seed
                config = make_config(estimator, task, "digits", seed=seed, evaluate_samples=100, valid_samples=100)
                write_run(
                    tmp_path / "runs" / "demo",
                    config,
                    valid=bound,
                    row=lambda step, bound=bound: {"valid_bound": bound - 9 / step},
                )
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "demo"


def test_the_recipes_draw_a_figure_of_the_size_they_say(demo):
    namespace = {}
    for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S):
        exec(code, namespace)
    assert namespace["figure"].get_size_inches().tolist() == [3.25, 3.2]
    (axes,) = namespace["figure"].axes
    assert axes.get_xlabel() == "updates" and len([line for line in axes.lines if len(line.get_xdata())]) == 2
    assert {text.get_text() for text in namespace["figure"].legends[0].get_texts()} == {
        "Gumbel-Softmax",
        "Straight-Through",
    }
    assert all(len(axes.lines) == 3 for axes in namespace["panels"].axes) and len(namespace["panels"].axes) == 2
    assert {file.name for file in demo.glob("*.p*")} == {"column.pdf", "column.png", "panels.pdf", "panels.png"}


def test_the_list_of_columns_is_current_and_covers_what_runs_have(demo):
    assert columns.table() in PAGE.read_text(), "run: python -m training.documents.columns docs/frame.md"
    (config, *_) = runs_of_command("python train.py -m +experiment=demo seed=0")
    write_run(demo, config.config, commit="0123", device="cpu", peak_memory_bytes=1, pack_replicas=3)
    frame = load(demo)
    roles = frame.attrs["roles"]
    assert [name for name in map(str, frame) if name not in ("label",) and not columns.covers(name, roles[name])] == []
    assert not columns.covers("unheard_of", "record") and not columns.covers("seed", "metric")


def test_an_option_that_a_record_lacks_has_the_role_of_the_schema():
    """A record that is older than an option gets it at its default, with the role that its name tells."""
    known = defaults()
    options = [f"{name}.name" if isinstance(value, dict) else name for name, value in known["config"].items()]
    for group, named in known["names"].items():
        options += [f"{group}.{name}" for own in named.values() if isinstance(own, dict) for name in own]
    assert {name: legacy.role_of(name) for name in options} == {name: role(name) for name in options}
