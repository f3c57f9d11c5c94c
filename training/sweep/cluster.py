"""Sweeps beyond this process: each pack is a job that submitit hands to SLURM, or starts on this machine.

A job goes on by itself, whether or not the command that submitted it still waits: it is requeued on time-out and
preemption, and its runs' records say what became of it. The command waits, shows all jobs on one screen, and submits a
pack again whose job was killed.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.records import write_atomically
from analysis.records.claims import HEARTBEAT_SECONDS
from training import interrupt
from training.config.plan import PackPlan
from training.pack.build import load_once
from training.progress import Event
from training.sweep.executors import make_executor
from training.sweep.job import ENDED, TrainPack, events_of
from training.sweep.screen import Screen
from training.sweep.workers import Job, give_up

FOLDER = ".jobs"
"""In the sweep's folder: submitit's files. Those of a job that went well are removed.

A job executes the pickle that it finds there, so the folder is closed to others. This command reads no pickle: a job
leaves its runs' names and what became of it as JSON.
"""
LOOK_SECONDS = 0.5


@dataclass
class Submitted:
    """A job that was submitted: its pack, submitit's handle, its number on the screen."""

    job: Job
    handle: Any
    number: int
    begun: bool = False
    read: int = 0
    outcome: Event | None = None
    gone: float | None = None


