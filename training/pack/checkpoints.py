"""Checkpoints: a run's training state on disk, replaced atomically and loaded without running any code from it."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import torch

from analysis.records import CHECKPOINT, DamagedRecord, RunRecord, write_atomically
from training.pack.pack import Pack


def save(pack: Pack, members: Iterable[tuple[int, RunRecord]]) -> None:
    """Write the state of some replicas, given with their records."""
    for replica, record in members:
        buffer = io.BytesIO()
        rows = record.rows_at(pack.step)
        torch.save({**pack.state(replica), "run": record.path.name, "rows": rows}, buffer)
        write_atomically(record.path / CHECKPOINT, buffer.getvalue())


def load(record: RunRecord) -> tuple[dict[str, Any] | None, str | None]:
    """A run's state, or ``None`` if it must start from the beginning, and in words why, if there is a reason.

    A file that is no checkpoint (truncated, garbage, a pickle with code in it) is refused, and so is one of another
    run, and one whose metrics are no longer all there: going on would leave a hole in the record.
    """
    file = record.path / CHECKPOINT
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        return None, None
    except Exception as error:  # a truncated or foreign file raises many kinds
        return None, f"{file}: not a readable checkpoint ({type(error).__name__})"
    if not isinstance(state, dict) or state.get("run") != record.path.name:
        return None, f"{file}: is not a checkpoint of this run"
    step = state.get("step")
    if not isinstance(step, int) or step < 1:
        return None, f"{file}: is of step {step}"
    try:
        rows = record.rows_at(step)
    except DamagedRecord as error:
        return None, str(error)
    if rows != state.get("rows"):
        return None, f"{record.path}: the metrics have {rows} rows before step {step}, not {state.get('rows')}"
    return state, None
