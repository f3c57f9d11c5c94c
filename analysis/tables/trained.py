"""What was trained, as sentences below a table: settings, model, code, machine, and the command that trains it again.

``summary`` is a frame of :func:`analysis.statistics.summary.summarise`, or rows of it; ``paths`` there are those of the
chosen runs, whose records have the command and the versions.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.records import RESULT, DamagedRecord, files, read_overrides
from analysis.records.legacy import role_of
from analysis.statistics.settings import as_text

NAMES = {"optimizer.lr": "learning rate", "batch_size": "batch", "num_samples": "samples", "lr": "learning rate"}
FIRST = ("optimizer", "optimizer.lr", "steps", "batch_size")
UNSAID = ("name", "_target_")
SHORT = 7
"""Digits of a commit that are shown."""


def brief(summary: pd.DataFrame) -> str:
    """One sentence for the screen: optimiser, learning rate, steps, batch and commit."""
    facts = [_fact(summary, name) for name in FIRST]
    commits = sorted({text[:SHORT] for text in _values(summary, "commit")})
    facts.append(f"commit {' / '.join(commits)}" if commits else "")
    words = ", ".join(filter(None, facts))
    return f"Trained: {words}; all settings are in the files." if words else ""


def whole(summary: pd.DataFrame) -> list[str]:
    """Sentences for files and the page: training, estimators, model, code and machine."""
    given = [name for name in map(str, summary) if name.startswith(("optimizer.", "schedule"))]
    training = [_fact(summary, name) for name in [*FIRST, *sorted(set(given) - {*FIRST, "schedule.name"})]]
    lines = [f"Trained: {', '.join(filter(None, training))}."]
    lines.append(f"Estimators: {'; '.join(_estimator(row) for _, row in summary.iterrows())}.")
    model = [name for name in map(str, summary) if name.startswith("task.") and _option(name) not in UNSAID]
    if facts := [fact for name in model if (fact := _fact(summary, name))]:
        lines.append(f"Model: {', '.join(facts)}.")
    return [line for line in [*lines, _machine(summary)] if line]


def commands(summary: pd.DataFrame) -> list[str]:
    """The commands that train the chosen runs again: one if their options are every combination of some values."""
    paths = [path for own in summary.get("paths", []) for path in own]
    if line := command(paths):
        return [line]
    return [line for own in summary.get("paths", []) if (line := command(own))]


def command(paths: Sequence[str]) -> str | None:
    """The command that trains the runs at ``paths``, from their overrides; ``None`` if no single one does."""
    try:
        runs = [_overrides(path) for path in paths]
    except DamagedRecord:
        return None
    if not runs or any(run.keys() != runs[0].keys() for run in runs):
        return None
    values = {key: list(dict.fromkeys(run[key] for run in runs)) for key in runs[0]}
    together = {tuple(run.values()) for run in ({key: each[key] for key in values} for each in runs)}
    if len(together) != math.prod(map(len, values.values())):
        return None
    values.setdefault("replicas", ["1"])  # of which an experiment may have several
    if "seed" in values:
        values["seed"] = values.pop("seed")
    words = [f"{key}={','.join(texts)}" if texts != [""] else key for key, texts in values.items()]
    return " ".join(["python train.py -m", *map(shlex.quote, words)])


def versions(paths: Iterable[str]) -> dict[str, str]:
    """The versions that the result of the first run has that says them: ``{"torch": "2.9.0", ...}``."""
    for path in paths:
        try:
            said = files.read_json(Path(path) / RESULT).get("versions")
        except (OSError, DamagedRecord):
            continue
        if isinstance(said, dict):
            return {str(name): str(version) for name, version in said.items()}
    return {}


def _overrides(path: str) -> dict[str, str]:
    """A run's overrides, by key, without those of where and how fast it trains."""
    pairs = (word.partition("=") for word in read_overrides(Path(path)))
    return {key: value for key, _, value in pairs if key == "budget" or role_of(key.lstrip("+~")) != "places"}


def _estimator(row: pd.Series) -> str:
    own = {_option(name): as_text(row[name]) for name in map(str, row.index) if name.startswith("estimator.")}
    facts = [f"{NAMES.get(name, name)} {text}" for name, text in own.items() if text != "none" and name not in UNSAID]
    return f"{row['label']} ({', '.join(facts)})" if facts else str(row["label"])


def _machine(summary: pd.DataFrame) -> str:
    paths = [path for own in summary.get("paths", []) for path in own]
    parts = [f"commit {' / '.join(_values(summary, 'commit'))}"] if _values(summary, "commit") else []
    parts += [f"{name} {version}" for name, version in versions(paths).items()]
    parts += [f"on {' / '.join(_values(summary, 'device'))}"] if _values(summary, "device") else []
    seconds = summary["wall_seconds"].dropna().astype(float) if "wall_seconds" in summary else pd.Series(dtype=float)
    if len(seconds):
        low, high = f"{seconds.min():.3g}", f"{seconds.max():.3g}"
        parts.append(f"{low if low == high else f'{low} to {high}'} s of training, with what trained in the same pack")
    return f"Code and machine: {', '.join(parts)}." if parts else ""


def _fact(summary: pd.DataFrame, name: str) -> str:
    """An option with its value, or with those of each row where they differ."""
    values = _values(summary, name)
    word = NAMES.get(name, _option(name).replace("_", " "))
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]} steps" if name == "steps" else f"{word} {values[0]}"
    rows: Mapping[str, Any] = summary.groupby(summary[name].map(as_text), sort=False)["label"].agg(list)
    return f"{word} " + " / ".join(f"{value} ({', '.join(rows[value])})" for value in values)


def _values(summary: pd.DataFrame, name: str) -> list[str]:
    if name not in summary:
        return []
    return [text for text in dict.fromkeys(map(as_text, summary[name])) if text not in ("none", "")]


def _option(name: str) -> str:
    return name.partition(".")[2] or name
