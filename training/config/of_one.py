"""Options of one choice in a sweep over several: ``estimator.nvil.variance_normalisation=false`` is nvil's alone.

``GROUP.NAME.OPTION=VALUES`` sets ``GROUP.OPTION`` in those runs of a multirun whose ``GROUP`` is ``NAME``, and is not
there for the others. It overrules ``GROUP.OPTION=VALUE``, wherever either stands, and its values make a grid as all do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from training.errors import UserError, did_you_mean

GROUPS = ("estimator", "task", "data", "optimizer", "schedule")
Choice = tuple[Override, str]
"""An override, parsed and as text."""


def parted(key: str) -> tuple[str, str, str] | None:
    """``("estimator", "nvil", "decay")`` of ``estimator.nvil.decay``; ``None`` for the key of any other option."""
    group, name, option = [*key.lstrip("+").split(".", 2), "", ""][:3]
    return (group, name, option) if option and group in GROUPS else None


def as_sweep(argument: str) -> str:
    """The argument in a form that Hydra leaves to the sweep: ``x=1`` for one choice becomes ``x=choice(1)``."""
    key, equals, value = argument.partition("=")
    if not equals or parted(key) is None:
        return argument
    try:
        swept = OverridesParser.create().parse_override(argument).is_sweep_override()
    except HydraException:
        return argument  # it is refused with all the others
    return argument if swept else f"{key}=choice({value})"


def key_of(choices: Sequence[Choice]) -> str:
    """The key that all of the ``choices`` are for."""
    return choices[0][0].get_key_element()


def _for_the_group(key: str, choices: Sequence[Choice]) -> list[Choice]:
    """``estimator.nvil.decay=0.9`` as ``estimator.decay=0.9``."""
    group, _, option = parted(key) or ("", "", "")
    plus = key[: len(key) - len(key.lstrip("+"))]
    texts = [f"{plus}{group}.{option}={text.partition('=')[2]}" for _, text in choices]
    return list(zip(OverridesParser.create().parse_overrides(texts), texts, strict=True))


def _name_in(config: dict[str, Any], group: str) -> str:
    """The choice that a config has made; empty for what is none, which is refused later."""
    node = config.get(group)
    return str(node.get("name", "")) if isinstance(node, dict) else ""


@dataclass
class OfOne:
    """The options of single choices in a command, and which of them a run has had.

    Attributes:
        met: the names of each group's choices in the sweep so far.
        unused: the keys that no run has had so far.
    """

    met: dict[str, set[str]] = field(default_factory=lambda: {group: set() for group in GROUPS})
    unused: dict[str, None] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def jobs(
        self, choices: Sequence[Sequence[Choice]], compose: Callable[[Sequence[Override]], dict[str, Any]]
    ) -> Iterator[tuple[dict[str, Any], list[str]]]:
        """For each job of the product of ``choices`` its config and the text of its overrides."""
        own = {key: _for_the_group(key, each) for each in choices if parted(key := key_of(each))}
        self.unused |= dict.fromkeys(key for key in own if key not in self.used)
        for job in itertools.product(*(each for each in choices if key_of(each) not in own)):
            config = compose([override for override, _ in job])
            for group in GROUPS:
                self.met[group].add(_name_in(config, group))
            mine = [key for key in own if self._is_for(key, config)]
            for more in itertools.product(*(own[key] for key in mine)):
                whole = [*job, *more]
                yield (
                    compose([override for override, _ in whole]) if more else config,
                    [text for _, text in whole],
                )

    def _is_for(self, key: str, config: dict[str, Any]) -> bool:
        group, name, _ = parted(key) or ("", "", "")
        is_for = _name_in(config, group) == name
        if is_for:
            self.used.add(key)
            self.unused.pop(key, None)
        return is_for

    def check(self, arguments: Sequence[str]) -> None:
        """Raise ``UserError`` for an option among ``arguments`` whose choice is not in the sweep.

        An experiment's own are for its own choices, of which the command line may take others.
        """
        given = {argument.partition("=")[0] for argument in arguments}
        for key in (key for key in self.unused if key in given):
            group, name, option = parted(key) or ("", "", "")
            met = sorted(self.met[group])
            raise UserError(
                f"{key}: it is for {group}={name}, which is not in this sweep ({', '.join(met)})"
                f"{did_you_mean(name, met, f'{group}.{{}}.{option}')}"
            )
