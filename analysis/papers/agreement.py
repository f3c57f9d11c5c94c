"""``python -m analysis.papers.agreement [FOLDER]``: which published numbers the committed results reach, and why not.

Two tables are written between their marks in ``FOLDER/agreement.md`` (``docs/results``), whose other text stays:

- Number by number: of each cell with a published bound the committed result with the most steps, and its verdict.
- Reasons: the entries of ``FOLDER/studies/*/reference.json``, runs in which some options are others than in such a
  result (their *base*), and by how much their bound differs from it, over the seeds that both have.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import output
from analysis.figures.style import look
from analysis.papers import leaderboard
from analysis.papers.published import Published
from analysis.records.files import write_atomically
from analysis.statistics.intervals import interval
from analysis.statistics.settings import as_text
from analysis.statistics.summary import CELL, COMPARISON, published_bound
from analysis.tables.summary import signed
from analysis.tables.table import NONE, Table, fixed, to_markdown

PAGE = "agreement.md"
BEGIN, END = "<!-- {name}: written by make leaderboard, do not edit -->", "<!-- end of what is written -->"
NEAR = 2.0
"""Nats within which a number is called reached. The papers that are compared with have no error bars."""
WATCHED = ("_samples", "evaluate_every", "train_evaluated", "allow_tf32", "schedule.only")
"""Ends of options that do not train, or that say where another option holds."""

Entry = Mapping[str, Any]
Key = tuple[str, ...]


def bases(folder: Path) -> dict[Key, dict[str, Any]]:
    """Of each estimator, variant, task and data the entry with the most steps, the last folder's of equals."""
    found: dict[Key, dict[str, Any]] = {}
    for entry in leaderboard.entries(folder):
        if entry["metric"] == "bound":
            key = _key(entry)
            if key not in found or entry["config"]["steps"] >= found[key]["config"]["steps"]:
                found[key] = entry
    return found


def numbers(folder: Path) -> Table:
    """A row for each committed cell that has a published bound, in the order of tasks and of the distance."""
    rows = []
    for entry in bases(folder).values():
        if theirs := _published(entry):
            distance = entry["mean"] - theirs.nats
            rows.append((*(entry[name] for name in COMPARISON), distance, entry, theirs))
    lines = [
        [
            entry["task"],
            look(entry["estimator"]).label,
            _mean(entry),
            str(entry["n"]),
            f"{entry['config']['steps']:,}, {entry.get('tuned') or 'untuned'}",
            fixed(theirs.nats, 1),
            signed(distance),
            verdict(distance),
            theirs.short,
        ]
        for *_, distance, entry, theirs in sorted(rows, key=lambda row: row[:3])
    ]
    header = ["task", "estimator", "here", "seeds", "steps, tuned", "published", "difference", "verdict", "source"]
    return Table(header, lines, labels=2)


def verdict(distance: float) -> str:
    """Of our number minus theirs in nats, lower is better."""
    if abs(distance) <= NEAR:
        return "reached"
    return "better than published" if distance < 0 else "not reached"


def reasons(folder: Path) -> Table:
    """A row for each entry of ``studies``, beside its base: what differs, and by how much."""
    base_of = bases(folder)
    rows = []
    for entry in leaderboard.entries(folder / leaderboard.STUDIES):
        base = base_of.get((entry["estimator"], "", *(entry[name] for name in COMPARISON)))
        if base is None:
            raise ValueError(
                f"{leaderboard.STUDIES}/{entry['source']}: {entry['estimator']} has no result to stand beside"
            )
        theirs, changed = _published(base), changes(entry, base)
        if changed:
            rows.append((entry["task"], entry["estimator"], changed, entry, base, theirs))
    lines = [
        [
            task,
            look(name).label,
            changed,
            _mean(entry),
            str(entry["n"]),
            _difference(entry, base),
            NONE if theirs is None else signed(entry["mean"] - theirs.nats),
            _nats(entry.get("elbo")),
            _nats(entry.get("relaxed_elbo")),
        ]
        for task, name, changed, entry, base, theirs in sorted(rows, key=lambda row: row[:3])
    ]
    header = ["task", "estimator", "other than in the result above", "nats", "seeds", "change, equal seeds"]
    header += ["difference to published", "one hard sample", "one relaxed sample"]
    return Table(header, lines, labels=3)


def changes(entry: Entry, base: Entry) -> str:
    """The options that train an entry and differ from its base's, ``NAME=VALUE (the base's)``."""
    names = {*entry["config"], *base["config"]}
    ours, theirs = ({name: as_text(each["config"].get(name)) for name in names} for each in (entry, base))
    return ", ".join(
        f"{name}={ours[name]} ({theirs[name]})"
        for name in sorted(names - {*CELL})
        if ours[name] != theirs[name] and not name.endswith(WATCHED)
    )


def _difference(entry: Entry, base: Entry) -> str:
    """The mean over seeds that both have finished, with its 95 % interval from three on."""
    ours, theirs = (
        {run["seed"]: run["bound"] for run in each["seeds"] if run["bound"] is not None} for each in (entry, base)
    )
    found = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not found:
        return NONE
    mean, low, high = interval(found) if len(found) > 2 else (sum(found) / len(found), math.nan, math.nan)
    return fixed(mean, 2, "+") + ("" if math.isnan(low) else f" ± {fixed((high - low) / 2, 2)}")


def _published(entry: Entry) -> Published | None:
    return published_bound(entry, entry["config"], entry["metric"], entry["protocol"].get("likelihood"))


def _key(entry: Entry) -> Key:
    return (entry["estimator"], entry["variant"], *(entry[name] for name in COMPARISON))


def _mean(entry: Entry) -> str:
    half = "" if entry["low"] is None else f" ± {fixed((entry['high'] - entry['low']) / 2, 2)}"
    return fixed(entry["mean"], 2) + half


def _nats(value: float | None) -> str:
    return NONE if value is None else fixed(value, 1)


def write(folder: Path) -> Path:
    """Write both tables anew into the page and return its path.

    Raises ``ValueError`` if a ``reference.json`` cannot be read, or the page lacks their marks.
    """
    page = folder / PAGE
    text = page.read_text(encoding="utf-8")
    for name, board in (("numbers", numbers(folder)), ("reasons", reasons(folder))):
        begin = BEGIN.format(name=name)
        before, found, rest = text.partition(begin)
        if not found or END not in rest:
            raise ValueError(f"{page}: has no place for {name}, between {begin} and {END}")
        text = f"{before}{begin}\n\n{to_markdown([board]).strip()}\n\n{END}{rest.partition(END)[2]}"
    write_atomically(page, text.encode())
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.papers.agreement", description="Published numbers beside committed ones, and why."
    )
    parser.add_argument("folder", nargs="?", type=Path, default=leaderboard.RESULTS, help=f"with {PAGE} (docs/results)")
    try:
        print(f"wrote {write(parser.parse_args(arguments).folder)}")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    output.run(main)
