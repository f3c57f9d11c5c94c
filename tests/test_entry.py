"""A row of the leaderboard from one command: an outside estimator's certificate, runs and record."""

from __future__ import annotations

import json

import pytest
import yaml

from training.documents import entry
from training.errors import UserError

MODULE = '''
from estimators import RLOO, StraightThrough


class PlainRLOO(RLOO):
    """RLOO by another name."""


class NeedsMore(RLOO):
    def __init__(self, alpha: float) -> None:
        super().__init__()


class Wrong(StraightThrough):
    unbiased = True
'''
OVERRIDES = ["task=vae_bernoulli", "task.latents=4", "steps=4", "evaluate_every=4", "evaluate_samples=2"]
OVERRIDES += ["valid_samples=2", "test_samples=2", "workers=1", "basket.draws=4", "basket.rounds=2", "basket.warm_up=0"]


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_rloo.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_rloo:PlainRLOO"


def test_one_command_makes_a_row(module, tmp_path):
    results = tmp_path / "results"
    words = ["--by", "A. Guest", "--experiment", "every_estimator", "--budget", "full", "--draws", "500"]
    entry.main([module, *words, "--results", str(results), *OVERRIDES, f"runs_dir={tmp_path / 'runs'}"])
    folder = results / "entries" / "plain_rloo"
    assert yaml.safe_load((folder / "estimator" / "plain_rloo.yaml").read_text())["_target_"] == "my_rloo.PlainRLOO"
    assert (folder / "my_rloo.py").read_text() == MODULE
    (row,) = json.loads((folder / "every_estimator_full" / "reference.json").read_text())["entries"]
    assert (row["estimator"], row["by"], row["n"]) == ("plain_rloo", "A. Guest", 1)
    assert row["gradient"]["evaluations"] == row["loss_evaluations_per_step"] == 2
    page = (results / "leaderboard.md").read_text()
    (line,) = [line for line in page.splitlines() if "plain_rloo" in line]
    assert "entries/plain_rloo/every_estimator_full, by A. Guest" in line and "| unbiased |" in line


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["my_rloo:PlainRLOO", "--name", "rloo"], "rloo is the name of an estimator of the library"),
        (["my_rloo:PlainRLOO", "--name", "../up"], "use small letters, digits and _"),
        (["my_rloo:Absent"], "cannot build my_rloo:Absent"),
        (["no_module:PlainRLOO"], "cannot build no_module:PlainRLOO"),
        (["my_rloo:NeedsMore"], "missing 1 required positional argument: 'alpha'; give them defaults, or say in"),
        (["my_rloo.PlainRLOO"], "name it as MODULE:CLASS"),
        ([""], "name it as MODULE:CLASS"),
        (["my_rloo:PlainRLOO", "--experiment", "nosuch"], "Could not find 'experiment/nosuch'; choose one of"),
        (["my_rloo:PlainRLOO", "--budget", "nosuch"], "budget=nosuch: choose one of those that the experiment has"),
        (["my_rloo:PlainRLOO", "stepz=3"], "Could not override 'stepz'"),
    ],
)
def test_mistakes_are_sentences_and_leave_nothing(module, tmp_path, words, sentence):
    few = ["--experiment", "toy_rebar", "--budget", "full"]  # planned in less time than the default
    with pytest.raises(UserError, match=sentence):
        entry.main([*few, *words, "--by", "A. Guest", "--results", str(tmp_path / "results")])
    assert not (tmp_path / "results").exists()


def test_an_estimator_that_is_not_what_it_declares_is_not_trained(module, tmp_path):
    words = ["my_rloo:Wrong", "--by", "A. Guest", "--experiment", "every_estimator", "--draws", "500"]
    with pytest.raises(UserError, match="not what it declares .see above.: mend it"):
        entry.main([*words, "--results", str(tmp_path / "results"), f"runs_dir={tmp_path / 'runs'}"])
    assert not (tmp_path / "runs").exists() and not list((tmp_path / "results").rglob("reference.json"))
