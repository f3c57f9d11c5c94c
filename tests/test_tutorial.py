"""The tutorial, followed line by line in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "tutorial.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy with the two files that the tutorial writes, where it says so."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name in ("estimators", "tasks", "training", "analysis", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", folder)
    names = re.findall(r"^Put this into `(.*?)`:$", TEXT, re.M)
    contents = [*blocks("python"), *blocks("yaml")]
    assert len(names) == len(contents) == 2
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_text(content)
    return folder


@pytest.mark.slow
def test_every_command_of_the_tutorial_does_what_it_says(project):
    environment = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    said = []
    for block in blocks("sh"):
        for line in block.splitlines():
            command = line.replace("python", f'"{sys.executable}"', 1)
            done = subprocess.run(command, shell=True, cwd=project, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            said.append(done.stdout)
    check, _, table, basket = said
    assert "SelfCritical" in check and "FAIL" not in check
    assert "self_critical" in table and "12 runs: 12 finished" in table
    assert "self_critical" in basket
    assert (project / "runs" / "tutorial" / "report" / "learning_curves.png").exists()


def test_the_mistakes_that_the_tutorial_names_are_found(project, monkeypatch):
    from estimators import ContractError, check_estimator

    (source,) = blocks("python")
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
