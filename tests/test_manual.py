"""``train.py --help``: every choice and every option, with its default and an explanation; before torch is imported."""

import dataclasses
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from configs import config

from training.config import schema
from training.documents import manual
from training.errors import UserError

ROOT = Path(__file__).parents[1]
FREE = {"basket": {"estimators", "reference"}}
"""Options that hold estimators, each of which is explained under its own name."""


@pytest.mark.parametrize("group", manual.GROUPS)
def test_every_choice_composes_and_each_of_its_options_is_explained_with_its_default(group):
    names = manual._names(group, [manual.CONF])
    assert names
    for name in names:
        shown = {option: (value, said) for option, value, said in manual._of(group, {group: name}, [manual.CONF])}
        composed = {
            key: value for key, value in config(f"{group}={name}")[group].items() if key not in FREE.get(group, ())
        }
        assert composed["name"] == name or (group, name) == ("basket", "own")  # a basket's name is free
        own = {key: value for key, (value, _) in shown.items() if key != "root" and key not in FREE.get(group, ())}
        assert own == {key: composed[key] for key in own}
        assert shown.keys() | {"name", "_target_"} >= composed.keys(), name
        assert all(said for key, (_, said) in shown.items() if key not in FREE.get(group, ())), (name, shown)


def test_every_option_of_a_run_is_explained():
    explained = manual._entries(manual._docstring(manual.SCHEMA, "Config"))
    assert explained.keys() == {field.name for field in dataclasses.fields(schema.Config)}


@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_fits_the_terminal(width):
    text = manual.text(["estimator=nvil", "task=sbn_bernoulli"], width)
    unbroken = [line for line in text.split("\n") if len(line) > width]
    assert all(len(line.split()) == 1 or line.startswith("  python") for line in unbroken), unbroken
    assert "estimator.variance_normalisation=true" in text and "reinmax" in text and "dry_run=false" in text


def test_choices_of_ones_own_and_mistakes(tmp_path):
    (tmp_path / "estimator").mkdir()
    (tmp_path / "estimator" / "mine.yaml").write_text("name: mine\n_target_: mine.Mine\nshare: 0.5\n")
    text = manual.text(["--config-dir", str(tmp_path), "estimator=mine"], 100)
    assert "estimator.share=0.5" in text and " mine," in text
    with pytest.raises(UserError, match=r"there is no estimator=nvli \(did you mean estimator=nvil\?\); choose one of"):
        manual.text(["estimator=nvli"])


def test_it_takes_less_than_two_seconds_and_imports_nothing_heavy():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = [sys.executable, "-X", "importtime", "train.py", "--help"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "== Choices" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    assert not set(re.findall(r"\b(torch|hydra|numpy|pandas)\b$", done.stderr, re.M))
