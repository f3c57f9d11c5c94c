"""``python -m analysis.verify PATH``: is every record what it was when its run ended?

=============  ==========================================================================================
``sound``      the result, and every file that it sealed and that is there, is what it was
``changed``    something is not; all of it is named
``unreadable`` a file cannot be read, or holds no record
``foreign``    newer code sealed it: this code cannot tell
``older``      older code sealed the size of its rows only, or nothing: this code cannot tell
``unfinished`` no result seals it yet; its rows are checked when it goes on
=============  ==========================================================================================

Every run at or below ``PATH`` is looked at with the results that it had before, and every kept reference
(``reference*.json``). Nothing is run, unpacked or written: unpack an archive into an empty folder first. What a seal is
worth: :mod:`analysis.records.seals`.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from analysis.output import Parser, run, visible
from analysis.papers import reference
from analysis.records import RunRecord, collect, files, find_runs
from analysis.records.files import DamagedRecord
from analysis.records.format import BESIDE, folders, older_results

KINDS = ("sound", "changed", "unreadable", "foreign", "older", "unfinished")
BAD = ("changed", "unreadable")
SEALED = {"content": "sound", "size": "older", "none": "older", None: "unfinished"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each record that is not sound and the totals; exit code 1 if one is changed or unreadable, 2
    if there is none."""
    parser = Parser(prog="python -m analysis.verify", description="Is every record what it was when its run ended?")
    parser.add_argument("path", type=Path, help="a sweep (runs/NAME), one run, a folder of sweeps, or of references")
    path = parser.parse_args(arguments).path
    if not path.is_dir():
        print(f"{path}: no folder; unpack an archive into an empty folder first", file=sys.stderr)
        return 2
    counts: dict[str, Counter[str]] = {"records": Counter(), "references": Counter()}
    left_out: Counter[str] = Counter()
    for what, place, kind, sentences in records(path):
        counts[what][kind] += 1
        for sentence in sentences:
            print(visible(f"{kind}: {sentence}"))
        if what == "records" and kind == "sound":
            left_out.update(name for name in BESIDE if not os.path.lexists(place / name))
    for what, words in counts.items():
        if words:
            print(f"{words.total()} {what}: " + ", ".join(f"{words[kind]} {kind}" for kind in KINDS if words[kind]))
    for name, count in left_out.items():
        print(f"{count} of the sound records are without {name}")
    if not any(counts.values()):
        print(f"no runs and no references at {path}", file=sys.stderr)
        return 2
    return int(any(words[kind] for words in counts.values() for kind in BAD))


def records(path: Path) -> Iterator[tuple[str, Path, str, list[str]]]:
    """Of each run, of each of its older results and of each reference: ``records`` or ``references``, where it is, a
    word of :data:`KINDS`, and what is to be said of it."""
    for found in find_runs(path):
        for place in (found, *older_results(found)):
            yield "records", place, *record(place)
    for folder in (path, *folders(path), *(inner for each in folders(path) for inner in folders(each))):
        for file in sorted(folder.glob("reference*.json")):
            yield "references", file, *_reference(file)


def record(path: Path) -> tuple[str, list[str]]:
    """A word of :data:`KINDS` for a run, or one of its older results, and what is to be said of it."""
    try:
        piece = collect.read_piece(path, [])
        changed = RunRecord(path).differences(*BESIDE)
    except DamagedRecord as error:
        changed = [error]
        try:
            changed = RunRecord(path).differences() or changed
        except DamagedRecord as other:
            changed = [other]
    if changed:
        kinds = {each.kind for each in changed}
        return next(kind for kind in ("foreign", "unreadable", "changed") if kind in kinds), list(map(str, changed))
    kind = SEALED[piece.facts["sealed"]]
    return kind, [str(path)] if kind in ("older", "unfinished") else []


def _reference(file: Path) -> tuple[str, list[str]]:
    try:
        content = files.read_json(file)
        reference.read(file)
    except (DamagedRecord, OSError) as error:
        return "unreadable", [str(error)]
    except ValueError as error:
        return "changed" if reference.SEAL in content else "unreadable", [str(error)]
    return ("sound", []) if reference.SEAL in content else ("older", [f"{file}: without a seal"])


if __name__ == "__main__":
    run(main)
