"""What looks at a pack between its steps, each when it is due: divergence, evaluation, checkpoints, progress."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

from analysis import output
from analysis.records import DamagedRecord, RunRecord
from training.interrupt import Stopped, asked
from training.loggers import Logger
from training.pack import checkpoints
from training.pack.evaluation import Row, evaluate, rows_of, summary
from training.pack.pack import Pack
from training.pack.stopwatch import Stopwatch
from training.progress import EVALUATING, Report

LOOK_EVERY_ON_GPU = 50
REPORT_SECONDS = 0.5
UNCLAIMED = "its claim was removed while it trained; the same command goes on from its checkpoint"


class Watcher(Protocol):
    """Looks at a pack after some of its steps, and never changes its training."""

    def due(self) -> bool:
        """Whether it wants to look at the pack after this step."""

    def ahead(self) -> int:
        """How many steps may be taken before it is asked again; one that goes by the clock is asked now and then."""

    def look(self) -> None:
        """Do so; the time counts as what :class:`Stopwatch` is told."""


class Training:
    """A pack in training: its runs' records, those that are still in it, and how each of them ends.

    Args:
        pack: what is trained.
        records: of its runs, one for each replica.
        report: told what happens.
        lost: fills with the records of runs that another process has taken over; these are dropped.
        loggers: of the runs, beside their records.
        until: a step before the last at which the runs wait for others; 0: they are trained to their last.
    """

    def __init__(
        self,
        pack: Pack,
        records: Sequence[RunRecord],
        report: Report,
        lost: Collection[RunRecord] = (),
        loggers: Sequence[Logger] = (),
        until: int = 0,
    ) -> None:
        self.pack, self.records, self.report, self._lost = pack, list(records), report, lost
        self.steps = pack.configs[0]["steps"]
        self.until = until or self.steps
        self.alive = list(range(pack.replicas))
        self.watch = Stopwatch(pack.device)
        self.loggers = list(loggers)
        self.note = ""
        self._before = pack.seconds, pack.evaluation_seconds

    def keep_time(self) -> None:
        """Tell the pack how long it has been trained and evaluated, in this process and before."""
        trained, evaluated = self._before
        self.pack.seconds = trained + self.watch.seconds("training")
        self.pack.evaluation_seconds = evaluated + self.watch.seconds("evaluation")

    def drop_lost(self) -> None:
        """Leave out the runs whose claim is gone: another process has taken them over, or somebody removed it."""
        for r in [r for r in self.alive if self.records[r] in self._lost]:
            self.alive.remove(r)
            record = self.records[r]
            if record.claim.is_held():
                self.report({"event": "skipped", "run": record.name, "reason": "taken over by another process"})
            elif not record.is_finished():
                self.report({"event": "run", "run": record.name, "status": "failed", "error": UNCLAIMED})

    @contextlib.contextmanager
    def evaluating(self, phase: str, rows: int, stop: bool = False) -> Iterator[None]:
        """Within the block evaluations of so many ``rows`` (samples of images) report how far they are.

        Args:
            phase: what it is called.
            rows: of all that is evaluated.
            stop: whether it gives way to a signal. Raises ``Stopped`` then: the state must have been saved before.
        """
        done, reported = 0, time.monotonic() if phase == EVALUATING else 0.0  # along a run most take no time

        def told(more: int) -> None:
            nonlocal done, reported
            if stop and asked():
                raise self.stop(saved=True)
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                self.report({"event": "phase", "phase": phase, "done": min(done, rows), "total": rows})
            done += more

        self.pack.streams.told = told
        try:
            yield
        finally:
            self.pack.streams.told = None

    @contextlib.contextmanager
    def writing(self, replica: int) -> Iterator[RunRecord]:
        """What writes into the record of one run: if that fails, the run does, and the pack goes on without it."""
        record = self.records[replica]
        try:
            yield record
        except (OSError, DamagedRecord) as error:
            sentence = (
                f"its record cannot be written: {output.in_words(error) if isinstance(error, OSError) else error}"
            )
            if replica in self.alive:
                self.alive.remove(replica)
            with contextlib.suppress(OSError):
                record.log(f"failed: {sentence}")
                record.status("failed", error=sentence)
            self.report({"event": "run", "run": record.name, "status": "failed", "error": sentence})

    def save(self) -> None:
        """Write a checkpoint of every run."""
        self.keep_time()
        for r in list(self.alive):
            with self.writing(r) as record:
                checkpoints.save(self.pack, r, record)

    def stop(self, saved: bool = False) -> Stopped:
        """Write checkpoints, unless they are ``saved``, put the runs back into the queue, and return what to raise."""
        if not saved:
            self.save()
        for r in list(self.alive):
            with self.writing(r) as record:
                record.status("queued", step=self.pack.step)
                record.log(f"stopped at step {self.pack.step} by a signal; its checkpoint is written")
        return Stopped(f"stopped at step {self.pack.step} of {self.until}; start the same command again to go on")

    def end(self, replica: int, result: dict[str, Any], error: str | None = None) -> None:
        """Write the result of one run."""
        with self.writing(replica) as record:
            record.finish(result)
            record.log(f"{result['status']} at step {self.pack.step}{': ' + error if error else ''}")
            self.loggers[replica].finish(result["status"])
            self.report({"event": "run", "run": record.name, "status": result["status"], "error": error})


class Divergence:
    """Ends the runs whose loss or gradient is not finite; the others do not notice.

    Looking at the device's numbers waits for it. On a CPU that is free, on a GPU it is done now and then.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.every = 1 if training.pack.device.type == "cpu" else LOOK_EVERY_ON_GPU

    def due(self) -> bool:
        return self.training.pack.step % self.every == 0

    def ahead(self) -> int:
        return self.every - self.training.pack.step % self.every

    def look(self, everywhere: bool = False) -> None:
        """``everywhere``: at all parameters, too."""
        pack = self.training.pack
        for r, details in pack.divergences(self.training.alive, everywhere=everywhere):
            self.training.alive.remove(r)
            with self.training.watch.doing("watching"):
                self.training.keep_time()
                self.training.end(r, summary(pack, r, "diverged", {}) | details, details["divergence"])


