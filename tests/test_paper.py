"""``make paper``: folders whose runs are there are drawn anew, the others are left and say what is missing."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from test_cli import call
from test_experiments import BUDGETS

from training import paper
from training.config.compose import runs_of_command
from training.errors import UserError

ROOT = Path(__file__).parents[1]
CONTENT = yaml.safe_load((ROOT / "docs/results/paper.yaml").read_text())
TRAIN = "python train.py -m estimator=rloo,nvil,disarm task=vae_categorical task.latents=4 steps=6"
TRAIN += " evaluate_every=3 valid_samples=1 test_samples=1"


@pytest.mark.parametrize("name", CONTENT)
def test_every_committed_folder_can_be_made(name):
    """The training command plans runs, and what is kept is what the folder holds and its page shows.

    An experiment as it stands is planned by ``tests/test_experiments.py``.
    """
    entry = CONTENT[name]
    commands = entry.get("train", [])
    for command in [commands] if isinstance(commands, str) else commands:
        if whole := re.fullmatch(r"python train\.py (?:-m )?\+experiment=(\w+)(?: budget=(\w+))?", command):
            assert (whole[2] or "full") in BUDGETS[whole[1]]
        else:
            assert runs_of_command(command)
    for file in paper.files(entry).values():
        assert (paper.RESULTS / entry.get("folder", name) / file).exists(), file


def test_every_committed_figure_is_one_that_can_be_made():
    made = {
        f"{entry.get('folder', name)}/{file}"
        for name, entry in CONTENT.items()
        for file in paper.files(entry).values()
        if file.endswith(".png")
    }
    there = {str(file.relative_to(ROOT / "docs/results")) for file in (ROOT / "docs/results").rglob("*.png")}
    assert {file for file in there if not file.startswith("certificates/")} == made


def test_what_is_missing_is_said_and_what_is_there_is_drawn(monkeypatch, tmp_path):
    """``disarm`` is for bits: the sweep skips it, and it is not missing."""
    monkeypatch.setattr(paper, "RESULTS", tmp_path / "results")
    runs = str(tmp_path / "runs")
    entry = {
        "train": f"{TRAIN} sweep=tiny",
        "draw": ["python -m analysis {runs} --output {out}"],
        "keep": ["table.md", "learning_curves.png"],
    }
    said = paper.regenerate("tiny", entry, runs)
    assert said.startswith("left as it is: 2 of 2 runs are missing (") and entry["train"] in said
    assert not (tmp_path / "results").exists()

    assert call(monkeypatch, *entry["train"].split()[2:], "progress=false", f"runs_dir={tmp_path}/runs") is None
    assert paper.regenerate("tiny", entry, runs) == f"2 files written to {tmp_path}/results/tiny"
    drawn = {file.name: file.read_bytes() for file in (tmp_path / "results/tiny").iterdir()}
    assert set(drawn) == set(entry["keep"]) and b"| rloo |" in drawn["table.md"]
    paper.regenerate("tiny", entry, runs)
    assert {file.name: file.read_bytes() for file in (tmp_path / "results/tiny").iterdir()} == drawn

    with pytest.raises(UserError, match="has not written no_such.png"):
        paper.regenerate("tiny", {**entry, "draw": ["python -m training.status {runs}"], "keep": ["no_such.png"]}, runs)
    shutil.rmtree(next((tmp_path / "runs" / "tiny").glob("nvil-*")))
    assert paper.regenerate("tiny", entry, runs).startswith("left as it is: 1 of 2 runs are missing (nvil-")


def test_an_unknown_name_is_one_sentence():
    with pytest.raises(UserError, match="has no tabel1; it has [a-z_]+, "):
        paper.main(["tabel1"])
