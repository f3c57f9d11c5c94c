"""The progress of a whole sweep: packs, runs, rate, time left, failures; rewritten in place on a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from analysis.output import visible, visible_lines
from training.config.plan import PackPlan, RunPlan
from training.progress import PUBLISH_SECONDS, Event, clock, publish, rewrites, tell, width, withdraw
from training.status import step
from training.sweep.pace import Active, Pace, phase_left

BAR = 20
"""Characters of a bar."""


def _steps_left(run: RunPlan) -> int:
    """By the rows of its metrics: a checkpoint may be a little younger or older."""
    return max(run.last - (step(run.record) or 0), 0)


def pack_line(pack: Active, now: float) -> str:
    """A pack in words: at which step it is, or how far through what else."""
    line, note = f"{pack.label} x {pack.replicas}: ", f", {pack.note}" if pack.note else ""
    if not pack.phase:
        return f"{line}step {pack.step}/{pack.steps}{note}"
    if not pack.total:
        return f"{line}{pack.phase} ({clock(now - pack.since)})" if pack.since else f"{line}{pack.phase}"
    full, left = BAR * pack.done // pack.total, phase_left(pack, now)
    time_left = "" if left is None else f", {clock(left)} left"
    return f"{line}{pack.phase} [{'#' * full}{'.' * (BAR - full)}] {100 * pack.done // pack.total} %{time_left}{note}"


class Screen:
    """Collects the events of all packs; ``failures`` maps the names of failed runs to their errors, ``note`` says
    what else there is to say of the whole.

    What it shows is also written into the sweep's folder, where ``training.status`` finds it.
    """

    def __init__(self, packs: Sequence[PackPlan], enabled: bool) -> None:
        self.enabled, self.tty = enabled, rewrites()
        self.packs, self.runs = len(packs), sum(map(len, packs))
        self.folder, self.pace = packs[0][0].path.parent, Pace()
        self.waiting = {run.name: _steps_left(run) for pack in packs for run in pack}
        self.active: dict[int, Active] = {}
        self.failures: dict[str, str] = {}
        self.ended, self.words = 0, {"finished": 0, "diverged": 0, "waiting": 0, "skipped": 0}
        self.trained = 0
        self.drawn, self.published = time.monotonic(), -math.inf
        self.height, self.note = 0, ""

    def begin(self, number: int, pack: PackPlan) -> None:
        """A pack is given to a worker."""
        self.active[number] = Active(pack[0].label, len(pack), steps=pack[0].last)
        left = [self.waiting.pop(run.name, 0) for run in pack]
        self.active[number].step = pack[0].last - round(sum(left) / len(pack))
        self.active[number].start = self.active[number].step

    def end(self, number: int) -> None:
        """A pack is done, or given up."""
        if number in self.active:
            self.pace.ends(self.active[number])
        self._leave(number)
        self.ended += 1

    def lose(self, number: int, rest: Sequence[PackPlan] = ()) -> None:
        """A pack's process died; what is left of it goes on in other packs."""
        self._leave(number)
        self.packs += len(rest) - 1
        self.waiting |= {run.name: _steps_left(run) for pack in rest for run in pack}

    def show(self, event: Event) -> None:
        """Take in an event of a worker."""
        kind, active = event["event"], self.active.get(event["pack"] or 0)
        if kind == "run" and event["status"] == "failed":
            if event["error"] not in self.failures.values():  # a pack fails as one
                self.say(f"failed: {event['run']}: {event['error']}")
            self.failures[event["run"]] = event["error"]
        elif kind == "run":
            self.words[event["status"]] += 1
            self.failures.pop(event["run"], None)
            if event["status"] == "diverged":
                self.say(f"diverged: {event['run']}: {event['error']}")
        elif kind == "skipped":
            self.words["skipped"] += 1
            self.say(f"{event['reason']}: {event['run']}")
        elif kind == "message":
            self.say(event["text"])
        elif active and kind == "pack":
            self._count(active)
            active.replicas, active.start, active.step = event["replicas"], event["step"], event["step"]
            active.steps = event["steps"]
            self.pace.begins(active)
        elif active and kind == "step":
            self.pace.steps(active, event["step"])
            active.note = event["note"]
        elif active and kind == "phase":
            self.pace.turns(active, event["phase"], event["done"], event["total"])

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._clear()
        tell(visible_lines(text))

    def draw(self, last: bool = False) -> None:
        """Show the state: twice a second on a terminal, every 30 s elsewhere."""
        now = time.monotonic()
        if now - self.published > PUBLISH_SECONDS:
            self.published = now
            publish(self.folder, self.lines())
        if not self.enabled or not (last or now - self.drawn > (0.5 if self.tty else 30)):
            return
        self.drawn = now
        lines = self.lines()
        if self.tty:
            self._clear()
            self.height = len(lines)
            tell("\n".join(visible(line)[: width()] for line in lines))
        else:
            tell(visible(lines[0] if last else " | ".join(lines)))

    def lines(self) -> list[str]:
        """The state in words: the sweep, then a line for each pack that is being trained."""
        counts = ", ".join(f"{count} {word}" for word, count in self.words.items() if count)
        waiting = f", {len(self.waiting)} not started" if self.waiting else ""
        line = f"{self.ended}/{self.packs} packs, {self.runs} runs: {counts or 'none finished'}{waiting}, "
        line += f"{len(self.failures)} failed"
        if rate := self.pace.rate(self.active.values()):
            line += f"; {rate:.0f} replica-steps/s"
        if self.active:
            line += f", {self._left()}"
        if self.note:
            line += f"; {self.note}"
        return [line, *(f"  {pack_line(active, self.pace.clock())}" for active in self.active.values())]

    def _left(self) -> str:
        left = self.pace.left(self.active.values(), sum(self.waiting.values()), len(self.waiting))
        if left is None:
            return "the time left is known after the first steps"
        return f"{clock(left)} left{'' if self.pace.knows_evaluations else ' and the last evaluation'}"

    def close(self) -> None:
        """Draw for the last time."""
        self.draw(last=True)
        withdraw(self.folder)
        self.height = 0

    def _leave(self, number: int) -> None:
        if number in self.active:  # where it had begun
            self._count(self.active.pop(number))

    def _count(self, active: Active) -> None:
        self.trained += active.replicas * (active.step - active.start)
        active.start = active.step

    def _clear(self) -> None:
        if self.height:
            tell(f"\033[{self.height}A\033[J", end="")
            self.height = 0