class Evaluation:
    """Adds a row to the metrics every ``evaluate_every`` steps."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.every = training.pack.configs[0]["evaluate_every"]

    def due(self) -> bool:
        return self.training.pack.step % self.every == 0

    def ahead(self) -> int:
        return self.every - self.training.pack.step % self.every

    def look(self) -> None:
        training, pack = self.training, self.training.pack
        with training.watch.doing("evaluation"):
            training.keep_time()
            with training.evaluating(EVALUATING, rows_of(pack, "valid", pack.configs[0]["evaluate_samples"])):
                rows = evaluate(pack)
        pack.carried_row = [rows[r] if r in training.alive else None for r in range(pack.replicas)]
        for r in list(training.alive):
            with training.writing(r) as record:
                record.append(rows[r])
            if pack.step < training.steps:  # the last row is logged as a whole
                training.loggers[r].log(rows[r])
        training.note = _note(rows, training.alive)


class Checkpoint:
    """Saves the runs every ``checkpoint_seconds``, and ends training where a signal asks for that."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.seconds = training.pack.configs[0]["checkpoint_seconds"]
        self.saved = time.monotonic()

    def due(self) -> bool:
        before_the_end = self.training.pack.step < self.training.until
        return before_the_end and (time.monotonic() - self.saved > self.seconds or asked())

    def ahead(self) -> int:
        return LOOK_EVERY_ON_GPU if self.seconds > 0 else 1

    def look(self) -> None:
        if asked():
            raise self.training.stop()
        self.training.save()
        self.saved = time.monotonic()


class Progress:
    """Reports where training is, at evaluations and twice a second."""

    def __init__(self, training: Training, evaluation: Watcher) -> None:
        self.training, self.evaluation = training, evaluation
        self.reported = time.monotonic()

    def due(self) -> bool:
        return self.evaluation.due() or time.monotonic() - self.reported > REPORT_SECONDS

    def ahead(self) -> int:
        return min(self.evaluation.ahead(), LOOK_EVERY_ON_GPU)

    def look(self) -> None:
        self.training.report({"event": "step", "step": self.training.pack.step, "note": self.training.note})
        self.reported = time.monotonic()


def _note(rows: Sequence[Row], alive: Sequence[int]) -> str:
    name = next(name for name in rows[0] if name.startswith("valid_"))
    values = [rows[r][name] for r in alive if rows[r][name] is not None]
    return f"{name} {sum(values) / len(values):.5g}" if values else ""
