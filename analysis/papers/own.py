"""Which experiment wrote a sweep, and the papers' own figures: the ``draw`` of the module that has its name."""

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
    """``draw`` of the experiments that wrote ``sweeps``, by the sweep's name (see :func:`names`)."""
    found = {}
    for sweep in dict.fromkeys(sweeps):
        for name in names(sweep):
            module = f"{papers.__name__}.{name}"
            if name.isidentifier() and find_spec(module) and hasattr(import_module(module), "draw"):
                found[sweep] = import_module(module).draw
                break
    return found


def names(sweep: str) -> list[str]:
    """What the experiment that wrote ``sweep`` may be called, the most likely first: a sweep has its experiment's name,
    with that of a budget behind it (``jang_table1_cpu``)."""
    parts = sweep.split("_")
    return ["_".join(parts[:count]) for count in range(len(parts), 0, -1)]
