"""The tutorial, followed line by line in a folder outside of the repository."""

import os
import subprocess
from pathlib import Path

import pytest
from tutorials import Tutorial

from analysis import records

ROOT = Path(__file__).parents[1]
PAGE = Tutorial("tutorial.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the two files that the tutorial writes, where it says so."""
    folder = tmp_path_factory.mktemp("tutorial")
    PAGE.write_files(folder)
    return folder


def in_git():
    return subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_every_command_of_the_tutorial_does_what_it_says(folder):
    """And leaves no trace in the repository, whose tests go through its estimators."""
    before = in_git()
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    check, _, table, basket = PAGE.run(folder, own | {"REPO": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert "SelfCritical" in check and "FAIL" not in check
    assert "self_critical" in table and "12 runs: 12 finished" in table
    assert "self_critical" in basket
    assert (folder / "runs" / "tutorial" / "report" / "learning_curves.png").exists()
    assert in_git() == before
    (code,) = {records.RunRecord(run).code().get("estimator") for run in folder.glob("runs/tutorial/self_critical-*")}
    assert code and code.startswith("self_critical ")


def test_the_mistakes_that_the_tutorial_names_are_found():
    from estimators import ContractError, check_estimator

    (source,) = PAGE.blocks("python")
    right = "losses + gradient_only((losses.detach() - baseline) * log_prob)"
    assert right in source
    for wrong, words in (
        ("losses + (losses.detach() - baseline) * log_prob", "value"),
        ("losses + gradient_only((losses - baseline) * log_prob)", "gradient"),
    ):
        namespace: dict[str, object] = {}
        exec(source.replace(right, wrong), namespace)
        with pytest.raises(ContractError, match=words):
            check_estimator(namespace["SelfCritical"]())  # type: ignore[operator]
