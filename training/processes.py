"""Processes of a sweep: each runs the code that its parent runs, whatever lies in the current folder.

``python -m MODULE`` looks in the current folder before anywhere else: a copy of ``estimators/`` or a ``yaml.py`` there
would be executed instead. :func:`python` starts a module with the folder of this code in that place.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parent.parent
"""The folder of the code that runs."""


def python(folder: Path | None = None) -> list[str]:
    """The command that ``-m MODULE ARGUMENTS`` is added to; ``folder``: where the process then works."""
    return [sys.executable, str(ROOT / "training" / "start.py"), *([str(folder)] if folder else [])]
