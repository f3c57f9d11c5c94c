"""The programs of ``examples/``: short, run as a user runs them, and they learn what they say."""

import random
import re
import runpy
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "examples"
LEARNED = {
    "world_model": (r"loss ([\d.]+)", lambda first, last: first > 2 and last < 1.3),  # log 8 is 2.08
    "mixture_of_experts": (r"variance ([\d.]+)", lambda first, last: last < 0.15),  # the best linear function: 0.58
    "bandit": (r"action (-?[\d.]+)", lambda first, last: first < 0.3 and last > 0.85),  # chance 0.1, best 1
}


def test_every_example_has_a_line_above():
    assert {path.stem for path in FOLDER.glob("*.py")} == LEARNED.keys()


@pytest.mark.parametrize("name", LEARNED)
def test_an_example_learns_in_forty_lines(name, capsys):
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) <= 40
    state = random.getstate()
    with torch.random.fork_rng():
        runpy.run_path(str(FOLDER / f"{name}.py"))
    random.setstate(state)
    number, learned = LEARNED[name]
    found = [float(text) for text in re.findall(number, capsys.readouterr().out)]
    assert len(found) >= 3 and learned(found[0], found[-1]), found
