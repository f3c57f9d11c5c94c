"""What is handed out: wheel, sdist, metadata, types, and what an import costs. ``make matrix`` installs them."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import matrix
import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The sdist and the wheel that is made of it, built from a copy without isolation: no index is asked."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path_factory.mktemp("package") / "source"
    source.mkdir()
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in ("estimators", "tasks", "training", "tests"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    built = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", str(source)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[-1000:]
    return source / "dist"


def test_the_wheel_holds_the_estimators_only(dist):
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "estimators").glob("*.py")}
    assert {name for name in names if ".dist-info/" not in name} == sources | {"estimators/py.typed"}
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        folders = {name.split("/")[1] for name in files.getnames() if "/" in name}
    assert "estimators" in folders and not {"tests", "tasks", "training"} & folders


def test_twine_accepts_both(dist):
    pytest.importorskip("twine")
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, sorted(dist.iterdir()))]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0 and checked.stdout.count("PASSED") == 2, checked.stdout


def test_the_metadata_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    holder = re.search(r"Copyright \(c\) \d+ (.*)", (ROOT / "LICENSE").read_text())[1]
    assert [author["name"] for author in citation["authors"]] == [holder]
    assert [author["name"] for author in PROJECT["authors"]] == [holder]
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    assert citation["title"].startswith(PROJECT["name"]) and citation["title"].endswith(PROJECT["description"][1:])
    lowest = ".".join(map(str, matrix.oldest()))
    versions = [name.rsplit(" ", 1)[1] for name in PROJECT["classifiers"] if "Python :: 3." in name]
    assert versions[0] == lowest and f"Python {lowest} or newer" in (ROOT / "README.md").read_text()


def test_lowest_versions():
    assert matrix.lowest(["torch>=2.6", "hydra-core>=1.3.8,<1.5"]) == ["torch==2.6", "hydra-core==1.3.8"]
    for requirements in (PROJECT["dependencies"], PROJECT["optional-dependencies"]["harness"]):
        assert len(matrix.lowest(requirements)) == len(requirements)
    with pytest.raises(AssertionError, match="without a lower bound"):
        matrix.lowest(["torch"])
    assert sys.version_info[:2] in matrix.interpreters()


def test_a_users_types():
    """With the project's settings and their cache, which ``make lint`` leaves: torch takes a while to read."""
    command = [sys.executable, "-m", "mypy", "tests/typed_user.py"]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_an_import_loads_nothing_but_torch_and_our_own_files():
    code = "import sys, torch; known = set(sys.modules); import estimators; print(*set(sys.modules) - known)"
    code += matrix.GRADIENT.format(folder=str(ROOT))
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    first, seconds = loaded.stdout.splitlines()
    assert re.fullmatch(r"torch .*, imported in [\d.]+ s, estimators in [\d.]+ s more", seconds)
    modules = first.split()
    assert len(modules) > 30 and {name.split(".")[0] for name in modules} == {"estimators"}
    assert not {"estimators.check", "estimators.certificate"} & set(modules)
