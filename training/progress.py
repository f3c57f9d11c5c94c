"""What happens while runs are trained, as events, and the line that shows them for one pack.

An event is a dict with the key ``event`` (plain values only: events travel between processes as JSON):

=========== =====================================================================================
``skipped``  ``run``, ``reason``: it is not trained
``pack``     ``label``, ``replicas``, ``step``, ``steps``: a group of runs begins or goes on
``step``     ``step``, ``note``: where it is
``run``      ``run``, ``status`` (``finished | diverged | failed``), ``error``: a run is over
``message``  ``text``: something that people should know
=========== =====================================================================================
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

from analysis.output import visible, visible_lines

Event = dict[str, Any]
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


class PackLine:
    """A report for one pack: a line that rewrites itself on a terminal, and one line every 30 s elsewhere."""

    def __init__(self, enabled: bool) -> None:
        self.enabled, self.tty = enabled, rewrites()
        self.label, self.steps, self.replicas, self.start, self.began, self.printed = "", 0, 0, 0, 0.0, 0.0

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        if kind == "skipped":
            tell(visible(f"{event['reason']}: {event['run']}"), stream=sys.stdout)
        elif kind == "message":
            tell(visible_lines(event["text"]))
        elif kind == "run" and event["status"] == "diverged":
            tell(visible_lines(f"diverged: {event['run']}: {event['error']}"))
        elif kind == "pack":
            self.label, self.steps, self.replicas = event["label"], event["steps"], event["replicas"]
            self.start, self.began = event["step"], time.monotonic()
            self.printed = self.began
        elif kind == "step":
            self._line(event["step"], event["note"])

    def _line(self, step: int, note: str) -> None:
        now, last = time.monotonic(), step == self.steps
        if not self.enabled or not (last or now - self.printed > (0.5 if self.tty else 30)):
            return
        self.printed = now
        rate = (step - self.start) / max(now - self.began, 1e-9)
        left = (self.steps - step) / rate if rate else float("inf")
        line = visible(
            f"{self.label} x {self.replicas}: step {step}/{self.steps}, {rate * self.replicas:.0f} replica-steps/s, "
            f"{clock(left)} left{', ' + note if note else ''}"
        )
        end = "\n" if last or not self.tty else ""
        tell(f"\r\033[K{line[: width()]}" if self.tty else line, end=end)
