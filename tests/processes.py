"""Processes that tests start: they and whatever they start end with the test."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from pathlib import Path
from typing import Any

MARK = "STARTED_BY_THE_TEST"
LAST_RESORT = 1800.0
"""Seconds after which a test gives up waiting for a process that still runs: no test depends on how fast it is."""


class Processes:
    """Starts processes with a mark in their environment, which their own processes inherit."""

    def __init__(self, variable: str = MARK) -> None:
        self.variable, self.mark = variable, uuid.uuid4().hex

    def start(self, command: list[str], **options: Any) -> subprocess.Popen[Any]:
        """As ``subprocess.Popen``."""
        environment = {**(options.pop("env", None) or os.environ), self.variable: self.mark}
        return subprocess.Popen(command, env=environment, **options)

    def close(self) -> None:
        """Kill all that is left, until nothing is."""
        while left := self.left():
            for number in left:
                try:
                    os.kill(number, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def left(self) -> dict[int, str]:
        """The command lines of those that run, also where the process that started them has ended."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                marked = f"{self.variable}={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
                if marked and "State:\tZ" not in (entry / "status").read_text():
                    found[int(entry.name)] = (
                        (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    )
            except OSError:  # it has ended, or is somebody else's
                continue
        return found
