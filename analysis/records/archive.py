"""Records in one file, to be moved to another machine: ``SWEEP/RUN/...`` without checkpoints, as ``.tar.gz``.

What leaves a checkpoint out is still a sound record (:data:`analysis.records.format.BESIDE`), but not one that training
goes on from.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from analysis.records import files
from analysis.records.format import (
    BASKET,
    CONFIG,
    FACTS,
    IMAGES,
    LOG,
    METRICS,
    OVERRIDES,
    RESULT,
    STATUS,
    find_runs,
    older_results,
)

MOVED = (CONFIG, OVERRIDES, FACTS, METRICS, BASKET, STATUS, IMAGES, LOG, RESULT)
"""The files of a record that are moved, in this order: a result is written last."""
MOST, LARGEST = 2_000_000, 64 * files.MEGABYTE
"""Of an archive the most files, and the most bytes of one."""


def pack(sweeps: Iterable[Path], archive: Path) -> int:
    """Write the records of the runs in the folders ``sweeps`` into ``archive``, whole or not at all; returns how many.

    Raises ``FileNotFoundError`` if there is none.
    """
    runs = [run for sweep in sweeps for run in find_runs(sweep)]
    if not runs:
        raise FileNotFoundError("there are no runs to pack")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(archive) as temporary, tarfile.open(temporary, "w:gz", compresslevel=6) as tar:
        for run in runs:
            for place in (*older_results(run), run):
                for name in MOVED:
                    if (place / name).is_file():
                        tar.add(
                            place / name,
                            str(PurePosixPath(run.parent.name, *(place / name).relative_to(run.parent).parts)),
                        )
    return len(runs)


def unpack(archive: Path, folder: Path) -> int:
    """Write the records in ``archive`` into ``folder``; returns how many runs. A run that is there already stays.

    Raises :class:`~analysis.records.DamagedRecord`, and nothing is written, if it is not whole (a transfer that broke
    off), or holds anything but records; :class:`OSError` if it cannot be read.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            members = list(_checked(archive, tar))
            _read_to_the_end(archive, tar)
            new = {run for run in {_run(member) for member in members} if not (folder / run).exists()}
            for member in members:
                if _run(member) in new:
                    content = tar.extractfile(member)
                    assert content is not None  # it is a file
                    files.write_atomically(_made(folder / member.name), content.read())
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise files.DamagedRecord(f"{archive}: no archive of records that is whole ({error})") from None
    return len(new)


def _read_to_the_end(archive: Path, tar: tarfile.TarFile) -> None:
    """:mod:`tarfile` takes a damaged header for the end of the archive, and does not come to the checksum of all."""
    assert tar.fileobj is not None  # it is open
    tar.fileobj.seek(tar.offset)
    while block := tar.fileobj.read(files.MEGABYTE):
        if block.strip(b"\0"):
            raise files.DamagedRecord(f"{archive}: no archive of records that is whole; nothing was unpacked")


def _made(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def _run(member: tarfile.TarInfo) -> str:
    """``SWEEP/RUN``."""
    return "/".join(PurePosixPath(member.name).parts[:2])


def _checked(archive: Path, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    names = {PurePosixPath(name).parts for name in MOVED}
    for number, member in enumerate(tar):
        sweep, *rest = PurePosixPath(member.name).parts or ("",)
        of_run = tuple(rest[1:])
        older = of_run[2:] if of_run[:1] == ("results",) else of_run
        named = sweep not in ("/", "..") and ".." not in rest and older in names
        if number >= MOST or not member.isfile() or member.size > LARGEST or not named:
            raise files.DamagedRecord(f"{archive}: {member.name!r} is no file of a record; nothing was unpacked")
        yield member
