"""The arrows between folders point one way, and the wheel holds the estimators only."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"estimators", "tasks", "training", "analysis", "conf"}
MAY_IMPORT = {
    "estimators": set(),
    "tasks": set(),
    "training": {"estimators", "tasks", "analysis", "conf"},
    "analysis": set(),
}
FORBIDDEN = {
    "analysis": {"torch"},
    "estimators": {"numpy", "pandas", "hydra", "omegaconf"},
    "tasks": {"hydra", "omegaconf"},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_arrows_point_one_way(folder):
    for path in (ROOT / folder).rglob("*.py"):
        roots = {name.split(".")[0] for name in imports(path)}
        assert (roots & FOLDERS) - {folder} <= MAY_IMPORT[folder], path
        assert not roots & FORBIDDEN.get(folder, set()), path
    if folder == "training":
        used = {name for path in (ROOT / folder).rglob("*.py") for name in imports(path) if name.startswith("analysis")}
        assert used == {"analysis.records", "analysis.records.claims", "analysis.papers.published"}


def test_instantiate_is_called_in_one_place():
    callers = [
        path.name
        for folder in ("estimators", "tasks", "training", "analysis", "hydra_plugins")
        for path in (ROOT / folder).rglob("*.py")
        if "utils.instantiate(" in path.read_text()
    ]
    assert callers == ["pack.py"]


def test_the_wheel_holds_the_estimators_only(tmp_path):
    """Built without isolation from a copy, so that no index is asked and the tree stays clean."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for folder in ("estimators", "tasks", "training"):
        (source / folder).mkdir()
        for path in (ROOT / folder).rglob("*.py"):
            copy = source / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(source)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[-1000:]
    (wheel,) = (source / "dist").glob("*.whl")
    assert {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist() if ".dist-info" not in name} == {
        "estimators"
    }


def test_no_file_is_too_long():
    for path in ROOT.rglob("*.py"):
        if ".venv" not in path.parts:
            assert len(path.read_text().splitlines()) <= 400, path
