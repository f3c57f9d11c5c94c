"""What a job of SLURM runs: one pack, that goes on from its checkpoints wherever and however often it starts."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import submitit

from analysis.records.claims import HEARTBEAT_SECONDS
from training import interrupt
from training.config import schema
from training.config.plan import PackPlan, RunPlan
from training.errors import UserError
from training.pack.run import train_runs
from training.progress import Event, Report

ENDED = "ended"
STEP_SECONDS = 5.0
"""Between two ``step`` events in the file of events, which the waiting command reads over the network."""


class TrainPack:
    """Trains ``runs``; picklable, and checkpointable as submitit understands it: the state is in the runs' records."""

    def __init__(self, runs: Sequence[RunPlan]) -> None:
        self.runs = [(run.config, list(run.overrides), run.until) for run in runs]

    def plans(self) -> PackPlan:
        """The runs."""
        return tuple(RunPlan(config, tuple(overrides), until) for config, overrides, until in self.runs)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit starts when the job comes back: the same."""
        return submitit.helpers.DelayedSubmission(self)

    def __call__(self) -> None:
        """Train, and end the job's events with what became of it.

        That is ``{"event": "ended", "mistake": ..., "error": ...}``: a user's mistake, which would be the same in the
        next try, or an exception, as a sentence; both ``None`` if it went well.
        """
        report = events_to(events_of(submitit.JobEnvironment()))
        ended: Event = {"event": ENDED, "mistake": None, "error": None}
        try:
            self._train(report)
        except UserError as error:
            ended["mistake"] = str(error)
        except Exception as error:
            report(ended | {"error": f"{type(error).__name__}: {error}"})
            raise
        report(ended)

    def _train(self, report: Report) -> None:
        """The signal before a time-out or a preemption (SIGUSR2), and SIGTERM, write checkpoints first.

        Then SIGUSR2 goes to submitit, which requeues the job; SIGTERM ends it, because whoever sent it decides what
        comes next.
        """
        schema.register()
        warning = getattr(signal, f"SIG{submitit.JobEnvironment.USR_SIG}")
        requeue: Any = signal.getsignal(warning)
        received: set[int] = set()

        def ask(number: int, frame: FrameType | None) -> None:
            received.add(number)
            interrupt.ask()

        for number in (warning, signal.SIGTERM):
            signal.signal(number, ask)
        runs = self.plans()
        wait_for_dead_owners(runs)
        try:
            return train_runs(runs, report)
        except interrupt.Stopped:
            pass
        names = " and ".join(signal.Signals(number).name for number in sorted(received))
        job = submitit.JobEnvironment().job_id
        report({"event": "message", "text": f"job {job} was stopped by {names}; checkpoints are written"})
        if warning in received:
            requeue(warning, None)
        sys.exit(128 + signal.SIGTERM)


def wait_for_dead_owners(runs: Sequence[RunPlan]) -> None:
    """Wait while a run is claimed, at most until a claim whose owner was killed on another machine looks dead."""
    deadline = time.monotonic() + 1.1 * HEARTBEAT_SECONDS
    while not interrupt.asked() and time.monotonic() < deadline:
        if not any(run.record.claim.is_held() for run in runs):
            return
        time.sleep(1)


def events_of(job: Any) -> Path:
    """The file of events of a job (submitit's ``Job`` or ``JobEnvironment``)."""
    return Path(job.paths.folder) / f"{job.job_id}_events.jsonl"


def events_to(file: Path) -> Report:
    """A report that appends to ``file``. A full disk must not end the training that it tells of."""
    waiting: list[Event] = []
    last = 0.0

    def report(event: Event) -> None:
        nonlocal last
        if event["event"] == "step" and time.monotonic() - last < STEP_SECONDS:
            waiting[:] = [event]
            return
        with contextlib.suppress(OSError), open(file, "a", encoding="utf-8") as events:
            events.writelines(json.dumps(each) + "\n" for each in [*waiting, event])
        waiting.clear()
        last = time.monotonic()

    return report
