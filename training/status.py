"""``python -m training.status runs/SWEEP``: how many runs are queued, running, finished, diverged, failed, and why.

In a race ``waiting`` is a run that is at a rung before others, ``eliminated`` one that goes no further.

``interrupted`` is a run that no living process trains and that has no result: the sweep's command, started again, goes
on with it. While a command trains, its screen is shown as well: packs, rate, time left, and how many runs are not
started, which have no folder yet (else ``dry_run=true`` counts those).
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

from analysis import output
from analysis.records import METRICS, DamagedRecord, RunRecord, files, find_runs

WORDS = ("running", "queued", "waiting", "interrupted", "finished", "diverged", "eliminated", "failed", "damaged")
SHOWN = 20
SCREENS, STALE_SECONDS = ".screen.*.json", 15.0
"""What :func:`training.progress.publish` writes, and how old it may be."""


def state(record: RunRecord) -> tuple[str, str | None]:
    """A run's status in a word, and what is wrong with it, if something is."""
    try:
        word = record.outcome()
    except DamagedRecord as error:
        return "damaged", str(error)
    if word is None:
        word = record.status_word()
        if record.claim.is_held():
            word = "running"
        elif word not in ("failed", "waiting"):
            word = "interrupted" if (record.path / METRICS).exists() else "queued"
    return word, record.error() if word in ("diverged", "failed") else None


def step(record: RunRecord) -> int | None:
    """The last step with metrics, without reading the file."""
    try:
        with files.opened(record.path / METRICS, files.ROWS) as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - 4096, 0))
            lines = file.read().split(b"\n")
        return int(json.loads(lines[-2])["step"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
        return None


def report(path: Path) -> str:
    """The states below ``path`` for people. Raises ``FileNotFoundError`` if there is no run."""
    runs = find_runs(path)
    if not runs:
        raise FileNotFoundError(f"no runs at {path}: expected a run, a sweep, or a folder of sweeps")
    counts: dict[str, Counter[str]] = {}
    troubles: list[str] = []
    going: list[str] = []
    for run in runs:
        record = RunRecord(run)
        word, trouble = state(record)
        # <estimator>-<task>-<data>-s<seed>-<hash>: good enough for people
        counts.setdefault(output.visible("-".join(run.name.split("-")[:3])), Counter())[word] += 1
        if trouble:
            troubles.append(output.visible(f"{word}: {run.name}: {trouble}"))
        if word == "running":
            going.append(output.visible(f"running: {run.name}: step {step(record) or 0}"))
    total = sum(counts.values(), Counter[str]())
    words = [word for word in WORDS if total[word]]
    width = max(map(len, counts))
    lines = [f"{len(runs)} runs: " + ", ".join(f"{total[word]} {word}" for word in words), ""]
    lines[1:1] = screens(path)
    lines += [" " * width + "".join(f"{word:>13}" for word in words)]
    lines += [f"{name:<{width}}" + "".join(f"{own[word] or '-':>13}" for word in words) for name, own in counts.items()]
    for texts in (going, troubles):
        lines += texts[:SHOWN]
        if len(texts) > SHOWN:
            lines.append(f"... and {len(texts) - SHOWN} more")
    return "\n".join(lines)


def screens(path: Path) -> list[str]:
    """What the screens of the commands show that train a sweep now, which write it every other second."""
    lines: list[str] = []
    for file in sorted([*path.glob(SCREENS), *path.glob(f"*/{SCREENS}")]):
        try:
            found = files.read_json(file)
            age, shown = time.time() - float(found["time"]), [str(line) for line in found["lines"]]
        except (FileNotFoundError, DamagedRecord, KeyError, TypeError, ValueError):
            continue
        if age < STALE_SECONDS:
            lines += map(output.visible, shown)
    return lines


def main() -> None:
    """The command."""
    parser = output.Parser(
        prog="python -m training.status", description=(__doc__ or "").split(": ", 1)[1].split("\n")[0]
    )
    parser.add_argument("path", type=Path, help="a sweep (runs/NAME), one run, or a folder of sweeps")
    try:
        print(report(parser.parse_args().path))
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    output.run(main)
