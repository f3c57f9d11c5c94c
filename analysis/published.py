"""Published numbers, each with its source, and how the setting behind it differs from a run of ours.

``published.json`` holds ``sources`` and one line per published value. It only has what was read in a paper's own
text: a number quoted by somebody else or remembered is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class Published:
    """One published value.

    ``task``, ``data`` and ``estimator`` are this project's names where it has the thing; ``method`` is the paper's.
    ``value`` is in nats (``metric`` ``nll`` or ``negative_bound``: lower is better; ``elbo``: higher is better) or per
    cent. ``reference`` marks the one value that stands beside ours for its (task, data, estimator). ``settings`` holds
    what the source says of the settings it shares with our configs; ``None`` there is "not stated".
    """

    source: str
    table: str
    task: str
    data: str
    method: str
    estimator: str
    setting: str
    metric: str
    value: float
    reference: bool
    note: str
    citation: str
    short: str
    confidence: str
    settings: Mapping[str, Any]
    source_note: str


@cache
def all_published() -> tuple[Published, ...]:
    """Every published value of the file, in its order."""
    content = json.loads(FILE.read_text())
    values = []
    for row in content["rows"]:
        source = dict(content["sources"][row["source"]])
        values.append(Published(**row, source_note=source.pop("note"), **source))
    return tuple(values)


def published(task: str, data: str, estimator: str) -> Published | None:
    """The published value to stand beside ours, or ``None`` if the literature has none for this setting.

    Plain ``reinforce`` has none in Jang et al.: their "SF" has variance normalisation ("necessary", they say), so it is
    listed under ``nvil``, the nearest estimator, and its note says so.
    """
    wanted = (task, data, estimator)
    for value in all_published():
        if value.reference and (value.task, value.data, value.estimator) == wanted:
            return value
    return None


def differences(value: Published, ours: Mapping[str, Any]) -> str:
    """Where the settings behind a published value differ from ours: ``"optimizer sgd (here adam), ..."``, maybe empty.

    ``ours`` maps config names (``optimizer``, ``steps``, ``batch_size``, ``test_samples``) to values; names that it
    lacks are not compared.
    """
    found = []
    for name, theirs in value.settings.items():
        mine = ours.get(name)
        if mine is None or mine != mine or mine == theirs:
            continue
        mine = int(mine) if isinstance(mine, float) and mine.is_integer() else mine
        found.append(f"{name.replace('_', ' ')} {'not stated' if theirs is None else theirs} (here {mine})")
    return ", ".join(found)
