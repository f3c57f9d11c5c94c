"""Published numbers, their sources, the runs they may stand beside, and how the settings behind them differ from ours.

``published.json`` holds ``sources`` and, block by block, the rows of the papers' ``tables``. It only has what was read
in a paper's own text or in what its authors released: a number quoted by somebody else or remembered is not in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("published.json")
BOUNDS = ("nll", "negative_bound", "elbo")
"""Metrics on the scale of ``-log p``, up to the sign."""
ABSENT = {"task.layers": 1, "task.hidden": "[]", "task.likelihood": "bernoulli", "source": "jang2017"}
"""What a run has whose config lacks the field: its task has no such option, or had none when it was recorded."""


@dataclass(frozen=True)
class Published:
    """One published value.

    ``task``, ``data`` and ``estimator`` are this project's names where it has the thing (``estimator`` is empty where
    it has not); ``method`` is the paper's. ``config`` maps fields of a run's config, named as by
    :func:`analysis.records.load`, to what they must be for the value to stand beside the run: a value, a list of which
    one must hold, or ``None``, which no run has: the paper's choice is not known here, or no model here can have it.

    ``value`` has the paper's sign and ``metric`` says what it is: ``nll`` and ``negative_bound`` (nats, lower is
    better), ``elbo`` (nats, higher is better), ``pseudo_elbo`` (grey targets), ``accuracy`` (per cent), ``ratio``,
    ``epochs``, ``loss`` (of a toy), ``gradient_variance`` and its natural logarithm ``log_gradient_variance``.
    ``split`` is ``train``, ``valid`` or ``test``. ``settings`` holds what the source says of settings it shares with
    our configs; ``None`` there is "not stated". ``note`` is the value's trap, if it has one.
    """

    source: str
    table: str
    task: str
    data: str
    method: str
    estimator: str
    setting: str
    metric: str
    split: str
    value: float
    config: Mapping[str, Any]
    note: str
    citation: str
    short: str
    confidence: str
    settings: Mapping[str, Any]
    source_note: str

    @property
    def nats(self) -> float:
        """The value as ours are shown, lower is better; for the metrics of ``BOUNDS``."""
        return -self.value if self.metric == "elbo" else self.value

    def fits(self, task: str, data: str, estimator: str, config: Mapping[str, Any]) -> bool:
        """Whether this value is one of the model, the data and the method of a run.

        An experiment may append ``_anything`` to a task's name and ``_NUMBER`` to an estimator's, to keep runs apart:
        ``vae_bernoulli_nonlinear`` is a ``vae_bernoulli``, and the rest is a matter of ``config``.
        """
        named = (task == self.task or task.startswith(f"{self.task}_")) and data == self.data
        named = named and re.sub(r"_\d+$", "", estimator) == self.estimator
        return named and all(_agrees(config, name, wanted) for name, wanted in self.config.items())


@cache
def all_published() -> tuple[Published, ...]:
    """Every published value of the file, in its order."""
    content = json.loads(FILE.read_text())
    values = []
    for block in content["tables"]:
        source = dict(content["sources"][block["source"]])
        source["source_note"] = source.pop("note")
        source["settings"] = {**source["settings"], **block.get("settings", {})}
        shared = {key: value for key, value in block.items() if key not in ("values", "settings")}
        for row in block["values"]:
            config = {**block["config"], **row.get("config", {})}
            values.append(Published(**{"note": "", **source, **shared, **row, "config": config}))
    return tuple(values)


@cache
def sources() -> tuple[str, ...]:
    """The keys of the sources: what a config's ``source`` can be."""
    return tuple(json.loads(FILE.read_text())["sources"])


def published(
    task: str,
    data: str,
    estimator: str,
    config: Mapping[str, Any],
    split: str = "test",
    metrics: Collection[str] = BOUNDS,
) -> Published | None:
    """The published bound to stand beside a run's, or ``None`` if the literature has none for its model and method.

    Args:
        task, data, estimator: names of the run.
        config: the run's config, flat, with the names of :func:`analysis.records.load`. Its field ``source`` says whose
            numbers, so that those of one table are one paper's: Jang, Gu, Poole's if it is missing, none if empty.
        split: of the run's bound.
        metrics: which of the published metrics are meant, by default the bounds.

    Plain ``reinforce`` has none in Jang et al.: their "SF" has variance normalisation ("necessary", they say), so it is
    listed under ``nvil``, the nearest estimator, and its note says so.
    """
    source = _field(config, "source")
    of_source = (v for v in all_published() if v.source == source and v.split == split and v.metric in metrics)
    return next((value for value in of_source if value.fits(task, data, estimator, config)), None)


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


def _field(config: Mapping[str, Any], name: str) -> Any:
    value = config.get(name)
    return ABSENT.get(name) if value is None or value != value else value


def _agrees(config: Mapping[str, Any], name: str, wanted: Any) -> bool:
    own = _field(config, name)
    return own is not None and bool(own in wanted if isinstance(wanted, list) else own == wanted)
