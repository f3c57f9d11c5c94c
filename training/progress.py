"""The progress line: rate, time left, the current bound."""

from __future__ import annotations

import sys
import time


class Progress:
    """Prints a line that rewrites itself on a terminal, and one line every 30 s elsewhere."""

    def __init__(self, label: str, start: int, steps: int, replicas: int, enabled: bool) -> None:
        self.label, self.start, self.steps, self.replicas, self.enabled = label, start, steps, replicas, enabled
        self.tty = sys.stderr.isatty()
        self.began = time.monotonic()
        self.printed = self.began
        self.note = ""

    def update(self, step: int, last: bool = False) -> None:
        """Say that ``step`` steps are done (at most twice a second on a terminal)."""
        now = time.monotonic()
        if not self.enabled or not (last or now - self.printed > (0.5 if self.tty else 30)):
            return
        self.printed = now
        rate = (step - self.start) / max(now - self.began, 1e-9)
        left = (self.steps - step) / rate if rate else float("inf")
        line = (
            f"{self.label}: step {step}/{self.steps}, {rate * self.replicas:.0f} replica-steps/s, "
            f"{_clock(left)} left{self.note}"
        )
        print(
            f"\r\033[K{line}" if self.tty else line,
            end="\n" if last or not self.tty else "",
            file=sys.stderr,
            flush=True,
        )


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "unknown time"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
