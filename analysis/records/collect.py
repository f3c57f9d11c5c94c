"""From run records to the long frame, fast: metrics are parsed by pyarrow, and what was read is kept beside the runs.

A sweep's folder gets one file, ``.frame.parquet``, with the metrics of its runs and, in the metadata, what is constant
over each run and the times, sizes and inodes of the files that it was read from. A run whose files differ in one of
these is read, and its seals are checked, again; a file that cannot be read, that other code wrote or that holds
something else is ignored. It may be deleted at any time, need not be writable, and is replaced atomically, so that
several processes may load one sweep at once.

With and without that file the frame is the same, since both ways lead through the same :class:`Piece` per run.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from analysis import defaults
from analysis.records import files, format, seals
from analysis.records.format import BASKET, CONFIG, FACTS, METRICS, RESULT, STATUS, DamagedRecord

FILE = ".frame.parquet"
WORTH = 1 << 20
"""Fewer bytes of records than this are read anew each time: that takes less time than to keep them takes space."""
MOST = 1 << 31
"""Most bytes of the file that is kept."""
SETTLED = 2.0
"""A file that was changed less than these seconds ago may change again within its clock's tick: it is not kept."""

Key = list[tuple[int, int, int, int] | None]


@dataclass(frozen=True)
class Piece:
    """One run, or one of its older results, as it was read.

    ``facts``: the roles of its options (:func:`analysis.records.format.read_facts`). ``rows`` has the column ``step``
    (int64) and one float64 column for each metric, at least one row (one without a step if the run has none). A metric
    that is not a number in every row is a column of JSON text instead.
    """

    constants: dict[str, Any]
    facts: dict[str, Any]
    rows: pa.Table
    key: Key

    def numeric(self) -> bool:
        """Whether all metrics are numbers; only then it can be kept."""
        return all(pa.types.is_floating(kind) for kind in self.rows.schema.types[1:])


def collect(path: Path, superseded: bool = False, compact: bool = False) -> pd.DataFrame:
    """The frame of :func:`analysis.records.load`; damaged records stand in ``attrs["damaged"]``, nothing is warned.

    ``compact``: what is constant over runs takes a fraction of the memory, as categories and as read-only views of one
    value; it is not to be written to.
    """
    runs = format.find_runs(path)
    if not runs:
        raise FileNotFoundError(f"no runs at {path}: expected a run directory, a sweep, or a folder of sweeps")
    pieces: list[Piece] = []
    paths: list[Path] = []
    damaged: list[str] = []
    for folder, group in groupby(runs, key=lambda run: run.parent):
        members = list(group)
        kept = {} if members == [path] else read_cache(folder)
        read: dict[str, Piece] = {}
        fresh = 0
        for run in (each for member in members for each in (member, *format.older_results(member))):
            key = _key(run)
            name = str(run.relative_to(folder))
            piece = kept.get(name)
            if piece is None or piece.key != key:
                try:
                    piece = read_piece(run, key)
                except DamagedRecord as error:
                    damaged.append(str(error))
                    continue
                fresh += sum(size for _, _, size, _ in filter(None, key))
            read[name] = piece
            paths.append(run)
        pieces += read.values()
        if fresh > WORTH and members != [path]:
            write_cache(folder, read)
    if not superseded:
        pieces, paths = _latest(pieces, paths)
    frame = assemble(pieces, paths, compact)
    frame.attrs["damaged"] = damaged
    return frame


def _latest(pieces: Sequence[Piece], paths: Sequence[Path]) -> tuple[list[Piece], list[Path]]:
    """Without the older results that were evaluated otherwise than their run is now."""
    now = {path: _evaluation(piece) for piece, path in zip(pieces, paths, strict=True)}
    kept = [
        (piece, path)
        for piece, path in zip(pieces, paths, strict=True)
        if now.get(_run_of(path), _evaluation(piece)) == _evaluation(piece)
    ]
    return [piece for piece, _ in kept], [path for _, path in kept]


