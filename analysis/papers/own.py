"""The papers' own figures: the ``draw`` of the module that has an experiment's name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import pandas as pd

from analysis import papers

Draw: TypeAlias = Callable[[pd.DataFrame, Path], list[Path]]


def of_sweeps(sweeps: Iterable[str]) -> dict[str, Draw]:
    """``draw`` of the experiments that wrote ``sweeps``, by name: an experiment's sweep has its name."""
    found = {}
    for name in dict.fromkeys(sweeps):
        module = f"{papers.__name__}.{name}"
        if name.isidentifier() and find_spec(module) and hasattr(import_module(module), "draw"):
            found[name] = import_module(module).draw
    return found
