"""A race over a sweep's records: which runs are asked for next, which are eliminated, and what is said of it.

Nothing is kept but the records: where each cell's race is follows from them alone, so a sweep that was killed, or has
got more settings or seeds, goes on like any other.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from analysis.records import METRICS, DamagedRecord, read_metrics
from training.config.plan import RunPlan
from training.config.race import Leg, Race, Stage, cells, fixed, legs, race_of, stage
from training.config.validity import reason_to_skip
from training.errors import UserError

Cell = dict[str, list[RunPlan]]
SHOWN = 10


class Rungs:
    """The race of ``runs``, which are those of a sweep that make sense.

    The settings that are left in the end train with so many ``seeds``, by default all.
    """

    def __init__(self, race: Race, runs: Sequence[RunPlan], seeds: int | None = None) -> None:
        self.race, self.cells, self.seeds = race, cells(race, runs), seeds
        self.labels = _labels(race, self.cells)
        self._said: set[str] = set()

    def check(self) -> None:
        """Raise ``UserError`` if a run that is asked for at a rung can never be compared there."""
        if found := [reason for run in self.missing() if run.until and (reason := _why_never(run))]:
            more = f"; and {len(found) - 1} more" if len(found) > 1 else ""
            raise UserError(f"{found[0]}{more}; choose race.rungs at which all were measured, or another sweep=NAME")

    def asked(self) -> list[RunPlan]:
        """All that the race asks for as far as it has come, whether it is there or not."""
        return [dataclasses.replace(run, until=w.step) for w in map(self._stage, self.cells) for run in w.asked]

    def missing(self) -> list[RunPlan]:
        """The runs that are to be trained next, each to its cell's rung or to its end; none if the race is over."""
        asked = self.asked()
        return [run for run in asked if (self._value(run, run.until) is None if run.until else not run.is_over())]

    def eliminate(self) -> list[str]:
        """End the runs of settings that lost, and say in a line per cell and rung how it went."""
        lines: list[str] = []
        for label, cell in zip(self.labels, self.cells, strict=True):
            where = self._stage(cell)
            for setting, rung in where.out.items():
                for run in cell[setting]:
                    _eliminate(run, rung)
            lines += [line for line in _lines(label, cell, where) if line not in self._said]
        self._said.update(lines)
        return lines

    def is_lost(self) -> bool:
        """Whether no cell has a setting left."""
        return not any(self._stage(cell).left for cell in self.cells)

    def progress(self) -> list[tuple[str, int, int]]:
        """Of each cell what it is, how many runs of those that are left are at their end, and how many are to be."""
        found = []
        for label, cell in zip(self.labels, self.cells, strict=True):
            where, last = self._stage(cell), self._legs(cell)[-1]
            if where.step:
                found.append((label, 0, last.settings * last.seeds))
            else:
                found.append((label, sum(run.is_over() for run in where.asked), len(where.asked)))
        return found

    def legs(self) -> dict[tuple[Leg, ...], int]:
        """What the race asks for from rung to rung, and of how many cells."""
        return Counter(tuple(self._legs(cell)) for cell in self.cells)

    def trial(self) -> Iterator[tuple[RunPlan, int]]:
        """Runs like those that the race will train, with the step from which each goes on: as if the first settings of
        each cell won."""
        for cell in self.cells:
            done: dict[str, int] = {}
            for leg in self._legs(cell):
                for own in list(cell.values())[: leg.settings]:
                    for run in own[: leg.seeds]:
                        until = 0 if leg.step == run.config["steps"] else leg.step
                        yield dataclasses.replace(run, until=until), done.get(run.name, 0)
                        done[run.name] = leg.step

    def _legs(self, cell: Cell) -> list[Leg]:
        own = next(iter(cell.values()))
        return legs(self.race, len(cell), len(own), own[0].config["steps"])

    def _stage(self, cell: Cell) -> Stage[RunPlan]:
        return stage(self.race, cell, self._value, self.seeds, _diverged)

    def _value(self, run: RunPlan, step: int) -> float | None:
        return _value(run, step, self.race.by)


def _lines(label: str, cell: Cell, where: Stage[RunPlan]) -> Iterator[str]:
    if where.lost:
        names = ", ".join(_text(cell, name) for name in where.lost)
        yield f"{label}: {names} won and then diverged with all seeds: the race is held without"
    for rung, means in where.means.items():
        went = [name for name in means if where.out.get(name, math.inf) > rung]
        best = sorted(went, key=lambda name: -means[name])
        told = ", ".join(f"{_text(cell, name)} ({means[name]:.5g})" for name in best)
        if not went:
            yield f"{label}: step {rung}: all {len(means)} settings diverged, and the race of this cell ends"
        else:
            yield f"{label}: step {rung}: {len(went)} of {len(means)} settings go on: {told}"


