"""What happens while runs are trained, as events, and the line that shows them for one pack.

An event is a dict with the key ``event`` (plain values only: events travel between processes as JSON):

=========== =====================================================================================
``skipped``  ``run``, ``reason``: it is not trained
``pack``     ``label``, ``replicas``, ``step``, ``steps``: a group of runs begins or goes on
``step``     ``step``, ``note``: where it is
``phase``    ``phase``, ``done``, ``total``: what is done besides steps (importing, building, evaluating, measuring
             gradients), and how much of it; ``total`` 0: nobody knows
``run``      ``run``, ``status`` (``finished | diverged | failed``), ``error``: a run is over
``message``  ``text``: something that people should know
=========== =====================================================================================
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from analysis.output import visible, visible_lines
from analysis.records import write_atomically

Event = dict[str, Any]
BUILDING, EVALUATING, FINAL, MEASURING = "building", "evaluation", "last evaluation", "measuring gradients"
"""Phases."""
PUBLISH_SECONDS = 2.0
SHOWN = ".screen.{}.json"
"""What the screen of a process shows, in a sweep's folder."""
Report = Callable[[Event], None]


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    if seconds == float("inf"):
        return "unknown time"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def tell(text: str, end: str = "\n", stream: Any = None) -> None:
    """Print for people, by default on stderr. A terminal that is gone must not end the training that it shows."""
    with contextlib.suppress(OSError):
        print(text, end=end, file=stream or sys.stderr, flush=True)


def rewrites() -> bool:
    """Whether lines on stderr can rewrite themselves: on a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def width() -> int:
    """The characters that a line of the terminal holds beside its cursor."""
    return max(shutil.get_terminal_size().columns - 1, 1)


def publish(folder: Path, lines: Sequence[str]) -> None:
    """Write what a screen shows into the sweep's ``folder``, for other terminals (:mod:`training.status`)."""
    with contextlib.suppress(OSError):
        write_atomically(folder / SHOWN.format(os.getpid()), json.dumps({"time": time.time(), "lines": lines}).encode())


def withdraw(folder: Path) -> None:
    """Take that away, and what a process left that was killed."""
    for file in folder.glob(SHOWN.format("*")):
        with contextlib.suppress(OSError):
            if file.name == SHOWN.format(os.getpid()) or time.time() - file.stat().st_mtime > 3600:
                file.unlink()


class PackLine:
    """A report for one pack: a line that rewrites itself on a terminal, and one line every 30 s elsewhere."""

    def __init__(self, enabled: bool, folder: Path | None = None) -> None:
        """``folder``: of the sweep, in which the line stands for other terminals, too."""
        self.folder, self.published = folder, -math.inf
        self.enabled, self.tty = enabled, rewrites()
        self.label, self.steps, self.replicas, self.at, self.printed = "", 0, 0, 0, 0.0
        self.pace: tuple[int, float] | None = None
        self.open = False

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        if kind == "skipped":
            tell(visible(f"{event['reason']}: {event['run']}"), stream=sys.stdout)
        elif kind == "message":
            tell(visible_lines(event["text"]))
        elif kind == "run" and event["status"] == "diverged":
            tell(visible_lines(f"diverged: {event['run']}: {event['error']}"))
        elif kind == "run":
            self._close()
        elif kind == "pack":
            self.label, self.steps, self.replicas = event["label"], event["steps"], event["replicas"]
            self.at, self.pace, self.printed = event["step"], None, time.monotonic()
        elif kind == "phase" and event["total"]:
            self._line(self.at, f"{event['phase']} {100 * event['done'] // event['total']} %", still=True)
        elif kind == "step":
            self._step(event["step"])
            self._line(event["step"], event["note"])

    def _close(self) -> None:
        if self.open:
            tell("")
        self.open = False

    def _step(self, step: int) -> None:
        """Its pace counts from its first report on: what comes before is building and warming up."""
        self.at = step
        self.pace = self.pace or (step, time.monotonic())

    def _line(self, step: int, note: str, still: bool = False) -> None:
        now, last = time.monotonic(), step == self.steps and not still
        shows = self.enabled and (last or now - self.printed > (0.5 if self.tty else 30))
        publishes = self.folder is not None and now - self.published > PUBLISH_SECONDS
        if not (shows or publishes):
            return
        first, since = self.pace or (step, now)
        rate = (step - first) / max(now - since, 1e-9)
        known = (
            f", {rate * self.replicas:.0f} replica-steps/s, {clock((self.steps - step) / rate)} left" if rate else ""
        )
        line = visible(f"{self.label} x {self.replicas}: step {step}/{self.steps}{known}{', ' + note if note else ''}")
        if self.folder is not None and publishes:
            self.published = now
            publish(self.folder, [line])
        if not shows:
            return
        self.printed = now
        end = "\n" if last or not self.tty else ""
        self.open = not end
        tell(f"\r\033[K{line[: width()]}" if self.tty else line, end=end)
