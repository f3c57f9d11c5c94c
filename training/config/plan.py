"""Runs as they are planned, and packs of them.

A pack holds runs that differ only in what every replica has of its own: the seed, and every number (float) of the
estimator, the task, the optimiser and the schedule. That is read off each config, so a new option is covered when it is
written. Integers, words and lists are structure, and differ from pack to pack.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.records import DamagedRecord, RunRecord, Target
from training.config import identity, ranges, schema, targets
from training.errors import UserError

Config = dict[str, Any]
PER_REPLICA_GROUPS = ("estimator", "task", "optimizer", "schedule")


@dataclass(frozen=True)
class RunPlan:
    """One run: its resolved config (``replicas`` is 1; never changed, parts are shared) and the overrides for it.

    ``until``: a rung of a race, at which it waits with a checkpoint; 0: it goes to its last step.
    """

    config: Config
    overrides: tuple[str, ...] = ()
    until: int = 0

    @property
    def path(self) -> Path:
        return Path(self.config["runs_dir"]).absolute() / self.config["sweep"] / self.name

    @functools.cached_property
    def name(self) -> str:
        return identity.run_name(self.config)

    @property
    def record(self) -> RunRecord:
        return RunRecord(self.path)

    @functools.cached_property
    def key(self) -> str:
        """Tells runs of a sweep apart: what trains, how long, and what is measured."""
        return f"{self.name} {identity.canonical(identity.with_role(self.config, 'lasts', 'evaluates', 'watches'))}"

    @property
    def target(self) -> Target:
        return dataclasses.replace(identity.target_of(self.config), until=self.until)

    @property
    def last(self) -> int:
        """The step to which it is trained now."""
        return self.until or int(self.config["steps"])

    def is_over(self) -> bool:
        """Whether its record holds what is asked for, or that it diverged."""
        try:
            return self.record.answer(self.target) is not None
        except DamagedRecord:
            return False

    @property
    def label(self) -> str:
        """``estimator on task`` for people."""
        return f"{self.config['estimator']['name']} on {self.config['task']['name']}"


PackPlan = tuple[RunPlan, ...]
"""Runs to be trained together."""


def check_folders(config: Config) -> None:
    """Raise ``UserError`` for a sweep that is no folder in ``runs_dir``, or a ``runs_dir`` that is none."""
    sweep, runs_dir = config["sweep"], config["runs_dir"]
    if not runs_dir.strip() or not runs_dir.isprintable():
        raise UserError(f"runs_dir={runs_dir!r} names no folder; runs_dir=. is the current one")
    separated = {"/", "\\"} & set(sweep)
    if not sweep.strip() or separated or sweep in (".", "..") or not sweep.isprintable() or len(sweep.encode()) > 200:
        raise UserError(
            f"sweep={sweep!r} names a folder in runs_dir: no slash, no control character, at most 200 bytes; "
            "see runs_dir=PATH"
        )


def replicated(config: Config, overrides: Sequence[str] = ()) -> Iterator[RunPlan]:
    """One run per replica: the seeds ``seed .. seed + replicas - 1``, each as if it had been asked for alone.

    Raises:
        UserError: for what no config may be (:mod:`training.config.ranges`).
    """
    keys = {line.lstrip("+").partition("=")[0] for line in overrides}
    for group in targets.GROUPS:
        if f"{group}._target_" in keys:
            if f"{group}.name" not in keys:
                another = "other data" if group == "data" else f"another {group}"
                raise UserError(
                    f"{group}._target_ is {another}: name it with {group}.name=NAME, or choose {group}=NAME"
                )
            config = {**config, group: _options_of_its_target(config, group, keys)}
    ranges.check(config)
    name, target = config["estimator"]["name"], targets.class_of(config["estimator"], "estimator")
    if (known := schema.estimator_named(name)) not in (None, target.__name__):
        raise UserError(
            f"estimator.name={name} is the name of {known}, but this is {target.__name__}: use another name"
        )
    check_folders(config)
    own = tuple(line for line in overrides if not line.startswith(("seed=", "replicas=")))
    for seed in range(config["seed"], config["seed"] + config["replicas"]):
        yield RunPlan({**config, "seed": seed, "replicas": 1}, (*own, f"seed={seed}"))


def _options_of_its_target(config: Config, group: str, keys: set[str]) -> Config:
    """The options of a class, or a function that loads data, that an override named: where no ``task=NAME`` was chosen,
    its own defaults and what the overrides, whose ``keys`` are given, say; otherwise those of that choice that it has.
    """
    node = config[group]
    made = schema.schema_in(group, targets.loader_of(node) if group == "data" else targets.class_of(node, group))
    given = {key for key in node if f"{group}.{key}" in keys}
    if getattr(made, "open_ended", False):
        return {key: value for key, value in node.items() if key in given} if group == "data" else dict(node)
    fields = {field.name: field for field in dataclasses.fields(made)}
    if keys & {group, "experiment"}:
        given |= node.keys() & fields.keys()
    options: Config = {
        name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for name, field in fields.items()
    }
    for key in node:
        if key in given:
            whole = type(node[key]) is int and key in fields and fields[key].type in (float, float | None)
            options[key] = float(node[key]) if whole else node[key]
    return options


def structure(config: Config) -> str:
    """What the runs of a pack have in common, as text: all that is not theirs alone or a matter of place."""

    def common(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: common(value) for key, value in node.items()}
        return "number" if isinstance(node, float) else node

    kept = {
        option: common(value) if option.split(".")[0] in PER_REPLICA_GROUPS else value
        for option, value in identity.with_role(config, "trains", "lasts", "evaluates", "watches").items()
    }
    return json.dumps(kept | {"seed": "own"}, sort_keys=True)


def packs_of(runs: Iterable[RunPlan], workers: int, largest: int) -> list[PackPlan]:
    """Group runs into packs of at most ``largest``, at least one for each worker where there are runs enough.

    A pack's runs are sorted by their numbers and lie next to those with equal settings of the optimiser.
    """
    groups: dict[tuple[str, int], list[RunPlan]] = {}
    for run in runs:
        groups.setdefault((structure(run.config), run.until), []).append(run)
    parts = {key: -(-len(group) // largest) for key, group in groups.items()}
    # With fewer packs than workers the largest are divided further: the others would have nothing to do.
    while sum(parts.values()) < min(workers, sum(map(len, groups.values()))):
        key = max(parts, key=lambda key: len(groups[key]) / parts[key])
        parts[key] += 1
    packs: list[PackPlan] = []
    for key, group in groups.items():
        ordered = sorted(group, key=lambda run: json.dumps(run.config["optimizer"], sort_keys=True))
        size, extra = divmod(len(ordered), parts[key])
        start = 0
        for number in range(parts[key]):
            end = start + size + (number < extra)
            packs.append(tuple(ordered[start:end]))
            start = end
    return sorted(packs, key=len, reverse=True)  # the long ones first, so that workers finish together