def _labels(race: Race, found: Sequence[Cell]) -> list[str]:
    """What each cell is, for people: with the options in which cells of one method on one task differ."""
    firsts = [next(iter(cell.values()))[0] for cell in found]
    options = [
        {key: value for key, value in fixed(race, run).items() if not key.endswith("._target_")} for run in firsts
    ]
    alike: dict[str, list[dict[str, Any]]] = {}
    for run, own in zip(firsts, options, strict=True):
        alike.setdefault(run.label, []).append(own)
    return [
        ", ".join([run.label, *_differing(own, alike[run.label])]) for run, own in zip(firsts, options, strict=True)
    ]


def _differing(own: dict[str, Any], all_of_them: Sequence[dict[str, Any]]) -> list[str]:
    """The options ``own`` that are not the same in all, as ``KEY=VALUE``."""
    return [
        f"{key.removesuffix('.name')}={value}"
        for key, value in own.items()
        if any(other.get(key, value) != value for other in all_of_them)
    ]


def rungs_of(runs: Sequence[RunPlan], seeds: int | None = None) -> Rungs | None:
    """The race that a sweep's config asks for, of those of its runs that make sense, or ``None``.

    Raises:
        UserError: for a race that cannot be run.
    """
    race = race_of(runs[0].config)
    return None if race is None else Rungs(race, [run for run in runs if not reason_to_skip(run.config)], seeds)


def lines_of(legs_of_cells: dict[tuple[Leg, ...], int], over: Sequence[str]) -> list[str]:
    """The plan of a race for people: rungs, settings, seeds, and what it costs beside the full grid."""
    lines, cost, full = [], 0, 0
    for own, count in legs_of_cells.items():
        parts = [f"step {leg.step}: {_of(leg.settings, 'setting')} x {_of(leg.seeds, 'seed')}" for leg in own]
        lines.append(f"{_of(count, 'cell')}: {', then '.join(parts)}")
        cost += count * sum(leg.replica_steps for leg in own)
        full += count * own[0].settings * own[-1].seeds * own[-1].step
    lines.append(f"{cost:,} replica-steps at most, {cost / full:.1%} of the {full:,} of the full grid")
    return [f"a race over {', '.join(over)}, judged on validation:", *lines]


def _of(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


def _value(run: RunPlan, step: int, by: str) -> float | None:
    """``by`` on validation at ``step``, or the run's primary metric, higher is better; NaN if it diverged, ``None``
    before.

    Raises:
        UserError: if what is measured on validation is not ``by``.
    """
    record = run.record
    try:
        result, values = record.result(), record.validation(by)
    except DamagedRecord:
        return None
    except KeyError as error:
        raise UserError(f"race.by={by}: the task measures {error.args[0]} on validation, and not that") from None
    if step in values:
        return values[step]
    return math.nan if result and result["status"] == "diverged" else None


def _diverged(run: RunPlan) -> bool:
    try:
        return run.record.answer(run.target) == "diverged"
    except DamagedRecord:
        return False


def _why_never(run: RunPlan) -> str | None:
    """Why a run will have no value at its rung, in words; ``None`` if it can be trained to it."""
    try:
        measured = sorted(run.record.validation())
    except DamagedRecord as error:  # what is redone for it is not over
        return str(error) if run.is_over() else None
    if run.until in measured or not measured or measured[-1] < run.until:
        return None
    at = ", ".join(map(str, measured[:SHOWN])) + (", ..." if len(measured) > SHOWN else "")
    return f"{run.path} is past step {run.until}, and was not measured there, but at {at}"


def _eliminate(run: RunPlan, rung: int) -> None:
    record = run.record
    try:
        if not read_metrics(record.path / METRICS):  # it has nothing to keep
            return
    except DamagedRecord:  # named by who reads it
        return
    if record.is_finished() or not record.claim.take():
        return
    try:
        record.eliminate(rung)
    finally:
        record.claim.release()


def _text(cell: Cell, setting: str) -> str:
    """A setting by those of its options that differ within its cell."""
    options = {name: json.loads(name) for name in cell}
    return " ".join(_differing(options[setting], list(options.values()))) or "the only one"
