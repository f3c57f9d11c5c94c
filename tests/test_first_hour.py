"""The first hour, followed line by line in a folder outside of the repository."""

import os
import re
import subprocess
from functools import partial
from pathlib import Path

import pytest
from tutorials import Tutorial

from analysis import records
from estimators import Exact
from tasks import check_task
from tasks.datasets import load_dataset

ROOT = Path(__file__).parents[1]
PAGE = Tutorial("first_hour.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first_hour")
    PAGE.write_files(folder)
    return folder


@pytest.mark.slow
def test_every_command_does_what_the_page_says(folder):
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    said = PAGE.run(folder, own | {"REPO": str(ROOT), "OMP_NUM_THREADS": "1"})
    _, status, _, table, _, bits, figure = said
    assert "6 runs: 6 finished" in status and "10 runs: 10 finished" in table
    assert all(word in table for word in ("variance_normalisation=false", "=true", "constant_baseline", "rloo"))
    assert "4 runs: 4 finished" in bits and "exclusive_or" in bits
    assert "figure1.pdf" in figure and (folder / "figure1.pdf").read_bytes().startswith(b"%PDF")
    frame = records.load(folder / "runs")
    constants = frame.groupby(["sweep", "estimator"])["estimator.constant"].unique()
    assert set(constants["mine", "constant_baseline"]) == {20.0, 30.0}
    assert set(constants["bits", "constant_baseline"]) == {0.5}
    assert set(frame["task"]) == {"vae_bernoulli", "exclusive_or"}


def test_the_task_keeps_the_contract():
    namespace: dict[str, object] = {}
    (source,) = (block for block in PAGE.blocks("python") if "ExclusiveOr" in block)
    exec(source, namespace)
    check_task(partial(namespace["ExclusiveOr"]), load_dataset("none"), exact=Exact())  # type: ignore[arg-type]


def test_the_environment_is_activated_by_a_line_that_make_prints_and_the_pages_have():
    """In a terminal of one's own ``python`` is not that of ``.venv``: each page that calls it says so first."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "VENV"))}
    printed = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, env=env).stdout
    (line,) = re.findall(r"activate the environment: +(\S+ \S+)\"", printed)
    assert line == ". .venv/bin/activate"
    for page in (ROOT / "README.md", ROOT / "docs" / "first_hour.md"):
        text = page.read_text()
        assert text.index(line) < re.search(r"^(PYTHONPATH=\S+ )?python ", text, re.M).start()
