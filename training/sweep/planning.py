"""What a sweep asks for: what is to be done, what is not and why, and the packs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.records import CHECKPOINT, METRICS, RESULT, DamagedRecord, UnreadableRecord
from training.config import validity
from training.config.plan import PackPlan, RunPlan, packs_of
from training.devices import largest_pack, worker_count
from training.errors import UserError
from training.pack import fingerprint
from training.pack.memory import rehearse
from training.replicas import schedules

BUSY = "being trained by another process"
PASSED = "trained further in this sweep, and not kept as it was at this step; choose another sweep=NAME"
UNREADABLE = "left as it is, since it cannot be read (remove the file to train the run again)"
SHOWN = 10
"""Sentences of one kind that are shown before the rest is counted."""


@dataclass
class Plan:
    """What a sweep asks for: the packs to train, and why the other runs are not trained."""

    packs: list[PackPlan]
    done: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, list[RunPlan]] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    cautions: dict[str, list[RunPlan]] = field(default_factory=dict)
    changed: dict[str, list[RunPlan]] = field(default_factory=dict)
    later: list[RunPlan] = field(default_factory=list)

    @property
    def todo(self) -> int:
        return sum(map(len, self.packs)) + len(self.later)

    def lines(self) -> list[str]:
        """The plan for people, without the packs."""
        total = self.todo + sum(self.done.values()) + sum(map(len, self.skipped.values()))
        over = ", ".join(f"{count} {word}" for word, count in sorted(self.done.items()))
        lines = [f"{total} runs: {self.todo} to do in {len(self.packs)} packs, {over or 'none finished'}"]
        lines += [f"{damage}; the run is redone" for damage in self.damaged[:SHOWN]]
        if len(self.damaged) > SHOWN:
            lines.append(f"... and {len(self.damaged) - SHOWN} more damaged records")
        lines += [f"{count_of(runs)} skipped: {_names(runs)}: {reason}" for reason, runs in self.skipped.items()]
        lines += [f"{count_of(runs)} to beware of: {_names(runs)} {text}" for text, runs in self.cautions.items()]
        for modules, runs in self.changed.items():
            what = f"{count_of(runs)} of {_names(runs)} began with other code of {modules} than it has now"
            lines.append(f"{what}; retry=changed trains {'it' if len(runs) == 1 else 'them'} again")
        return lines


def count_of(runs: Sequence[RunPlan]) -> str:
    """``1 run``, ``2 runs``, ... for people."""
    return f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}"


def _names(runs: Sequence[RunPlan]) -> str:
    return ", ".join(dict.fromkeys(run.config["estimator"]["name"] for run in runs))


def make_plan(runs: Sequence[RunPlan], take_back: bool = False) -> Plan:
    """Sort out what is over, what makes no sense and what is left, and pack that.

    Args:
        runs: of one sweep.
        take_back: remove results, checkpoints and metrics of what ``retry`` trains from its start: with ``diverged``
            those that diverged, with ``changed`` those that other code of the user's began.

    Raises:
        UserError: for an option that no run can have.
    """
    options = runs[0].config
    plan, todo, names = Plan([]), [], set[str]()
    reasons: dict[tuple[Any, ...], str | None] = {}
    for run in sorted(runs, key=lambda run: run.config["steps"]):
        validity.check(run.config)
        key = tuple(str(run.config[group]) for group in ("estimator", "task", "data"))
        if key not in reasons:
            reasons[key] = validity.reason_to_skip(run.config)
        if reason := reasons[key]:
            plan.skipped.setdefault(reason, []).append(run)
            continue
        record = run.record
        try:
            outcome = record.answer(run.target)
        except UnreadableRecord as error:  # what it holds may have cost hours: nothing is trained over it
            plan.skipped.setdefault(f"{UNREADABLE}: {error}", []).append(run)
            continue
        except DamagedRecord as error:
            plan.damaged.append(str(error))
            outcome = None
        if outcome == "passed":
            plan.skipped.setdefault(PASSED, []).append(run)
            continue
        if run.name in names:  # the same training, for longer or measured otherwise: one after the other
            plan.later.append(run)
            continue
        changed = fingerprint.changed(run.config, record)
        wanted = _is_wanted(options["retry"], record.status_word() if outcome is None else outcome, outcome, changed)
        if wanted and record.claim.is_held():
            plan.skipped.setdefault(BUSY, []).append(run)
        elif wanted:
            if (outcome or options["retry"] == "changed") and take_back:
                for name in (RESULT, CHECKPOINT, METRICS):
                    (record.path / name).unlink(missing_ok=True)
            todo.append(run)
            names.add(run.name)
            if text := validity.caution(run.config):
                plan.cautions.setdefault(text, []).append(run)
        elif outcome:
            plan.done[outcome] += 1
        if changed and options["retry"] != "changed":
            plan.changed.setdefault(changed, []).append(run)
        if wanted or outcome:
            continue
        plan.skipped.setdefault(f"not {options['retry']}", []).append(run)
    rehearse_all(todo)
    plan.packs = packs_of(todo, worker_count(options), largest_pack(options))
    return plan


def _is_wanted(retry: str, word: str, outcome: str | None, changed: str | None) -> bool:
    return bool(changed) if retry == "changed" else word == retry if retry else not outcome


def rehearse_all(runs: Sequence[RunPlan]) -> None:
    """Build each estimator, task and data set of ``runs`` once, before anything trains.

    Raises:
        UserError: for an option that one of them refuses.
    """
    rehearsed = set()
    for run in runs:
        parts = (str(run.config[group]) for group in ("estimator", "task", "data"))
        key = (*parts, schedules.anneals(run.config))
        if key not in rehearsed:
            rehearsed.add(key)
            try:
                rehearse(run.config)
            except UserError as error:
                raise UserError(f"{run.label}: {error}") from None
            except Exception:  # whatever else is wrong, the pack's log says it with a traceback
                continue
