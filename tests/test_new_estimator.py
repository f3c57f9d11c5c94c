"""A method is added with three files: its own, the export, and its options. Shown in a copy of the repository."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
METHOD = '''"""Half: the score function with half of a mean for a baseline."""

from __future__ import annotations

from torch import Tensor

from estimators.base import ScoreFunction
from estimators.categorical import Finite


class Half(ScoreFunction):
    """gradient = (loss - share) * score.

    Reference: Nobody, arXiv 2601.00001.
    """

    family = "home-made"

    def __init__(self, share: Finite = 0.5) -> None:
        super().__init__()
        self.share = self._number("share", share)

    def signal(self, losses: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return losses - self.share, None
'''
OPTIONS = """defaults:
  - /hydra/schema/estimator/Half@_here_
  - _self_
name: half
"""
SHOW = """
import json, sys
from pathlib import Path
from analysis.figures import curves
from analysis.figures.style import OTHER
from analysis.records import load
from estimators import METHODS, check
from training.documents import table
frame = load(sys.argv[1])
figure = curves.learning_curves(frame)
(legend,) = figure.legends
print(json.dumps({
    "methods": len(METHODS),
    "subjects": [subject.name for subject in check.subjects(["half"])],
    "row": "home-made" in table.markdown(),
    "label": [text.get_text() for text in legend.get_texts()],
    "other": [line.get_color() == OTHER for line in legend.get_lines()],
    "looks": len({(line.get_marker(), line.get_color()) for line in legend.get_lines()}),
    "family": sorted(set(frame["family"])),
    "option": sorted(set(frame["estimator.share"].dropna())),
}))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository with the three files changed, and what git would call changed."""
    root = tmp_path_factory.mktemp("copy")
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("analysis", "conf", "estimators", "hydra_plugins", "tasks", "training"):
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    shutil.copy(ROOT / "train.py", root)
    (root / "docs" / "results").mkdir(parents=True)
    shutil.copytree(ROOT / "docs" / "results" / "certificates", root / "docs" / "results" / "certificates")
    (root / "estimators" / "half.py").write_text(METHOD)
    (root / "conf" / "estimator" / "half.yaml").write_text(OPTIONS)
    export = root / "estimators" / "__init__.py"
    text = export.read_text()
    text = text.replace("from estimators.identity", "from estimators.half import Half\nfrom estimators.identity", 1)
    text = text.replace("    IdentityStraightThrough,\n", "    Half,\n    IdentityStraightThrough,\n", 1)
    export.write_text(
        text.replace('    "IdentityStraightThrough",\n', '    "Half",\n    "IdentityStraightThrough",\n', 1)
    )
    return root


def python(root, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_certified_beside_the_others(copy):
    """Its row stands in their order, and nothing else in the file changes."""
    file = copy / "docs" / "results" / "certificates" / "certificates.json"
    before = json.loads(file.read_text())
    arguments = ["half", "--draws", str(before["draws"]), "--json", str(file)]
    printed = python(copy, "-m", "estimators.check", *arguments)
    after = json.loads(file.read_text())
    assert next(line for line in printed.splitlines() if line.startswith("Half")).split()[1] == "pass"
    names = [each["name"] for each in after["estimators"]]
    assert names[names.index("Half") + 1] == "IdentityStraightThrough"
    (added,) = [each for each in after["estimators"] if each not in before["estimators"]]
    assert added["name"] == "Half" and added["declared"]["family"] == "home-made"
    assert [each for each in after["estimators"] if each is not added] == before["estimators"]
    python(copy, "-m", "analysis.papers.certificates", str(file), str(copy / "figures"))
    assert (copy / "figures" / "ranking.png").stat().st_size > 10_000


def test_it_trains_and_is_drawn(copy):
    """With a look of its own, whose colour no other family has."""
    sweep = copy / "runs" / "sweep"
    small = ["task=toy", "data=none", "steps=4", "evaluate_every=2", "valid_samples=2", "test_samples=2"]
    places = ["device=cpu", "workers=1", f"runs_dir={sweep.parent}", "sweep=sweep", "progress=false"]
    python(copy, "train.py", "-m", "estimator=half,nvil,rloo", *small, *places)
    shown = json.loads(python(copy, "-c", SHOW, str(sweep)))
    assert shown == {
        "methods": 34,
        "subjects": ["Half"],
        "row": True,
        "label": ["NVIL", "RLOO", "half"],
        "other": [False, False, True],
        "looks": 3,
        "family": ["home-made", "score function"],
        "option": [0.5],
    }
