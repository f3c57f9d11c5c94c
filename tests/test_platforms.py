"""Linux and macOS train; where Windows lacks what that takes, the estimators and the analysis do without."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import torch

from training.pack import memory

ROOT = Path(__file__).parents[1]
POSIX_ONLY = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "readline"}


def modules(folder):
    """What is imported at the top of a folder's files."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            yield from ((path.relative_to(ROOT).as_posix(), node, name.partition(".")[0]) for name in names)


def test_what_windows_has_none_of_is_imported_for_training_only():
    found = {(path, name) for folder in ("estimators", "tasks", "analysis") for path, _, name in modules(folder)}
    assert len(found) > 100 and not {(path, name) for path, name in found if name in POSIX_ONLY}


def test_without_what_windows_lacks():
    """Libraries that work on Windows are imported first: here they may use what is there."""
    code = "import sys, signal, torch, scipy.stats, pandas, pyarrow.parquet, pyarrow.json, plotly\n"
    code += "import matplotlib.style, matplotlib.figure, pooch, yaml\n"
    code += f"sys.modules.update(dict.fromkeys({sorted(POSIX_ONLY - {'posix'})}))\ndel signal.SIGUSR2, signal.SIGKILL\n"
    code += "import estimators, estimators.check, tasks, analysis.command, analysis.figures.curves, analysis.report\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_training_says_that_it_needs_another_system():
    for module in ("training.sweep.run", "training.status", "training.basket"):
        code = f"import sys, os; sys.platform = 'win32'; import {module}"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and done.stderr.startswith("error: training needs Linux or macOS")
        assert done.stderr.count("\n") == 1
    assert "on Linux or macOS" in (ROOT / "README.md").read_text()


def test_memory_where_the_kernel_does_not_tell(monkeypatch):
    """As on macOS: neither /proc nor control groups. A pack is no larger than the machine's memory holds."""

    def nothing(path, *arguments, **options):
        raise FileNotFoundError(str(path))

    monkeypatch.setattr(Path, "read_text", nothing)
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert memory.free_bytes(torch.device("cpu")) == total
    config = {"workers": 1}
    monkeypatch.setattr(memory, "_peak", lambda config, replicas, device: replicas * memory.USABLE * total / 3)
    assert memory.largest_pack([config] * 8, torch.device("cpu")) == 3
