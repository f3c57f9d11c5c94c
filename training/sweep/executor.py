"""Where jobs run, as the scheduler sees it: the protocol :class:`Executor`, and the events that it tells of its jobs.

A job is a pack with a number, which is given once: a pack that is tried again is a job with another number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from training.config.plan import PackPlan
from training.progress import Event


@dataclass(frozen=True)
class Started:
    """A process has begun with the job."""

    job: int


@dataclass(frozen=True)
class Progress:
    """What a process says of its pack: an event of :mod:`training.progress`."""

    job: int
    event: Event


@dataclass(frozen=True)
class Ended:
    """The job ended well: what became of its runs stands in their records."""

    job: int


@dataclass(frozen=True)
class Died:
    """The job ended without having trained its pack, and may be tried again.

    ``who``: as people know it (``a worker``, ``job 12_3``); ``what``: as its runs' records name it (``worker process``,
    ``job``); ``how``: completes "it died" (``by signal SIGKILL``); ``log``: where to read more; ``counts``: whether the
    pack may be at fault. A job that was preempted is tried again however often that happens.
    """

    job: int
    who: str
    what: str
    how: str
    log: str
    counts: bool = True


@dataclass(frozen=True)
class Failed:
    """The job ended without having trained its pack, and another try would end in the same way: ``reason`` says why."""

    job: int
    reason: str


@dataclass(frozen=True)
class Note:
    """What there is to say of all jobs together, for the screen."""

    text: str


JobEvent = Started | Progress | Ended | Died | Failed | Note


class Executor(Protocol):
    """Runs jobs. Of each job it tells one end: ``Ended``, ``Died`` or ``Failed``."""

    def room(self) -> int:
        """How many more jobs it takes now."""

    def submit(self, packs: Mapping[int, PackPlan]) -> None:
        """Take these jobs: packs by their numbers. Raises ``UserError`` if they are refused."""

    def poll(self, seconds: float) -> Iterable[JobEvent]:
        """What happened since the last call; waits for it at most so many ``seconds``."""

    def leave(self) -> str:
        """End its jobs with checkpoints, or let them go on without this command: what to tell the user."""