def _evaluation(piece: Piece) -> dict[str, Any]:
    options: dict[str, Any] = piece.facts["options"].get("evaluates", {})
    return options


def _run_of(path: Path) -> Path:
    """The run's directory, of one of its older results, too."""
    return path.parents[1] if path.parent.name == format.OLDER else path


def read_piece(run: Path, key: Key) -> Piece:
    """Read one run. Raises :class:`DamagedRecord`."""
    contents: dict[str, bytes] = {}
    constants, facts, last = format.read_constants(run, contents)
    rows = read_rows(run / METRICS, contents.get(METRICS))
    if last is not None and rows.column("step")[-1].as_py() != last:
        raise DamagedRecord(f"{run / METRICS}: rows of the finished run are missing")
    return Piece(constants, facts, rows, key)


def read_rows(path: Path, content: bytes | None = None) -> pa.Table:
    """The rows of a metrics file, or of its ``content``, as in :class:`Piece`. Raises :class:`DamagedRecord`.

    What is not, line by line, one flat object of numbers and nulls by rising step is left to
    :func:`analysis.records.read_metrics`, which names what is wrong; so is a torn last line. (What nests must not get
    to pyarrow, whose parser overflows its stack.)
    """
    if content is None:
        try:
            content = files.read(path, files.ROWS)
        except FileNotFoundError:
            content = b""
    lines = content.count(b"\n")
    if _is_one_object_a_line(content):
        try:
            options = pa.json.ReadOptions(use_threads=False, block_size=len(content))
            table = pa.json.read_json(pa.BufferReader(content), read_options=options)
            if table.num_rows == lines and (rows := _numbers(table)) is not None:
                return rows
        except (pa.ArrowException, ValueError):
            pass
    return _from_objects(format.parse_rows(path, content))


def _is_one_object_a_line(content: bytes) -> bool:
    """Whether every line is ``{...}`` with no other bracket in it."""
    letters = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(letters == ord("\n"))
    if not len(ends) or ends[-1] != len(letters) - 1 or len(letters) < 2:
        return False
    begins = np.concatenate([[0], ends[:-1] + 1])
    return bool(
        (letters[begins] == ord("{")).all()
        and (letters[ends - 1] == ord("}")).all()
        and content.count(b"{") == content.count(b"}") == len(ends)
        and b"[" not in content
    )


def _numbers(table: pa.Table) -> pa.Table | None:
    """``table`` with float64 metrics, or ``None`` if it has anything but numbers and strictly rising steps."""
    if "step" not in table.column_names or table.column("step").type != pa.int64():
        return None
    step = table.column("step")
    if step.null_count or (np.diff(step.to_numpy()) <= 0).any():
        return None
    columns = {"step": step}
    for name in table.column_names:
        if name != "step":
            kind = table.column(name).type
            if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
                return None
            columns[name] = table.column(name).cast(pa.float64(), safe=False)
    return pa.table(columns)


def _from_objects(rows: list[dict[str, Any]]) -> pa.Table:
    columns: dict[str, Any] = {"step": pa.array([row["step"] for row in rows] or [None], pa.int64())}
    for name in dict.fromkeys(name for row in rows for name in row if name != "step"):
        values = [row.get(name) for row in rows]
        if any(isinstance(value, (bool, str, list, dict)) for value in values):
            columns[name] = pa.array([None if value is None else json.dumps(value) for value in values], pa.string())
        else:  # by way of text a number beyond float64 is infinite, as it is to pyarrow
            numbers = [None if value is None else float(str(value)) for value in values]
            columns[name] = pa.array(numbers, pa.float64())
    return pa.table(columns)


