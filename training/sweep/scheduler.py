"""The scheduler: gives packs to an executor, tries again what died, gives up in the end, and shows it on the screen.

It knows nothing of processes and clusters (:mod:`training.sweep.executor`).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from training import interrupt
from training.config.plan import PackPlan, RunPlan
from training.interrupt import Stopped
from training.pack.run import record_failure
from training.sweep.executor import Died, Ended, Executor, Failed, JobEvent, Note, Progress, Started
from training.sweep.screen import Screen

POLL_SECONDS = 0.5


@dataclass
class Job:
    """A pack to be trained, and how often a process has died of it."""

    pack: PackPlan
    deaths: int = 0

    def rest(self) -> list[Job]:
        """What is left after a death: the unfinished runs in one pack, from the second death on in two.

        Memory may have been the reason, which a killed process cannot say.
        """
        left = tuple(run for run in self.pack if not run.is_over())
        size = -(-len(left) // (2 if self.deaths > 1 else 1)) or 1
        return [Job(left[start : start + size], self.deaths) for start in range(0, len(left), size)]


def run_packs(packs: Sequence[PackPlan], executor: Executor) -> dict[str, str]:
    """Train packs. A pack whose job dies is tried again ``retries`` times.

    Returns the names of the runs that failed, with the reasons.

    Raises:
        UserError: if the executor refuses jobs.
        Stopped: if a stop was asked for; the executor has left its jobs.
    """
    scheduler = _Scheduler(packs, executor)
    try:
        scheduler.run()
    finally:
        scheduler.screen.close()
    return scheduler.screen.failures


class _Scheduler:
    def __init__(self, packs: Sequence[PackPlan], executor: Executor) -> None:
        options = packs[0][0].config
        self.executor, self.retries = executor, options["retries"]
        self.screen = Screen(packs, options["progress"])
        self.waiting = deque(Job(pack) for pack in packs)
        self.running: dict[int, Job] = {}
        self.numbers = itertools.count(1)

    def run(self) -> None:
        while self.waiting or self.running:
            self._submit()
            for event in self.executor.poll(POLL_SECONDS):
                self._take(event)
            if interrupt.asked():
                raise Stopped(self.executor.leave())
            self.screen.draw()

    def _submit(self) -> None:
        room = min(self.executor.room(), len(self.waiting))
        jobs = {next(self.numbers): self.waiting.popleft() for _ in range(room)}
        if jobs:
            self.running |= jobs
            self.executor.submit({number: job.pack for number, job in jobs.items()})

    def _take(self, event: JobEvent) -> None:
        if isinstance(event, Note):
            self.screen.note = event.text
            return
        job = self.running.get(event.job)
        if job is None or (isinstance(event, Died) and interrupt.asked()):  # it has ended; it was told to end
            return
        if isinstance(event, Started):
            self.screen.begin(event.job, job.pack)
        elif isinstance(event, Progress):
            self.screen.show(event.event | {"pack": event.job})
        elif isinstance(event, Ended):
            del self.running[event.job]
            self.screen.end(event.job)
        elif isinstance(event, Failed):
            del self.running[event.job]
            self.screen.end(event.job)
            self._give_up(job, event.reason)
        else:
            del self.running[event.job]
            self._died(job, event)

    def _died(self, job: Job, event: Died) -> None:
        job.deaths += event.counts
        rest = job.rest()
        if job.deaths > self.retries or not rest:
            self.screen.end(event.job)
            times = f"died {job.deaths} times (the last time {event.how})"
            self._give_up(job, f"its {event.what} {times}; see {event.log}")
            return
        self.screen.lose(event.job, [part.pack for part in rest])
        left = sum(len(part.pack) for part in rest)
        self.screen.say(f"{event.who} died {event.how}; its {left} unfinished runs go on from their checkpoints")
        self.waiting.extendleft(reversed(rest))

    def _give_up(self, job: Job, reason: str) -> None:
        for run in job.pack:
            if not run.is_over():
                _record(run, reason, self.screen)


def _record(run: RunPlan, error: str, screen: Screen) -> None:
    """Record a run as ``failed`` that no process trains any more."""
    claim = run.record.claim
    try:
        if not claim.take():  # somebody else has it
            return
        try:
            record_failure(run, error, f"failed: {error}")
        finally:
            claim.release()
    except OSError as trouble:
        error += f"; its record cannot be written: {trouble}"
    screen.show({"event": "run", "run": run.name, "status": "failed", "error": error, "pack": None})
