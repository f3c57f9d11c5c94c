"""The progress of a whole sweep: packs, runs, rate, time left, failures; rewritten in place on a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.output import visible, visible_lines
from training.config.plan import PackPlan
from training.progress import Event, clock, rewrites, tell, width


@dataclass
class Active:
    """A pack being trained: what its events have said so far."""

    label: str
    replicas: int
    start: int = 0
    step: int = 0
    steps: int = 0
    note: str = ""


class Screen:
    """Collects the events of all packs; ``failures`` maps the names of failed runs to their errors, ``note`` says
    what else there is to say of the whole."""

    def __init__(self, packs: Sequence[PackPlan], enabled: bool) -> None:
        self.enabled, self.tty = enabled, rewrites()
        self.packs, self.runs = len(packs), sum(map(len, packs))
        self.total = sum(len(pack) * pack[0].last for pack in packs)
        self.active: dict[int, Active] = {}
        self.failures: dict[str, str] = {}
        self.ended, self.words = 0, {"finished": 0, "diverged": 0, "waiting": 0, "skipped": 0}
        self.trained = self.before = 0
        self.began = self.drawn = time.monotonic()
        self.height, self.note = 0, ""

    def begin(self, number: int, pack: PackPlan) -> None:
        """A pack is given to a worker."""
        self.active[number] = Active(pack[0].label, len(pack), steps=pack[0].last)

    def end(self, number: int) -> None:
        """A pack is done, or given up."""
        self._leave(number)
        self.ended += 1

    def lose(self, number: int, parts: int = 1) -> None:
        """A pack's process died; its runs go on in so many other packs."""
        self._leave(number)
        self.packs += parts - 1

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
            self.before += event["step"] * event["replicas"]
        elif active and kind == "step":
            active.step, active.note = event["step"], event["note"]

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._clear()
        tell(visible_lines(text))

    def draw(self, last: bool = False) -> None:
        """Show the state: twice a second on a terminal, every 30 s elsewhere."""
        now = time.monotonic()
        if not self.enabled or not (last or now - self.drawn > (0.5 if self.tty else 30)):
            return
        self.drawn = now
        lines = self.lines(now - self.began)
        if self.tty:
            self._clear()
            self.height = len(lines)
            tell("\n".join(visible(line)[: width()] for line in lines))
        else:
            tell(visible(lines[0] if last else " | ".join(lines)))

    def lines(self, seconds: float) -> list[str]:
        """The state in words: the sweep, then a line for each pack that is being trained."""
        trained = self.trained + sum(a.replicas * (a.step - a.start) for a in self.active.values())
        rate = trained / max(seconds, 1e-9)
        left = max(self.total - self.before - trained, 0) / rate if trained else float("inf")
        counts = ", ".join(f"{count} {word}" for word, count in self.words.items() if count)
        lines = [
            f"{self.ended}/{self.packs} packs, {self.runs} runs: {counts or 'none finished'}, "
            f"{len(self.failures)} failed; {rate:.0f} replica-steps/s, {clock(left)} left"
        ]
        if self.note:
            lines[0] += f"; {self.note}"
        for active in self.active.values():
            note = f", {active.note}" if active.note else ""
            lines.append(f"  {active.label} x {active.replicas}: step {active.step}/{active.steps}{note}")
        return lines

    def close(self) -> None:
        """Draw for the last time."""
        self.draw(last=True)
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
