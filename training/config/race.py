"""A race over settings (successive halving): which settings of a cell go on from rung to rung, and what that costs.

A *cell* is a method on a task: all options that train, but the seed and those that are raced over, which make a
*setting*. At each rung, a number of steps, the settings of a cell that are left are ordered by their mean on validation
over the seeds that run so far, and a share of them goes on. The settings that are left after the last rung train to the
end with all seeds, and only they are evaluated on test.

A run that diverged is worse than any that did not: settings are ordered by the share of runs that they lost, then by
the mean of the others, then as the sweep has them. A setting that lost all its runs never goes on; if all that are left
diverge behind the last rung, the race is held again without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from training.config import identity
from training.config.plan import RunPlan
from training.errors import UserError

Config = dict[str, Any]
Run = TypeVar("Run")


@dataclass(frozen=True)
class Race:
    """The options of ``race=halving``, with as many shares and numbers of seeds as rungs."""

    rungs: tuple[int, ...]
    keep: tuple[float, ...]
    seeds: tuple[int, ...]
    over: tuple[str, ...]
    by: str = ""

    def __iter__(self) -> Iterator[tuple[int, float, int]]:
        """``(steps, share that goes on, seeds)`` of each rung."""
        return zip(self.rungs, self.keep, self.seeds, strict=True)


@dataclass
class Stage(Generic[Run]):
    """Where the race of a cell is.

    Attributes:
        step: to which ``asked`` are trained next; 0: to their end.
        left: the settings that are still in it.
        asked: their runs.
        out: the settings that were eliminated, with their rungs.
        lost: the settings that won and then diverged with all their seeds, and in whose place others went on.
        means: by rung the mean on validation of each setting that was judged there (NaN: it lost all its runs).
    """

    step: int
    left: list[str]
    asked: list[Run] = field(default_factory=list)
    out: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    means: dict[int, dict[str, float]] = field(default_factory=dict)


def stage(
    race: Race,
    runs: Mapping[str, Sequence[Run]],
    value: Callable[[Run, int], float | None],
    seeds: int | None = None,
    diverged: Callable[[Run], bool] = lambda _: False,
) -> Stage[Run]:
    """Where the race is, as a pure function of what the runs measured.

    Args:
        race: its rungs.
        runs: of each setting of a cell, by seed.
        value: of a run at a step, on validation, higher is better; NaN if it diverged, ``None`` if it is not there yet.
        seeds: how many of a setting's runs are asked for at the end; all by default.
        diverged: whether a run did, at any step. If all of the settings that are left did, the race is held without
            them: a cell has no result only if no setting has one.
    """
    found: Stage[Run] = Stage(0, list(runs))
    for rung, share, first in race:
        if len(found.left) < 2:
            break
        values = {name: [value(run, rung) for run in runs[name][:first]] for name in found.left}
        if any(each is None for own in values.values() for each in own):
            found.step, found.asked = rung, [run for name in found.left for run in runs[name][:first]]
            return found
        healthy = {
            name: [each for each in own if each is not None and math.isfinite(each)] for name, own in values.items()
        }
        found.means[rung] = {name: sum(own) / len(own) if own else math.nan for name, own in healthy.items()}
        able = [name for name in found.left if healthy[name]]
        able.sort(key=lambda name: (-len(healthy[name]) / len(values[name]), -found.means[rung][name]))
        chosen = set(able[: number_kept(share, len(found.left))])
        found.out |= {name: rung for name in found.left if name not in chosen}
        found.left = [name for name in found.left if name in chosen]
    if found.left and all(diverged(run) for name in found.left for run in runs[name]):
        others = {name: own for name, own in runs.items() if name not in found.left}
        again = stage(race, others, value, seeds, diverged)
        again.lost = [*found.left, *again.lost]
        return again
    found.asked = [run for name in found.left for run in runs[name][:seeds]]
    return found


def number_kept(share: float, settings: int) -> int:
    """How many of ``settings`` go on: ``share`` of them to the nearest whole number, a half upwards, at least one."""
    return max(1, math.floor(share * settings + 0.5))


@dataclass(frozen=True)
class Leg:
    """What a race asks for up to a rung, or the end: ``settings`` with ``seeds`` each to ``step``, and for that so many
    ``replica_steps``, without those of earlier legs."""

    step: int
    settings: int
    seeds: int
    replica_steps: int


def legs(race: Race, settings: int, seeds: int, steps: int) -> list[Leg]:
    """The legs of a race of ``settings`` with ``seeds`` runs each, of ``steps``, if no run diverges."""
    found: list[Leg] = []
    left, done = settings, [0] * seeds
    for rung, share, number in (*race, (steps, 1.0, seeds)):
        if left < 2 and rung < steps:
            continue
        own = min(number, seeds)
        found.append(Leg(rung, left, own, left * sum(rung - before for before in done[:own])))
        done[:own] = [rung] * own
        left = number_kept(share, left)
    return found


def race_of(config: Config) -> Race | None:
    """The race that a config asks for.

    Raises:
        UserError: for one that cannot be run.
    """
    options = config.get("race", {"name": "none"})
    if options["name"] == "none":
        return None
    rungs, every, steps = options["rungs"], config["evaluate_every"], config["steps"]
    if not options["over"]:
        raise UserError("race.over=[] names nothing to choose among: name options or groups, such as [optimizer]")
    if not rungs or sorted({*rungs}) != rungs or rungs[-1] >= steps:
        raise UserError(
            f"race.rungs={rungs} must be rising numbers of steps below steps={steps}, such as race.rungs=[{every}]"
        )
    if between := [rung for rung in rungs if rung % every]:
        raise UserError(
            f"race.rungs: {between[0]} is no multiple of evaluate_every={every}, at which settings are compared"
        )
    parts: dict[str, list[Any]] = {}
    for name in ("keep", "seeds"):
        given = options[name]
        parts[name] = given * len(rungs) if len(given) == 1 else given
        if len(parts[name]) != len(rungs):
            raise UserError(f"race.{name}={given} must have one number, or one for each of race.rungs={rungs}")
    if parts["seeds"] != sorted(parts["seeds"]):
        raise UserError(f"race.seeds={parts['seeds']} must not fall from rung to rung")
    return Race(
        tuple(rungs), tuple(parts["keep"]), tuple(parts["seeds"]), tuple(options["over"]), options.get("by", "")
    )


def cells(race: Race, runs: Sequence[RunPlan]) -> list[dict[str, list[RunPlan]]]:
    """The cells of a sweep: of each its settings, in the order of the sweep, and of each setting its runs by seed.

    Raises:
        UserError: for a race over what trains none of the runs, and if a run is asked for several things.
    """
    for name in race.over:
        parts = (_is_part(option, name) for run in runs for option in identity.with_role(run.config, "trains"))
        if name == "seed" or not any(parts):
            raise UserError(f"race.over: {name} is no option, or group of options, that trains one of these runs")
    found: dict[str, dict[str, dict[int, RunPlan]]] = {}
    for run in runs:
        rest = fixed(race, run)
        options = identity.with_role(run.config, "trains")
        own = {name: value for name, value in options.items() if name not in rest and name != "seed"}
        by_seed = found.setdefault(identity.canonical(rest), {}).setdefault(identity.canonical(own), {})
        if by_seed.setdefault(run.config["seed"], run) is not run:
            raise UserError(f"a race asks each run for one thing: {run.name} is asked for several steps or evaluations")
    return [{name: [own[seed] for seed in sorted(own)] for name, own in cell.items()} for cell in found.values()]


def fixed(race: Race, run: RunPlan) -> dict[str, Any]:
    """The options of a run that make its cell: what trains it, but what is raced over and the seed."""
    options = identity.with_role(run.config, "trains")
    raced = {name for name in options if any(_is_part(name, each) for each in race.over)}
    return {name: value for name, value in options.items() if name not in raced and name != "seed"}


def _is_part(option: str, name: str) -> bool:
    """Whether an option is ``name``, or belongs to the group ``name``."""
    return option == name or option.startswith(f"{name}.")
