"""From command lines to runs, by Hydra's rules: the only place that composes."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from training.config import of_one, schema
from training.config.command import check_choice
from training.config.plan import Config, RunPlan, replicated
from training.errors import UserError, did_you_mean

MOST_RUNS = 100_000
"""Of one sweep: to plan so many takes a minute, and a folder for each is as many as file systems like."""
MANY_RUNS = 5_000
"""From so many on it is said that they are being planned."""


def composed(*overrides: str) -> Config:
    """The config of one run, or job, with these options. Raises ``UserError`` for what Hydra refuses."""
    schema.register()
    with composing(), initialize_config_module("conf", version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)
    return config


def runs_of_experiment(arguments: Sequence[str], master: DictConfig, loader: Any) -> list[RunPlan]:
    """As :func:`runs_of`, after what the experiment in ``master`` sweeps over and what its ``budget`` changes.

    An experiment's ``cases`` are options that belong together, in groups: one case of each group makes a sweep, and the
    experiment is the union of these sweeps. A budget may have cases of its own, and its runs lie in a folder of their
    own, the experiment's ``sweep`` and ``_BUDGET``, unless the command line says ``sweep=``.

    Raises:
        UserError: for a budget that the experiment does not have; see :func:`join`.
    """
    sweeper, budget = master.hydra.sweeper, master.budget
    params, budgets = dict(sweeper.params or {}), {"full": {}, **(sweeper.budgets or {})}
    if budget not in budgets:
        raise UserError(
            f"budget={budget}: choose one of those that the experiment has ({', '.join(budgets)})"
            f"{did_you_mean(budget, budgets, 'budget={}')}"
        )
    compose = _Composer(master, loader)
    changes = dict(budgets[budget])
    if budget != "full" and "sweep" not in {argument.lstrip("+").partition("=")[0] for argument in arguments}:
        changes = {"sweep": f"{master.sweep}_{budget}", **changes}  # what differs in its protocol lies apart
    groups = changes.pop("cases", sweeper.cases) or {}
    runs: dict[str, RunPlan] = {}
    for cases in itertools.product(*(group.values() for group in groups.values())):
        options = {**params, **{key: value for case in cases for key, value in case.items()}, **changes}
        if "race=none" in arguments:  # all of a raced budget's settings: its rungs are of no race
            options = {key: value for key, value in options.items() if not key.startswith("race.")}
        own = [f"{key}={'null' if value is None else value}" for key, value in options.items()]
        join(runs, runs_of([*own, *arguments], master, loader, compose))
    compose.of_one.check(arguments)
    return list(runs.values())


def runs_of_command(command: str) -> list[RunPlan]:
    """The runs that a command ``python train.py -m ...`` asks for, without starting it.

    Raises ``UserError`` for what Hydra refuses.
    """
    schema.register()
    words = shlex.split(command)
    if words[:2] != ["python", "train.py"]:
        raise ValueError(f"not a training command: {command}")
    arguments = [of_one.as_sweep(word) for word in words[2:] if word != "-m"]
    GlobalHydra.instance().clear()
    with composing(), initialize_config_module("conf", version_base="1.3"):
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
    count = math.prod(len(each) for each in choices if not of_one.parted(of_one.key_of(each)))
    _check_number(count)
    if count >= MANY_RUNS:
        print(f"planning at least {count} runs ...", file=sys.stderr, flush=True)
    compose = compose or _Composer(master, loader)
    runs: dict[str, RunPlan] = {}
    for config, texts in compose.of_one.jobs(choices, compose):
        join(runs, replicated(config, texts))
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
        check_choice(override)
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


@dataclass(frozen=True)
class _Composed:
    """A config that Hydra composed, its plain form, and whether a value in it is another's."""

    config: DictConfig
    plain: Config
    interpolated: bool


