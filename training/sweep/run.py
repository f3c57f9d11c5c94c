"""Training the runs of a command, one alone in this process or a sweep, and the summary."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.records import METRICS, DamagedRecord, read_metrics
from training import interrupt
from training.config import validity
from training.config.plan import PackPlan, RunPlan, packs_of, replicated
from training.devices import largest_pack, worker_count
from training.errors import UserError
from training.pack.run import train_runs
from training.progress import PackLine, withdraw
from training.sweep import estimate, scheduler
from training.sweep.executor import Executor
from training.sweep.planning import BUSY, SHOWN, UNREADABLE, Plan, count_of, make_plan, rehearse_all
from training.sweep.pool import worker_pool
from training.sweep.rungs import Rungs, lines_of, rungs_of

ORPHAN_SECONDS = 10.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
ANSWER = "stopping: steps are finished and checkpoints written; a second Ctrl-C does not wait for them"
OVER = ("finished", "diverged", "eliminated", "waiting", "passed", "failed")


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
    if job["dry_run"] or job["retry"] or job["cluster"]["name"] != "none":
        return run_sweep(runs)
    first = runs[0].config
    validity.check(first)
    if reason := validity.reason_to_skip(first):
        raise UserError(f"estimator={first['estimator']['name']} {reason}")
    rehearse_all(runs[:1])
    folder = runs[0].path.parent
    try:
        with interrupt.on_signals(*SIGNALS, answer=ANSWER):
            for pack in packs_of(runs, 1, largest_pack(job)):
                train_runs(pack, PackLine(job["progress"], folder), solo=True)
    finally:
        withdraw(folder)
    _refuse_divergence(runs)


def run_sweep(runs: Sequence[RunPlan], seeds: int | None = None) -> None:
    """Train what is left of a sweep and print a summary.

    Args:
        runs: of the sweep.
        seeds: with how many seeds those go to the end that win a race; all by default.

    Raises:
        UserError: if a run failed, with the reasons; if no run came to its first evaluation.
        Stopped: if a signal asked for it.
    """
    options = runs[0].config
    rungs = rungs_of(runs, seeds)
    done = _Done()
    if rungs:
        _race(rungs, runs, done)
    else:
        plan = make_plan(runs, take_back=not options["dry_run"])
        print("\n".join(plan.lines()), flush=True)
        if options["dry_run"]:
            print("\n".join(estimate.lines(plan.packs, worker_count(options))), flush=True)
        else:
            _carry_out(plan, done)
    if options["dry_run"]:
        return
    if done.todo:
        _summarise(list(done.todo.values()), done.failures)
    if done.unreadable:
        raise UserError("; ".join(done.unreadable[:SHOWN]))
    _refuse_divergence(runs)


@dataclass
class _Done:
    """What a command has done so far: the runs that it had to do, by name; those that failed, with the reasons; and
    what could not be read, in sentences."""

    todo: dict[str, RunPlan] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)


def _race(rungs: Rungs, runs: Sequence[RunPlan], done: _Done) -> None:
    """Train each cell from rung to rung, as long as a round brings one of them on."""
    options = runs[0].config
    print("\n".join(lines_of(rungs.legs(), rungs.race.over)), flush=True)
    for run in runs:
        validity.check(run.config)
    rungs.check()
    skipped = [run for run in runs if validity.reason_to_skip(run.config)]
    if options["dry_run"]:
        lines = [*make_plan([*rungs.missing(), *skipped]).lines(), *estimate.of_race(rungs.trial(), options)]
        return print("\n".join(lines), flush=True)
    if options["retry"]:  # what it takes back is missing then, and the race goes on from there
        make_plan(runs, take_back=True)
        rungs = rungs_of([_without_retry(run) for run in runs], rungs.seeds) or rungs
    before: set[tuple[str, int]] = set()
    while True:
        lines = rungs.eliminate()
        if lines:
            print("\n".join(lines), flush=True)
        asked = [run for run in rungs.missing() if run.name not in done.failures]
        now = {(run.name, run.until) for run in asked}
        if not asked or now == before:
            break
        before = now
        plan, skipped = make_plan([*asked, *skipped], take_back=True), []
        print("\n".join(plan.lines()), flush=True)
        _carry_out(plan, done)
    if not before and (over := [*rungs.asked(), *skipped]):
        print("\n".join(make_plan(over).lines()), flush=True)
    if asked:
        have = "has" if len(asked) == 1 else "have"
        print(f"{count_of(asked)} {have} not come to the next rung of the race: the same command goes on", flush=True)
    if rungs.is_lost():
        raise UserError("in each cell all settings diverged; change what is too large or too small in them")


def _without_retry(run: RunPlan) -> RunPlan:
    return dataclasses.replace(run, config={**run.config, "retry": ""})


def _carry_out(plan: Plan, done: _Done) -> None:
    """Train what a plan has, and what others leave meanwhile."""
    done.unreadable += [reason for reason in plan.skipped if reason.startswith(UNREADABLE)]
    while plan.packs or plan.later or plan.skipped.get(BUSY):
        if plan.packs:
            done.failures |= _train(plan.packs)
            done.todo |= {run.key: run for pack in plan.packs for run in pack}
        left = _left_behind(plan.skipped.get(BUSY, []))
        if left:
            print(f"{len(left)} runs that another process has left are trained now", flush=True)
        if not left and not plan.later:
            break
        plan = make_plan([*left, *plan.later])


def _train(packs: Sequence[PackPlan]) -> dict[str, str]:
    """Train packs where ``cluster`` says. Returns the names of the runs that failed, with the reasons."""
    options = packs[0][0].config
    where: contextlib.AbstractContextManager[Executor]
    if options["cluster"]["name"] == "none":
        where = worker_pool(options)
    else:
        from training.sweep import slurm  # needs submitit, which is installed for it only

        packs, jobs = slurm.prepare(packs)
        where = contextlib.nullcontext(jobs)
    with interrupt.on_signals(*SIGNALS, answer=ANSWER), where as executor:
        return scheduler.run_packs(packs, executor) if packs else {}


def _refuse_divergence(runs: Sequence[RunPlan]) -> None:
    """Raise ``UserError`` if every run diverged before its first evaluation: the sweep has no number to show."""
    try:
        nothing = all(run.record.outcome() == "diverged" and not read_metrics(run.path / METRICS) for run in runs)
    except DamagedRecord:
        return
    if nothing:
        raise UserError(
            f"{count_of(runs)} diverged before the first evaluation, and there is no other ({runs[0].record.error()}); "
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
            word = record.answer(run.target)
            word = record.status_word() if word in (None, "waiting") else word
        except DamagedRecord as error:
            word = f"damaged ({error})"
        if run.name in failed and word not in ("finished", "diverged"):  # also where its record cannot be written
            word = "failed"
        if word not in OVER and not record.claim.is_held():
            failed = {**failed, run.name: f"{word}, and no process trains it"}
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
