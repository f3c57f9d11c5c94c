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

from analysis.records import METRICS, DamagedRecord
from training.config.plan import RunPlan
from training.config.race import Leg, Race, Stage, cells, legs, race_of, stage
from training.config.validity import reason_to_skip

Cell = dict[str, list[RunPlan]]


class Rungs:
    """The race of ``runs``, which are those of a sweep that make sense.

    The settings that are left in the end train with so many ``seeds``, by default all.
    """

    def __init__(self, race: Race, runs: Sequence[RunPlan], seeds: int | None = None) -> None:
        self.race, self.cells, self.seeds = race, cells(race, runs), seeds
        self._said: set[str] = set()

    def missing(self) -> list[RunPlan]:
        """The runs that are to be trained next, each to its cell's rung or to its end; none if the race is over."""
        found: list[RunPlan] = []
        for cell in self.cells:
            where = self._stage(cell)
            asked = [dataclasses.replace(run, until=where.step) for run in where.asked]
            found += [run for run in asked if (_value(run, run.until) is None if run.until else not run.is_over())]
        return found

    def eliminate(self) -> list[str]:
        """End the runs of settings that lost, and say in a line per cell and rung how it went."""
        lines: list[str] = []
        for cell in self.cells:
            where = self._stage(cell)
            for setting, rung in where.out.items():
                for run in cell[setting]:
                    _eliminate(run, rung)
            lines += [line for line in self._lines(cell, where) if line not in self._said]
        self._said.update(lines)
        return lines

    def is_lost(self) -> bool:
        """Whether no cell has a setting left."""
        return not any(self._stage(cell).left for cell in self.cells)

    def progress(self) -> list[tuple[str, int, int]]:
        """Of each cell what it is, how many runs of those that are left are at their end, and how many are to be."""
        found = []
        for cell in self.cells:
            where, last = self._stage(cell), self._legs(cell)[-1]
            label = next(iter(cell.values()))[0].label
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
        return stage(self.race, cell, _value, self.seeds)

    def _lines(self, cell: Cell, where: Stage[RunPlan]) -> Iterator[str]:
        label = next(iter(cell.values()))[0].label
        for rung, means in where.means.items():
            went = [name for name in means if where.out.get(name, math.inf) > rung]
            best = sorted(went, key=lambda name: -means[name])
            told = ", ".join(f"{_text(cell, name)} ({means[name]:.5g})" for name in best)
            if not went:
                yield f"{label}: step {rung}: all {len(means)} settings diverged, and the race of this cell ends"
            else:
                yield f"{label}: step {rung}: {len(went)} of {len(means)} settings go on: {told}"


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


def _value(run: RunPlan, step: int) -> float | None:
    """The run's primary metric on validation at ``step``, higher is better; NaN if it diverged, ``None`` before."""
    record = run.record
    try:
        result, values = record.result(), record.validation()
    except DamagedRecord:
        return None
    if step in values:
        return values[step]
    return math.nan if result and result["status"] == "diverged" else None


def _eliminate(run: RunPlan, rung: int) -> None:
    record = run.record
    if not (record.path / METRICS).exists() or record.is_finished() or not record.claim.take():
        return
    try:
        record.eliminate(rung)
    finally:
        record.claim.release()


def _text(cell: Cell, setting: str) -> str:
    """A setting by those of its options that differ within its cell."""
    options = {name: json.loads(name) for name in cell}
    varying = [
        key for key, value in options[setting].items() if any(own.get(key, value) != value for own in options.values())
    ]
    return " ".join(f"{key.removesuffix('.name')}={options[setting][key]}" for key in varying) or "the only one"