def assemble(pieces: Sequence[Piece], paths: Sequence[Path], compact: bool = False) -> pd.DataFrame:
    """The long frame of the runs ``pieces`` at ``paths``; ``compact`` as in :func:`collect`."""
    if not pieces:
        empty = pd.DataFrame(columns=["run", "step", "status", "error"])
        empty.attrs |= {"roles": {}, "unmapped": []}
        return empty
    places = [{"sweep": _run_of(path).parent.name, "path": str(path)} for path in paths]
    constants = pd.DataFrame([{**piece.constants, **place} for piece, place in zip(pieces, places, strict=True)])
    for name in ("error", *format.COSTS):  # none of the runs may have got that far
        if name not in constants:
            constants[name] = None
    of_run = np.repeat(np.arange(len(pieces)), [piece.rows.num_rows for piece in pieces])
    metrics = _metrics(pieces)
    shared = [name for name in metrics if name in constants]
    for name in shared:
        metrics[name] = _else(metrics[name], constants[name].take(of_run).reset_index(drop=True))
    constants = constants.drop(columns=shared)
    if compact:
        spread = {name: _spread(constants[name], of_run) for name in constants}
        frame = pd.DataFrame({**spread, **{name: metrics[name] for name in metrics}}, copy=False)
    else:
        frame = pd.concat([constants.take(of_run).reset_index(drop=True), metrics], axis=1)
    frame.attrs |= {"roles": _roles(pieces, frame), "unmapped": _unmapped(pieces)}
    return frame


def _spread(values: pd.Series, of_run: NDArray[np.intp]) -> Any:
    """``values``, one for each run, for each row."""
    if pd.api.types.is_string_dtype(values.dropna()) and values.notna().any():
        codes, texts = pd.factorize(values, sort=True)
        return pd.Categorical.from_codes(codes.astype(np.int32).take(of_run), categories=texts)
    array = values.to_numpy()
    if len(set(map(repr, array))) == 1:
        return np.broadcast_to(array[:1], len(of_run))
    return array.take(of_run)


def _unmapped(pieces: Sequence[Piece]) -> list[str]:
    """What cannot be told of records of older code, in words."""
    sentences = []
    if old := sum(bool(piece.facts.get("legacy")) for piece in pieces):
        sentences.append(
            f"{old} runs were recorded by older code, which did not say what its options are for: they are told by "
            "their names, an option that was added since stands at its default, and the name of a run is not that of "
            "the same run today, so a sweep trains it again"
        )
    if by_size := sum(piece.facts.get("sealed") in ("size", "none") for piece in pieces):
        sentences.append(
            f"{by_size} results of older code are sealed by size only, if at all: an edit of their numbers that keeps "
            "the size of the file is not noticed"
        )
    return sentences


def _roles(pieces: Sequence[Piece], frame: pd.DataFrame) -> dict[str, str]:
    roles = dict.fromkeys(
        ("run", "identity", "sweep", "path", "status", "error", "primary", "primary_sign", "family"), "record"
    )
    roles |= dict.fromkeys(format.COSTS, "cost")
    for piece in pieces:
        roles |= {
            format.column_of(option): role for role, options in piece.facts["options"].items() for option in options
        }
    roles |= {name: "protocol" for name in map(str, frame) if name.startswith("protocol.")}
    metrics = {name for piece in pieces for name in piece.rows.column_names}
    roles |= dict.fromkeys(metrics, "metric")
    return {name: roles.get(name, "trains") for name in map(str, frame)}


def _metrics(pieces: Sequence[Piece]) -> pd.DataFrame:
    tables = [piece.rows for piece in pieces]
    names = list(dict.fromkeys(name for table in tables for name in table.column_names))
    texts = {field.name for table in tables for field in table.schema if pa.types.is_string(field.type)}
    numbers = [table.drop_columns(sorted(texts & set(table.column_names))) for table in tables] if texts else tables
    table = pa.concat_tables(numbers, promote_options="default")
    floats = np.empty((len(table.column_names) - 1, table.num_rows))
    for place, name in enumerate(table.column_names[1:]):
        floats[place] = table.column(name).to_numpy()
    metrics = pd.DataFrame(floats.T, columns=table.column_names[1:], copy=False)
    metrics.insert(0, "step", table.column("step").to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get))
    for name in texts:
        metrics[name] = pd.Series([value for rows in tables for value in _values(rows, name)], dtype=object)
    return metrics[names]


