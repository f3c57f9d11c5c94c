"""Processes of a sweep: each runs the code that its parent runs, whatever lies in the current folder.

``python -m MODULE`` looks in the current folder before anywhere else: a copy of ``estimators/`` or a ``yaml.py`` there
would be executed instead. :func:`python` starts a module with the folder of this code in that place.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).absolute().parent.parent
"""The folder of the code that runs."""


def python() -> list[str]:
    """The command that ``-m MODULE ARGUMENTS`` is added to."""
    return [sys.executable, str(ROOT / "training" / "start.py")]


def environment(options: dict[str, Any]) -> dict[str, str]:
    """What a process that trains needs in its environment."""
    return {"OMP_NUM_THREADS": str(options["threads"])}
