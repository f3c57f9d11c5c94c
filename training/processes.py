"""Processes of a sweep: each runs the code that its parent runs, whatever lies in the current folder.

``python -m MODULE`` looks in the current folder before anywhere else: a copy of ``estimators/`` or a ``yaml.py`` there
would be executed instead. :func:`python` starts a module with the folder of this code in that place.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
"""The folder of the code that runs."""

# Nothing but what is built in is imported before the path is right. Words before -m are options of the interpreter.
_START = (
    "import sys; sys.path = [{root!r}, *filter(None, sys.path)]; import os, runpy; {enter}"
    "word = sys.argv.index('-m') + 1; module = sys.argv[word]; sys.argv[: word + 1] = [module]; "
    "runpy.run_module(module, run_name='__main__', alter_sys=True)"
)


def python(folder: Path | None = None) -> list[str]:
    """The command that ``-m MODULE ARGUMENTS`` is added to; ``folder``: where the process then works."""
    return [sys.executable, "-c", _START.format(root=str(ROOT), enter=f"os.chdir({str(folder)!r}); " if folder else "")]
