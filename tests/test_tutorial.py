"""The tutorial, followed line by line in a copy of the project."""

import os
import shutil
from pathlib import Path

import pytest
from tutorials import Tutorial

ROOT = Path(__file__).parents[1]
PAGE = Tutorial("tutorial.md")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy with the two files that the tutorial writes, where it says so."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name in ("estimators", "tasks", "training", "analysis", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", folder)
    PAGE.write_files(folder, "python", "yaml")
    return folder


@pytest.mark.slow
def test_every_command_of_the_tutorial_does_what_it_says(project):
    environment = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    check, _, table, basket = PAGE.run(project, environment)
    assert "SelfCritical" in check and "FAIL" not in check
    assert "self_critical" in table and "12 runs: 12 finished" in table
    assert "self_critical" in basket
    assert (project / "runs" / "tutorial" / "report" / "learning_curves.png").exists()


def test_the_mistakes_that_the_tutorial_names_are_found(project, monkeypatch):
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