class _Composer:
    """Composes a config for each choice of options, and sets values in copies of it.

    An override of ``task`` changes ``task`` and nothing else. So a config whose groups have all been composed, each in
    another config, is put together from these: Hydra composes one for each option, not one for each combination of
    options. Where a config shows that an option does change another group, all is left to Hydra.
    """

    def __init__(self, master: DictConfig, loader: Any) -> None:
        self._master, self._loader = master, loader
        self._composed: dict[tuple[str, ...], _Composed] = {}
        self._groups: dict[tuple[Any, ...], _Composed] = {}
        self._groups_are_apart = True
        self._values: dict[tuple[Any, ...], tuple[str, Any]] = {}
        self._is_simple: dict[str | None, bool] = {}
        self.of_one = of_one.OfOne()

    def __call__(self, job: Sequence[Override]) -> Config:
        sources = self._sources([override for override in job if not self._is_value(override)])
        if not self._groups_are_apart or any(source.interpolated for source in sources.values()):
            return self._compose(job).plain
        config = {key: source.plain[key] for key, source in sources.items()}
        for override in job:
            if self._is_value(override):
                source = sources.get(_first(override), next(iter(sources.values())))
                key, value = self._value(source, override)
                *parents, leaf = key.split(".")
                node = config
                for parent in parents:  # runs share what they have in common: copy what is changed
                    node[parent] = dict(node[parent])
                    node = node[parent]
                node[leaf] = value
        return config

    def _sources(self, chosen: Sequence[Override]) -> dict[str, _Composed]:
        """For each key of a config with these overrides a composed config that has the same there."""
        everywhere: list[str] = []
        by_key: dict[str, list[str]] = {}
        for override in chosen:
            adds = override.is_add() or override.is_force_add() or override.is_delete() or override.package
            belongs = everywhere if adds or override.is_hydra_override() else by_key.setdefault(_first(override), [])
            belongs.append(str(override.input_line))

        def name(key: str) -> tuple[Any, ...]:
            return (tuple(everywhere), key, tuple(by_key.get(key, ())))

        keys = self._groups.get((tuple(everywhere),))
        if (
            not keys
            or not by_key.keys() <= keys.plain.keys()
            or not all(name(key) in self._groups for key in keys.plain)
        ):
            composed = self._compose(chosen)
            self._groups.setdefault((tuple(everywhere),), composed)
            for key, value in composed.plain.items():
                known = self._groups.setdefault(name(key), composed)
                self._groups_are_apart &= known.plain[key] == value
            keys = composed
        return {key: self._groups[name(key)] for key in keys.plain}

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

    def _compose(self, overrides: Sequence[Override]) -> _Composed:
        lines = tuple(str(override.input_line) for override in overrides)
        if lines not in self._composed:
            config = self._loader.load_sweep_config(self._master, list(lines))
            HydraConfig.instance().set_config(config)  # for interpolations of ${hydra:...}
            with open_dict(config):
                del config["hydra"]
            unresolved = json.dumps(OmegaConf.to_container(config, resolve=False), default=str)
            plain: Any = OmegaConf.to_container(config, resolve=True)
            self._composed[lines] = _Composed(config, plain, "${" in unresolved.replace("${oc.env:", ""))
        return self._composed[lines]

    def _value(self, source: _Composed, override: Override) -> tuple[str, Any]:
        """The key and the value as the schema has it (``1`` for a float becomes ``1.0``)."""
        known = (id(source), override.input_line)
        if known not in self._values:
            key = override.get_key_element()
            before = OmegaConf.select(source.config, key)
            ConfigLoaderImpl._apply_overrides_to_config([override], source.config)
            self._values[known] = (key, OmegaConf.select(source.config, key))
            OmegaConf.update(source.config, key, before)
        return self._values[known]


def _first(override: Override) -> str:
    """The key of the config that an override belongs to: the first of those that it has dots or slashes between."""
    return re.split(r"[./]", str(override.key_or_group))[0]


@contextlib.contextmanager
def composing() -> Iterator[None]:
    """While inside, Hydra reads a command line: what it refuses is a ``UserError``.

    It raises errors of every kind for a line that it cannot make sense of. With ``HYDRA_FULL_ERROR=1`` in the
    environment they are left as they are.
    """
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand us the exception instead of printing Hydra's own summary
    try:
        yield
    except Exception as error:
        of_the_disk = isinstance(error, OSError) and not isinstance(error, HydraException)
        if before or of_the_disk or isinstance(error, UserError):
            raise
        raise UserError(_explain(error)) from None
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        os.environ |= {"HYDRA_FULL_ERROR": before} if before else {}


def _explain(error: BaseException) -> str:
    """Hydra's message and its causes' in one line, with the allowed names where a key is unknown."""
    parts: list[str] = []
    chain: BaseException | None = error
    while chain is not None:
        lines = [" ".join(line.split()) for line in str(chain).splitlines()]
        if isinstance(chain, OverrideParseException):
            parts = [
                f"{chain.override!r} cannot be read: an option is KEY=VALUE, and a value with other characters than "
                "letters, digits and -_./:%+@ stands in quotes of its own, 'KEY=\"VALUE\"'"
            ]
        elif isinstance(chain, MissingConfigException) and chain.missing_cfg_file == "cluster/local":
            return "cluster=local is no more: the worker pool is what trains on this machine; leave cluster out"
        elif isinstance(chain, MissingConfigException) and chain.options:
            group, _, name = str(chain.missing_cfg_file).rpartition("/")
            parts += [lines[0] + did_you_mean(name, chain.options, f"{group}={{}}")]
            parts += [f"choose one of {', '.join(chain.options)}"]
        elif isinstance(chain, HydraException | OmegaConfBaseException):
            parts += [line.rstrip(".") for line in lines if line and not line.startswith(_NOT_FOR_USERS)]
        elif not parts:
            parts.append(f"the command line cannot be read ({type(chain).__name__}: {' '.join(lines)})")
        node = getattr(chain, "parent_node", None)
        if isinstance(node, DictConfig) and " not in " in str(chain):  # an unknown key
            wrong = re.search(r"Key '(.*?)' (?:is )?not in", str(chain))
            parts[-1] += did_you_mean(wrong[1], sorted(map(str, node))) if wrong else ""
            parts.append(f"allowed here: {', '.join(sorted(map(str, node)))}")
        chain = chain.__cause__
    return "; ".join(dict.fromkeys([*parts, "python train.py --help lists all options"]))


_NOT_FOR_USERS = (
    "full_key",
    "object_type",
    "reference_type",
    "To append to your config use",
    "Config search path",
    "provider=",
)
