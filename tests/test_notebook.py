"""The notebook of ``examples/`` runs, shows what is kept in it, and is a notebook."""

import json
import re
from pathlib import Path

import pytest
import torch

from training.documents import notebook

PLACE = Path(__file__).parents[1] / "examples" / "variance.ipynb"


def test_it_shows_what_is_kept_in_it():
    kept = notebook.read(PLACE)
    assert sum(cell["cell_type"] == "code" for cell in kept["cells"]) == 2
    with torch.random.fork_rng():
        anew = notebook.executed(kept)
    was, now = notebook.printed(kept), notebook.printed(anew)
    number = r"\d+\.\d+"
    assert re.sub(rf" *{number}", "", was) == re.sub(rf" *{number}", "", now)
    # Another processor or torch may draw other noise: 20,000 draws give a variance to some 5 %.
    pairs = zip(re.findall(number, was), re.findall(number, now), strict=True)
    assert all(float(b) == pytest.approx(float(a), rel=0.2, abs=0.02) for a, b in pairs)
    kinds = [output["output_type"] for output in anew["cells"][2]["outputs"]]
    assert kinds == ["stream", "display_data"] == [output["output_type"] for output in kept["cells"][2]["outputs"]]
    page = notebook.markdown(anew)
    assert page.count("```python") == 2 and page.count("```text") == 1 and 'src="data:image/png;base64,' in page


def test_it_is_a_notebook():
    validate = pytest.importorskip("nbformat").validate
    validate(json.loads(PLACE.read_text()))


def test_a_cell_that_fails_is_an_error():
    cell = {"cell_type": "code", "source": ["print(1)\n", "1 / 0"], "outputs": []}
    with pytest.raises(ZeroDivisionError):
        notebook.executed({"cells": [cell]})