def run_packs(packs: Sequence[PackPlan]) -> dict[str, str]:
    """Train packs as jobs, and wait for them. A killed job's pack is submitted again at most ``retries`` times.

    Runs that a living job of an earlier command has are left to it. Returns the names of the runs that failed, with the
    reasons.

    Raises:
        UserError: for options that the cluster cannot have, and if it refuses the jobs.
        Stopped: if a signal asked for it. Jobs of SLURM go on; those on this machine have written checkpoints.
    """
    watch = _Watch(packs)
    for data in {json.dumps(run.config["data"]): run.config["data"] for pack in packs for run in pack}.values():
        load_once(**data)  # downloads what is missing: where jobs run, there may be no network
    with interrupt.on_signals(signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        watch.run()
    return watch.screen.failures


class _Watch:
    def __init__(self, packs: Sequence[PackPlan]) -> None:
        self.options = packs[0][0].config
        self.folder = Path(self.options["runs_dir"]).absolute() / self.options["sweep"] / FOLDER
        self.executor = make_executor(self.options, self.folder)
        self.screen = Screen(packs, self.options["progress"])
        self.waiting = deque(Job(pack) for pack in self._not_submitted(packs))
        self.submitted: list[Submitted] = []
        self.given = 0

    def run(self) -> None:
        try:
            while self.waiting or self.submitted:
                self._submit()
                self._look()
                if interrupt.asked():
                    raise self.executor.leave([submitted.handle for submitted in self.submitted])
                self.screen.draw()
                time.sleep(LOOK_SECONDS)
        finally:
            self.screen.close()

    def _not_submitted(self, packs: Sequence[PackPlan]) -> list[PackPlan]:
        """The packs without runs that are in a living job of an earlier command."""
        theirs: dict[str, str] = {}
        for job_id in self.executor.states() or {}:
            with contextlib.suppress(OSError, ValueError, TypeError):
                theirs |= dict.fromkeys(json.loads(self._names(job_id).read_bytes()), job_id)
        found = [run.name for pack in packs for run in pack if run.name in theirs]
        if found:
            jobs = ", ".join(dict.fromkeys(theirs[name] for name in found))
            print(f"{len(found)} runs are in jobs of an earlier command and not submitted again: {jobs}", flush=True)
        left = (tuple(run for run in pack if run.name not in theirs) for pack in packs)
        return [pack for pack in left if pack]

    def _names(self, job_id: str) -> Path:
        """The file with the names of a job's runs."""
        return self.folder / f"{job_id}_runs.json"

    def _submit(self) -> None:
        room = min(self.executor.room(len(self.submitted)), len(self.waiting))
        if room <= 0:
            return
        jobs = [self.waiting.popleft() for _ in range(room)]
        for job, handle in zip(jobs, self.executor.submit([TrainPack(job.pack) for job in jobs]), strict=True):
            self.given += 1
            self.submitted.append(Submitted(job, handle, self.given))
            write_atomically(self._names(handle.job_id), json.dumps([run.name for run in job.pack]).encode())

    def _look(self) -> None:
        states = self.executor.states()
        now = time.monotonic()
        for submitted in list(self.submitted):
            over = submitted.handle.paths.result_pickle.exists()
            self._read_events(submitted)
            if over:
                self._ended(submitted)
            elif states is None or submitted.handle.job_id in states:
                submitted.gone = None
            else:
                submitted.gone = now if submitted.gone is None else submitted.gone
                # A claim from another machine looks alive for a while; it may also be a job that lives on unseen.
                claimed = any(run.record.claim.is_held() for run in submitted.job.pack)
                patience = max(self.executor.grace, 1.1 * HEARTBEAT_SECONDS if claimed else 0.0)
                if now - submitted.gone >= patience:
                    self._died(submitted, self.executor.verdict(submitted.handle))
        own = [submitted.handle.job_id for submitted in self.submitted]
        counts = Counter((states or {}).get(job_id, "ending").lower() for job_id in own)
        self.screen.note = ", ".join(f"{count} jobs {state}" for state, count in sorted(counts.items()))

    def _read_events(self, submitted: Submitted) -> None:
        try:
            with open(events_of(submitted.handle), "rb") as file:
                file.seek(submitted.read)
                *lines, torn = file.read().split(b"\n")
        except OSError:
            return
        submitted.read += sum(len(line) + 1 for line in lines)
        if lines and not submitted.begun:
            submitted.begun = True
            self.screen.begin(submitted.number, submitted.job.pack)
        for event in map(json.loads, lines):
            if event["event"] == ENDED:
                submitted.outcome = event
            else:
                self.screen.show(event | {"pack": submitted.number})

    def _ended(self, submitted: Submitted) -> None:
        """A job has left a result: it went well, or an exception ended it."""
        outcome = submitted.outcome or {"error": "an exception, before it began"}
        if outcome["error"]:
            return self._died(submitted, outcome["error"])
        self._forget(submitted, lost=False)
        if outcome["mistake"]:
            for run in submitted.job.pack:
                if not run.is_over():
                    give_up(run, outcome["mistake"], self.screen)
            return
        for file in self.folder.glob(f"{submitted.handle.job_id}_*"):
            file.unlink(missing_ok=True)

    def _died(self, submitted: Submitted, how: str) -> None:
        """A job ended without having trained its pack."""
        job, name = submitted.job, submitted.handle.job_id
        self._forget(submitted, lost=True)
        log = submitted.handle.paths.stderr
        if how.startswith("PREEMPTED"):  # where SLURM cancels instead of requeueing; not the pack's fault
            reason = None
        elif how.startswith("CANCELLED"):
            reason = f"its job {name} was cancelled"
        elif "timed-out too many times" in how:
            reason = f"its job {name} timed out {self.options['cluster']['max_timeouts'] + 1} times; see cluster.*"
        else:
            job.deaths += 1
            again = job.deaths <= self.options["retries"]
            reason = None if again else f"its job died {job.deaths} times (the last time: {how}); see {log}"
        rest = job.rest()
        runs = [run for part in rest for run in part.pack]
        if reason is None:
            self.screen.say(f"job {name} died ({how}); its {len(runs)} unfinished runs go on in a new job; see {log}")
            self.waiting.extendleft(reversed(rest))
        else:
            for run in runs:
                give_up(run, reason, self.screen)

    def _forget(self, submitted: Submitted, lost: bool) -> None:
        self.submitted.remove(submitted)
        if not submitted.begun:
            self.screen.begin(submitted.number, submitted.job.pack)
        (self.screen.lose if lost else self.screen.end)(submitted.number)