def _values(rows: pa.Table, name: str) -> list[Any]:
    if name not in rows.column_names:
        return [None] * rows.num_rows
    values = rows.column(name).to_pylist()
    text = pa.types.is_string(rows.schema.field(name).type)
    return [json.loads(value) if text and value is not None else value for value in values]


def _else(metric: pd.Series, constant: pd.Series) -> pd.Series:
    """The metric and, in rows without it, the constant of the same name."""
    try:
        constant = pd.to_numeric(constant)
    except (TypeError, ValueError):
        metric, constant = metric.astype(object), constant.astype(object)
    return metric.where(metric.notna(), constant)


def _key(run: Path) -> Key:
    """What tells whether a file was touched, of each file that is read and checked; ``None`` for one that is missing.

    Times of change of the content [ns] and of the file [ns], which ``touch`` cannot set back, size [bytes], inode.
    """
    key: Key = []
    for name in (CONFIG, FACTS, METRICS, BASKET, STATUS, RESULT):
        try:
            stat = os.lstat(f"{run}/{name}")
            key.append((stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino))
        except OSError:
            key.append(None)
    return key


@cache
def _reader() -> str:
    """What tells files that other code wrote: a digest of the code that reads records and of the defaults it knows."""
    code = b"".join(Path(file).read_bytes() for file in (__file__, format.__file__, seals.__file__, defaults.FILE))
    return hashlib.sha256(code).hexdigest()


def read_cache(folder: Path) -> dict[str, Piece]:
    """The kept pieces of runs that are as they were, by name; none if there is no file that this code wrote.

    Numbers are read only if some run is as it was, which it is nowhere but where the file was written.
    """
    try:
        with files.opened(folder / FILE, MOST) as file:
            kept = parquet.ParquetFile(file, page_checksum_verification=True)
            metadata = kept.schema_arrow.metadata
            if metadata[b"reader"] != _reader().encode() or metadata[b"crc"] != b"%d" % zlib.crc32(metadata[b"runs"]):
                return {}
            runs = json.loads(metadata[b"runs"])
            for run in runs:
                run["key"] = [tuple(stat) if stat else None for stat in run["key"]]
            if not any(run["key"] == _key(folder / run["name"]) for run in runs):
                return {}
            return dict(_pieces(kept.read().replace_schema_metadata(), runs))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError, pa.ArrowException):
        return {}


def _pieces(table: pa.Table, runs: list[dict[str, Any]]) -> Iterator[tuple[str, Piece]]:
    start = 0
    for run in runs:
        rows = table.select(run["columns"]).slice(start, run["rows"])
        start += run["rows"]
        yield run["name"], Piece(run["constants"], run["facts"], rows, run["key"])


def write_cache(folder: Path, pieces: dict[str, Piece]) -> None:
    """Keep the pieces of the sweep in ``folder``, but those that :class:`Piece` excludes or that are just changing."""
    newest = (time.time() - SETTLED) * 1e9
    kept = [
        (name, piece)
        for name, piece in pieces.items()
        if piece.numeric() and all(max(stat[:2]) < newest for stat in piece.key if stat)
    ]
    if not kept:
        return
    runs = json.dumps(
        [
            {
                "name": name,
                "constants": piece.constants,
                "facts": piece.facts,
                "key": piece.key,
                "columns": piece.rows.column_names,
                "rows": piece.rows.num_rows,
            }
            for name, piece in kept
        ]
    ).encode()
    metadata = {"reader": _reader(), "crc": str(zlib.crc32(runs)), "runs": runs}
    table = pa.concat_tables([piece.rows for _, piece in kept], promote_options="default").replace_schema_metadata(
        metadata
    )
    buffer = pa.BufferOutputStream()
    parquet.write_table(table, buffer, compression="lz4", use_dictionary=False, write_page_checksum=True)
    with suppress(OSError):  # a folder that is read-only, or a full disk: the frame is there all the same
        format.write_atomically(folder / FILE, buffer.getvalue())
