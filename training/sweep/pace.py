"""How fast the packs of a sweep are trained, and how long the rest takes, by what their processes have said.

A pack's pace counts from its first report of steps on, when everything is imported, built, compiled and warm; so it is
known seconds after the start, and right after a resume. What is done besides steps (:data:`FINAL`, :data:`MEASURING`)
has a time of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from training.progress import EVALUATING, FINAL, MEASURING

STARTING, FIRST = "starting", "first steps"


@dataclass
class Active:
    """A pack that a process has, and what its events have said so far.

    Attributes:
        start: the step from which its steps are counted as trained.
        phase: what is done besides steps, ``done`` of ``total`` of it, since the time ``since``, when ``first`` of it
            was done. Empty between steps.
        reported: when its last steps were reported; ``None`` if what came in between was something else.
        seconds, replica_steps: what a steady pace is made of.
    """

    label: str
    replicas: int
    start: int = 0
    step: int = 0
    steps: int = 0
    note: str = ""
    phase: str = STARTING
    done: int = 0
    total: int = 0
    first: int = 0
    since: float = 0.0
    reported: float | None = None
    seconds: float = 0.0
    replica_steps: int = 0


class Pace:
    """Of all packs of a sweep together; ``clock`` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._seconds, self._replica_steps = 0.0, 0
        self._evaluation_seconds, self._evaluated = 0.0, 0

    def begins(self, pack: Active) -> None:
        """A process has the pack, or a part of it, ready to be trained."""
        pack.phase, pack.total, pack.reported, pack.since = FIRST, 0, None, self.clock()

    def steps(self, pack: Active, step: int) -> None:
        """The pack is at ``step``."""
        now = self.clock()
        if pack.reported is not None:
            seconds, trained = now - pack.reported, pack.replicas * (step - pack.step)
            pack.seconds, pack.replica_steps = pack.seconds + seconds, pack.replica_steps + trained
            self._seconds, self._replica_steps = self._seconds + seconds, self._replica_steps + trained
        pack.step, pack.phase, pack.reported = step, "", now

    def turns(self, pack: Active, phase: str, done: int, total: int) -> None:
        """The pack is ``done`` of ``total`` through a phase."""
        if phase != pack.phase:
            pack.phase, pack.since, pack.first = phase, self.clock(), done
        pack.done, pack.total = done, total
        if phase != EVALUATING:  # those along the run belong to its pace
            pack.reported = None

    def ends(self, pack: Active) -> None:
        """The pack is over."""
        if pack.phase == FINAL:
            self._evaluation_seconds += self.clock() - pack.since
            self._evaluated += pack.replicas

    def rate(self, active: Iterable[Active]) -> float:
        """Replica-steps per second of the packs that are being trained, together; 0 where nothing is known."""
        return sum(1 / per for pack in active if pack.phase != FINAL and (per := self._per_step(pack)))

    def left(self, active: Iterable[Active], waiting_steps: float, waiting_runs: int) -> float | None:
        """Seconds until all is trained and evaluated, or ``None`` where no pack has a pace yet.

        Args:
            active: the packs that processes have.
            waiting_steps, waiting_runs: replica-steps and runs of those that nobody has.
        """
        packs = list(active)
        each = [self._left_of(pack) for pack in packs]
        per_step = self._per_step(None)
        if not packs or None in each or (waiting_steps and per_step is None):
            return None
        known = [seconds for seconds in each if seconds is not None]
        waiting = waiting_steps * (per_step or 0.0) + waiting_runs * self._per_evaluation()
        return max(*known, (sum(known) + waiting) / len(packs))

    @property
    def knows_evaluations(self) -> bool:
        """Whether what is left includes the last evaluations."""
        return self._evaluated > 0

    def _left_of(self, pack: Active) -> float | None:
        steps = pack.replicas * (pack.steps - pack.step)
        per_step = self._per_step(pack)
        if steps and per_step is None:
            return None
        elsewhere = 0.0 if pack.phase == FINAL else pack.replicas * self._per_evaluation()
        if pack.phase in (FINAL, MEASURING):
            here = phase_left(pack, self.clock())
            elsewhere += pack.replicas * self._per_evaluation() if here is None else here
        return steps * (per_step or 0.0) + elsewhere

    def _per_step(self, pack: Active | None) -> float | None:
        """Seconds per replica-step, of the pack where that is known, else of all."""
        if pack is not None and pack.replica_steps:
            return pack.seconds / pack.replica_steps
        return self._seconds / self._replica_steps if self._replica_steps else None

    def _per_evaluation(self) -> float:
        return self._evaluation_seconds / self._evaluated if self._evaluated else 0.0


def phase_left(pack: Active, now: float) -> float | None:
    """Seconds until the pack's phase is over; ``None`` at its beginning."""
    done = pack.done - pack.first
    return (now - pack.since) / done * (pack.total - pack.done) if done else None
