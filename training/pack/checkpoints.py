"""Checkpoints: a run's training state on disk, replaced atomically and loaded without running any code from it."""

from __future__ import annotations

import io
import zipfile
from typing import IO, Any

import torch

from analysis.records import BESIDE, CHECKPOINT, SEALED, DamagedRecord, RunRecord, files, write_atomically
from training.pack.pack import Pack

MOST_MEMBERS, OBJECTS = 100_000, 64 * files.MEGABYTE
"""Of a checkpoint's archive the most members, and the most bytes of what is not a tensor's."""


def save(pack: Pack, replica: int, record: RunRecord) -> None:
    """Write the state of one replica into its record, with what seals the rows before it."""
    buffer = io.BytesIO()
    torch.save({**pack.state(replica), "run": record.path.name, "rows": record.rows_before(pack.step)}, buffer)
    write_atomically(record.path / CHECKPOINT, buffer.getvalue())


def load(record: RunRecord) -> tuple[dict[str, Any] | None, str | None]:
    """A run's state, or ``None`` if it must start from the beginning, and in words why, if there is a reason.

    A file that is no checkpoint (truncated, garbage, a pickle with code in it) is refused, and so is one of another
    run, one that is not what a result sealed, and one whose metrics are no longer all there, or no longer what they
    were: going on would leave a hole, or somebody's numbers, in the record.
    """
    path = record.path / CHECKPOINT
    try:
        for changed in record.differences(*SEALED, CHECKPOINT):
            return None, str(changed)
        with files.opened(path, BESIDE[CHECKPOINT]) as file:
            _check(file)
            state = torch.load(file, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        return None, None
    except DamagedRecord as error:
        return None, str(error)
    except Exception as error:  # a truncated or foreign file raises many kinds
        return None, f"{path}: not a readable checkpoint ({type(error).__name__})"
    if not isinstance(state, dict) or state.get("run") != record.path.name:
        return None, f"{path}: is not a checkpoint of this run"
    if not isinstance(state.get("step"), int) or state["step"] < 1:
        return None, f"{path}: is of step {state.get('step')}"
    try:
        missed = record.missed(state)
    except DamagedRecord as error:
        missed = str(error)
    return (None, missed) if missed else (state, None)


def _check(file: IO[bytes]) -> None:
    """Raise ``ValueError`` for an archive that is larger than its file, or that holds more than tensors and numbers."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        objects = sum(member.file_size for member in members if "/data/" not in member.filename)
    if not stored or len(members) > MOST_MEMBERS or objects > OBJECTS:
        raise ValueError("not written by torch.save")
    file.seek(0)
