"""Run records: how a run is stored on disk (:mod:`analysis.records.format`), and all runs as one frame."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.records.format import (
    BASKET,
    BESIDE,
    CHECKPOINT,
    CONFIG,
    COSTS,
    FACTS,
    IMAGES,
    LOG,
    LOGGERS,
    METRICS,
    OVERRIDES,
    REPLAYED,
    RESULT,
    SEALED,
    STATUS,
    STATUSES,
    DamagedRecord,
    ForeignRecord,
    RunRecord,
    Target,
    UnreadableRecord,
    find_runs,
    flat_config,
    read_config,
    read_constants,
    read_metrics,
    read_overrides,
    read_rows,
    write_atomically,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "BASKET",
    "BESIDE",
    "SEALED",
    "CHECKPOINT",
    "CONFIG",
    "COSTS",
    "IMAGES",
    "LOG",
    "LOGGERS",
    "METRICS",
    "OVERRIDES",
    "RESULT",
    "STATUS",
    "STATUSES",
    "FACTS",
    "REPLAYED",
    "DamagedRecord",
    "ForeignRecord",
    "UnreadableRecord",
    "RunRecord",
    "Target",
    "find_runs",
    "flat_config",
    "read_config",
    "read_constants",
    "read_metrics",
    "read_overrides",
    "read_rows",
    "write_atomically",
    "load",
    "load_basket",
]


def load(path: str | Path, superseded: bool = False) -> pd.DataFrame:
    """Load a run, a sweep or a folder of sweeps as one long frame.

    Returns a row per run and evaluated step with the columns ``run``, ``sweep``, ``path``, ``step``, ``status``,
    ``error``, the config's fields (``estimator``, ``task``, ``data``, ``seed``, ``optimizer.lr``, ...; those younger
    than the record at their defaults), ``identity`` (a hash of what trains, with these), the protocol (``protocol.*``),
    costs, and the metrics (float64; a missing one is NaN). A run without rows (queued, or failed early) stands in one
    row with ``step`` missing. A run that went on after it was finished has a result for each number of steps, which
    stand in the frame like runs of their own (``path`` is that of the result), if they were evaluated as the run is
    now; ``superseded`` asks for the others, too.

    ``frame.attrs["roles"]`` tells what a column is: an option that ``trains``, ``lasts``, ``evaluates``, ``watches`` or
    ``places``, ``protocol``, ``cost``, ``metric``, or ``record``. Damaged records are warned of by name, left out, and
    listed in ``frame.attrs["damaged"]``; what could not be told of records of older code is warned of, too, and listed
    in ``frame.attrs["unmapped"]``. What was read is kept in a file beside the runs (:mod:`analysis.records.collect`).

    Raises ``FileNotFoundError`` if ``path`` holds no run at all.
    """
    from analysis.records.collect import collect

    frame = collect(Path(path), superseded)
    for sentence in frame.attrs["damaged"]:
        warnings.warn(f"left out: {sentence}", stacklevel=2)
    for sentence in frame.attrs["unmapped"]:
        warnings.warn(sentence, stacklevel=2)
    return frame


def load_basket(path: str | Path) -> pd.DataFrame:
    """What the runs at ``path`` measured with a basket: a row per run, step and measured estimator.

    Columns: those of :func:`load` that are constant over a run (``estimator`` is the one that trains), ``step``, and
    what :mod:`training.gradients.watcher` writes: ``measured``, ``method``, ``variance``, ... Empty if there is none;
    damaged records are left out (:func:`load` names them).
    """
    import pandas as pd

    table: list[dict[str, Any]] = []
    for run in find_runs(Path(path)):
        try:
            if rows := RunRecord(run).basket():
                constants = {**read_constants(run)[0], "sweep": run.parent.name, "path": str(run)}
                table += [{**constants, **row} for row in rows]
        except DamagedRecord:
            continue
    return pd.DataFrame(table)
