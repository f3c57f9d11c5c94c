"""From the overrides of a multirun to runs, and from runs to packs.

A pack holds runs that differ only in what every replica has of its own: the seed, and every number (float) of the
estimator, the task, the optimiser and the schedule. That is read off each config, so a new option is covered when it is
written. Integers, words and lists are structure, and differ from pack to pack.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from analysis.records import DamagedRecord, RunRecord, Target
from training.config import identity, ranges, schema, targets
from training.errors import UserError

Config = dict[str, Any]
MOST_RUNS = 100_000
"""Of one sweep: to plan so many takes a minute, and a folder for each is as many as file systems like."""
MANY_RUNS = 5_000
"""From so many on it is said that they are being planned."""
PER_REPLICA_GROUPS = ("estimator", "task", "optimizer", "schedule")


@dataclass(frozen=True)
class RunPlan:
    """One run: its resolved config (``replicas`` is 1; never changed, parts are shared) and the overrides for it."""

    config: Config
    overrides: tuple[str, ...] = ()

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
        return identity.target_of(self.config)

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
    for group in ("estimator", "task"):
        if f"{group}._target_" in keys:
            if f"{group}.name" not in keys:
                raise UserError(
                    f"{group}._target_ is another {group}: name it with {group}.name=NAME, or choose {group}=NAME"
                )
            config = {**config, group: _options_of_its_class(config, group, keys)}
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


def _options_of_its_class(config: Config, group: str, keys: set[str]) -> Config:
    """The options of a class that an override named: where no ``task=NAME`` was chosen, its own defaults and what the
    overrides, whose ``keys`` are given, say; otherwise those of that choice that the class has."""
    node = config[group]
    made = schema.schema_of(
        targets.class_of(node, group), schema.FOR_ESTIMATORS if group == "estimator" else schema.FILLED_IN
    )
    if getattr(made, "open_ended", False):
        return dict(node)
    fields = {field.name: field for field in dataclasses.fields(made)}
    given = {key for key in node if f"{group}.{key}" in keys}
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
    groups: dict[str, list[RunPlan]] = {}
    for run in runs:
        groups.setdefault(structure(run.config), []).append(run)
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


def runs_of_experiment(arguments: Sequence[str], master: DictConfig, loader: Any) -> list[RunPlan]:
    """As :func:`runs_of`, after what the experiment in ``master`` sweeps over and what its ``budget`` changes.

    An experiment's ``cases`` are options that belong together, in groups: one case of each group makes a sweep, and the
    experiment is the union of these sweeps.

    Raises:
        UserError: for a budget that the experiment does not have; see :func:`join`.
    """
    sweeper, budget = master.hydra.sweeper, master.budget
    params, budgets = dict(sweeper.params or {}), {"full": {}, **(sweeper.budgets or {})}
    if budget not in budgets:
        raise UserError(f"budget={budget}: choose one of those that the experiment has ({', '.join(budgets)})")
    compose = _Composer(master, loader)
    runs: dict[str, RunPlan] = {}
    for cases in itertools.product(*(group.values() for group in (sweeper.cases or {}).values())):
        options = {**params, **{key: value for case in cases for key, value in case.items()}, **budgets[budget]}
        own = [f"{key}={'null' if value is None else value}" for key, value in options.items()]
        join(runs, runs_of([*own, *arguments], master, loader, compose))
    return list(runs.values())


def runs_of_command(command: str) -> list[RunPlan]:
    """The runs that a command ``python train.py -m ...`` asks for, without starting it."""
    schema.register()
    words = shlex.split(command)
    if words[:2] != ["python", "train.py"]:
        raise ValueError(f"not a training command: {command}")
    arguments = [word for word in words[2:] if word != "-m"]
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"):
        hydra: Any = GlobalHydra.instance().hydra
        master = hydra.compose_config("config", arguments, run_mode=RunMode.MULTIRUN)
        return runs_of_experiment(arguments, master, hydra.config_loader)


def runs_of(
    arguments: Sequence[str], master: DictConfig, loader: Any, compose: _Composer | None = None
) -> list[RunPlan]:
    """The runs that a multirun's ``arguments`` ask for, each once, in the order of the sweep.

    Hydra composes one config for each choice of options; values (``seed=3``, ``optimizer.lr=1e-3``) are set in it by
    Hydra's own rules, once for each value, instead of composing a config for each run.
    """
    choices = _choices(OverridesParser.create(config_loader=loader).parse_overrides(list(arguments)))
    count = math.prod(map(len, choices))
    _check_number(count)
    if count >= MANY_RUNS:
        print(f"planning at least {count} runs ...", file=sys.stderr, flush=True)
    compose = compose or _Composer(master, loader)
    runs: dict[str, RunPlan] = {}
    for job in itertools.product(*choices):
        config = compose([choice for choice, _ in job])
        join(runs, replicated(config, [text for _, text in job]))
    return list(runs.values())


def _check_number(runs: int) -> None:
    """Raise ``UserError`` for more runs than a sweep may have."""
    if runs > MOST_RUNS:
        raise UserError(f"a sweep may have at most {MOST_RUNS} runs, not {runs} or more; divide it into several")


def join(runs: dict[str, RunPlan], more: Iterable[RunPlan]) -> None:
    """Add ``more`` to ``runs``, which are kept by their keys.

    Raises:
        UserError: for two runs with one key that differ in what is no part of it (``sweep``, ``device``, ...): only
            one of them could be trained, and a sweep has one value of these; for too many runs.
    """
    for run in more:
        twin = runs.setdefault(run.key, run)
        if twin.config is not run.config and twin.config != run.config:
            key, own, other = next(_differences(twin.config, run.config))
            raise UserError(
                f"{key} cannot be swept over: with {own!r} and with {other!r} it is the same run, {run.name}; start a "
                "command for each"
            )
        _check_number(len(runs))


def _differences(one: Config, other: Config, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The options in which two configs differ, with dots, and both values."""
    for key in sorted({*one, *other}):
        own, others = one.get(key), other.get(key)
        if isinstance(own, dict) and isinstance(others, dict) and own.get("name") == others.get("name"):
            yield from _differences(own, others, f"{prefix}{key}.")
        elif own != others:
            named: list[Any] = [
                value.get("name", value) if isinstance(value, dict) else value for value in (own, others)
            ]
            yield prefix + key, named[0], named[1]


