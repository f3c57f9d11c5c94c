"""A sweep: what is to be done and what is not and why, the packs, their training, and the summary."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.records import CHECKPOINT, METRICS, RESULT, DamagedRecord, read_metrics
from training import interrupt
from training.config import validity
from training.config.plan import PackPlan, RunPlan, packs_of, replicated
from training.devices import largest_pack, worker_count
from training.errors import UserError
from training.pack.memory import rehearse
from training.pack.run import train_runs
from training.progress import PackLine

BUSY = "being trained by another process"
PASSED = "trained further in this sweep, and not kept as it was at this step; choose another sweep=NAME"
ORPHAN_SECONDS = 10.0
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
        lines += [f"{_count(runs)} skipped: {_names(runs)}: {reason}" for reason, runs in self.skipped.items()]
        lines += [f"{_count(runs)} to beware of: {_names(runs)} {text}" for text, runs in self.cautions.items()]
        return lines


def _count(runs: Sequence[RunPlan]) -> str:
    return f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}"


def _names(runs: Sequence[RunPlan]) -> str:
    return ", ".join(dict.fromkeys(run.config["estimator"]["name"] for run in runs))


def make_plan(runs: Sequence[RunPlan], take_back: bool = False) -> Plan:
    """Sort out what is over, what makes no sense and what is left, and pack that.

    Args:
        runs: of one sweep.
        take_back: with ``retry=diverged``, remove the results of those that diverged, so that they start again.

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
        except DamagedRecord as error:
            plan.damaged.append(str(error))
            outcome = None
        if outcome == "passed":
            plan.skipped.setdefault(PASSED, []).append(run)
            continue
        if run.name in names:  # the same training, for longer or measured otherwise: one after the other
            plan.later.append(run)
            continue
        wanted = (
            (record.status_word() if outcome is None else outcome) == options["retry"]
            if options["retry"]
            else not outcome
        )
        if wanted and record.claim.is_held():
            plan.skipped.setdefault(BUSY, []).append(run)
        elif wanted:
            if outcome and take_back:
                for name in (RESULT, CHECKPOINT):
                    (record.path / name).unlink(missing_ok=True)
            todo.append(run)
            names.add(run.name)
            if text := validity.caution(run.config):
                plan.cautions.setdefault(text, []).append(run)
        elif outcome:
            plan.done[outcome] += 1
        else:
            plan.skipped.setdefault(f"not {options['retry']}", []).append(run)
    _rehearse(todo)
    plan.packs = packs_of(todo, worker_count(options), largest_pack(options))
    return plan


def _rehearse(runs: Sequence[RunPlan]) -> None:
    """Raise ``UserError``, before anything trains, for an option that a task, an estimator or the data refuses."""
    rehearsed = set()
    for run in runs:
        key = tuple(str(run.config[group]) for group in ("estimator", "task", "data"))
        if key not in rehearsed:
            rehearsed.add(key)
            try:
                rehearse(run.config)
            except UserError as error:
                raise UserError(f"{run.label}: {error}") from None
            except Exception:  # whatever else is wrong, the pack's log says it with a traceback
                continue


def train_job(job: dict[str, Any], overrides: Sequence[str] = ()) -> None:
    """Train the ``replicas`` runs of the config ``job`` in this process.

    Raises:
        UserError: for a mistake in the config, and no run's record is touched then; if no run came to its first
            evaluation.
        Stopped: if a signal asked for it.
    """
    runs = list(replicated(job, overrides))
    if job["budget"] != "full":
        raise UserError(f"budget={job['budget']} is a form of an experiment's sweep: add -m")
    if job["dry_run"] or job["cluster"]["name"] != "none":
        return run_sweep(runs)
    first = runs[0].config
    validity.check(first)
    if reason := validity.reason_to_skip(first):
        raise UserError(f"estimator={first['estimator']['name']} {reason}")
    _rehearse(runs[:1])
    with interrupt.on_signals(signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        for pack in packs_of(runs, 1, largest_pack(job)):
            train_runs(pack, PackLine(job["progress"]), solo=True)
    _refuse_divergence(runs)


def run_sweep(runs: Sequence[RunPlan]) -> None:
    """Train what is left of a sweep and print a summary.

    Raises:
        UserError: if a run failed, with the reasons; if no run came to its first evaluation.
        Stopped: if a signal asked for it.
    """
    options = runs[0].config
    plan = make_plan(runs, take_back=not options["dry_run"])
    print("\n".join(plan.lines()), flush=True)
    if options["dry_run"]:
        from training.sweep import estimate

        print("\n".join(estimate.lines(plan.packs, worker_count(options))), flush=True)
        return
    todo, failures = [], dict[str, str]()
    while plan.packs or plan.later or plan.skipped.get(BUSY):
        if plan.packs:
            if options["cluster"]["name"] == "none":
                from training.sweep import workers as executor
            else:
                from training.sweep import cluster as executor  # type: ignore[no-redef]
            failures |= executor.run_packs(plan.packs)
            todo += [run for pack in plan.packs for run in pack]
        left = _left_behind(plan.skipped.get(BUSY, []))
        if left:
            print(f"{len(left)} runs that another process has left are trained now", flush=True)
        if not left and not plan.later:
            break
        plan = make_plan([*left, *plan.later])
    if todo:
        _summarise(todo, failures)
    _refuse_divergence(runs)


def _refuse_divergence(runs: Sequence[RunPlan]) -> None:
    """Raise ``UserError`` if every run diverged before its first evaluation: the sweep has no number to show."""
    try:
        nothing = all(run.record.outcome() == "diverged" and not read_metrics(run.path / METRICS) for run in runs)
    except DamagedRecord:
        return
    if nothing:
        raise UserError(
            f"{_count(runs)} diverged before the first evaluation, and there is no other ({runs[0].record.error()}); "
            "change what is too large or too small, mostly optimizer.lr"
        )


def _left_behind(busy: Sequence[RunPlan]) -> list[RunPlan]:
    """Unfinished runs whose owner released its claim, after waiting a little while.

    Of a sweep that was killed and is started again the workers may still be there: they are about to write their
    checkpoints and end.
    """
    deadline = time.monotonic() + ORPHAN_SECONDS
    while (held := {run.name for run in busy if run.record.claim.is_held()}) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [run for run in busy if run.name not in held and not run.is_over()]


def _summarise(todo: Sequence[RunPlan], failed: dict[str, str]) -> None:
    """Print how the runs that were to be done ended. Raises ``UserError`` if some failed."""
    words: Counter[str] = Counter()
    failures: dict[str, list[str]] = {}
    for run in todo:
        record = run.record
        try:
            word = record.answer(run.target) or record.status_word()
        except DamagedRecord as error:
            word = f"damaged ({error})"
        if run.name in failed and word not in ("finished", "diverged"):  # also where its record cannot be written
            word = "failed"
        words[word] += 1
        if word == "failed":
            failures.setdefault(failed.get(run.name) or record.error() or "unknown", []).append(run.name)
        elif word == "diverged":
            print(f"diverged: {run.name}: {record.error()}")
    print(", ".join(f"{count} {word}" for word, count in sorted(words.items())), flush=True)
    if failures:
        shown = "; ".join(
            f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {error}"
            for error, names in list(failures.items())[:SHOWN]
        )
        raise UserError(
            f"{words['failed']} of {len(todo)} runs failed ({shown}); their log.txt has the traceback, and the same "
            "command with retry=failed tries them again"
        )
