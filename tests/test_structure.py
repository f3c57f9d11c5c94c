"""The arrows between folders point one way, and rooms are small."""

import ast
import re
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
            "analysis.statistics",
            "analysis.statistics.variance",
        }


def test_only_config_knows_hydra():
    knowing = {
        path.relative_to(ROOT).parts[:2]
        for path in [*(ROOT / "training").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")]
        if {"hydra", "omegaconf"} & {name.split(".")[0] for name in imports(path)}
    }
    assert knowing == {("training", "config")}


def module_graph():
    """Every module of ours and those that it imports, at its top or within a function."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for folder in MAY_IMPORT
        for path in (ROOT / folder).rglob("*.py")
    }
    graph = {}
    for module, path in paths.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                submodules = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= submodules & paths.keys() or {node.module}
        graph[module] = found & paths.keys() - {module}
    return graph


def test_no_module_imports_itself_by_way_of_others():
    """Also where an import stands within a function: a circle that is hidden is one."""
    left = module_graph()
    while free := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in free:
            del left[module]
    assert not left


def test_rooms_are_small():
    """But ``estimators/``: a file for each published method, listed by family in its ``__init__``."""
    for folder in ("training", "analysis", "tasks"):
        for room in {path.parent for path in (ROOT / folder).rglob("*.py")}:
            assert len(list(room.glob("*.py"))) <= 13, room


def test_nothing_is_built_from_a_config_but_by_targets():
    """Hydra's own ``instantiate`` builds whatever is nested in a config."""
    for folder in MAY_IMPORT:
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert not re.search(r"hydra\.utils|instantiate\(|get_class\(|pickle\.load|weights_only=False", text), path
            assert "import_module(" not in text or path.name in ("targets.py", "check.py", "peers.py", "own.py"), path
