"""The arrows between folders point one way, and the wheel holds the estimators only."""

import ast
import re
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
        assert used == {
            "analysis",
            "analysis.records",
            "analysis.defaults",
            "analysis.records.claims",
            "analysis.papers.published",
            "analysis.output",
        }


def test_nothing_is_built_from_a_config_but_by_targets():
    """Hydra's own ``instantiate`` builds whatever is nested in a config."""
    for folder in MAY_IMPORT:
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert not re.search(r"hydra\.utils|instantiate\(|get_class\(|pickle\.load|weights_only=False", text), path
            assert "import_module(" not in text or path.name in ("targets.py", "check.py", "peers.py"), path


def test_the_wheel_holds_the_estimators_only(tmp_path):
    """Built without isolation from a copy, so that no index is asked and the tree stays clean."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    for folder in ("estimators", "tasks", "training"):
        (source / folder).mkdir()
        for path in (ROOT / folder).glob("*.py"):
            (source / folder / path.name).write_bytes(path.read_bytes())
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(source)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[-1000:]
    (wheel,) = (source / "dist").glob("*.whl")
    assert {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist() if ".dist-info" not in name} == {
        "estimators"
    }