def _choices(overrides: Iterable[Override]) -> list[list[tuple[Override, str]]]:
    """For each key the overrides to try, parsed and as text; of a key that stands twice the later counts.

    Raises:
        UserError: for an override that gives nothing to try, or more than a sweep may have.
    """
    parser = OverridesParser.create()
    by_key: dict[str, list[tuple[Override, str]]] = {}
    for override in overrides:
        key, line = override.get_key_element(), override.input_line
        if not override.is_sweep_override():
            by_key[key] = [(override, line or f"{key}={override.get_value_element_as_str()}")]
        elif override.is_discrete_sweep():
            values = _values(override)
            if key.lstrip("+") == "experiment" and len(values) > 1:
                raise UserError(f"{line}: an experiment is a sweep of its own; start a command for each")
            if not values:
                raise UserError(f"{line}: there is nothing in it to sweep over; give it a value")
            texts = [f"{key}={value}" for value in values]
            by_key[key] = list(zip(parser.parse_overrides(texts), texts, strict=True))
        else:
            raise UserError(f"{line}: sweep over a list, a range or a glob, not over an interval")
    return list(by_key.values())


def _values(override: Override) -> list[str]:
    """The values of a list, a range or a glob, as text."""
    swept = override.value()
    if isinstance(swept, RangeSweep):
        ends: list[Any] = [swept.start, swept.stop, swept.step]
        start, stop, step = ends
        if not all(math.isfinite(end) for end in ends) or step == 0:
            raise UserError(f"{override.input_line}: the ends of a range are finite, and its step is not 0")
        _check_number(math.ceil(max((stop - start) / step, 0)))
    return list(override.sweep_string_iterator())


class _Composer:
    """Composes a config for each choice of options, and sets values in copies of it."""

    def __init__(self, master: DictConfig, loader: Any) -> None:
        self._master, self._loader = master, loader
        self._composed: dict[tuple[str, ...], tuple[DictConfig, Config, bool]] = {}
        self._values: dict[tuple[Any, ...], tuple[str, Any]] = {}
        self._is_simple: dict[str | None, bool] = {}

    def __call__(self, job: Sequence[Override]) -> Config:
        structural = tuple(str(o.input_line) for o in job if not self._is_value(o))
        composed, plain, interpolated = self._base(structural)
        if interpolated:  # a value may change others: leave it all to Hydra
            _, plain, _ = self._base(tuple(str(o.input_line) for o in job))
            return plain
        config = dict(plain)
        for override in job:
            if self._is_value(override):
                key, value = self._value(structural, composed, override)
                *parents, leaf = key.split(".")
                node = config
                for parent in parents:  # runs share what they have in common: copy what is changed
                    node[parent] = dict(node[parent])
                    node = node[parent]
                node[leaf] = value
        return config

    def _is_value(self, override: Override) -> bool:
        """Whether the override sets one existing value, and does not choose options or add keys."""
        if override.input_line not in self._is_simple:
            self._is_simple[override.input_line] = self._sets_a_value(override)
        return self._is_simple[override.input_line]

    def _sets_a_value(self, override: Override) -> bool:
        value = override.value()
        simple = isinstance(value, (bool, int, float)) or (isinstance(value, str) and "${" not in value)
        changes_keys = override.is_add() or override.is_force_add() or override.is_delete() or override.package
        chooses = self._loader.repository.group_exists(override.key_or_group) or override.is_hydra_override()
        return simple and not changes_keys and not chooses

    def _base(self, structural: tuple[str, ...]) -> tuple[DictConfig, Config, bool]:
        if structural not in self._composed:
            composed = self._loader.load_sweep_config(self._master, list(structural))
            HydraConfig.instance().set_config(composed)  # for interpolations of ${hydra:...}
            with open_dict(composed):
                del composed["hydra"]
            unresolved = json.dumps(OmegaConf.to_container(composed, resolve=False), default=str)
            interpolated = "${" in unresolved.replace("${oc.env:", "")
            plain: Any = OmegaConf.to_container(composed, resolve=True)
            self._composed[structural] = (composed, plain, interpolated)
        return self._composed[structural]

    def _value(self, structural: tuple[str, ...], composed: DictConfig, override: Override) -> tuple[str, Any]:
        """The key and the value as the schema has it (``1`` for a float becomes ``1.0``)."""
        known = (structural, override.input_line)
        if known not in self._values:
            key = override.get_key_element()
            before = OmegaConf.select(composed, key)
            ConfigLoaderImpl._apply_overrides_to_config([override], composed)
            self._values[known] = (key, OmegaConf.select(composed, key))
            OmegaConf.update(composed, key, before)
        return self._values[known]
