"""A worker process: ``python -m training.sweep.worker`` trains the packs that it reads from its standard input.

Each line in is a pack (JSON: ``{"pack": n, "runs": [{"config": ..., "overrides": [...], "until": n}]}``), each line out
an event of :mod:`training.progress` with the pack's number; ``{"event": "done", "pack": n}`` asks for the next.
SIGTERM, or the end of the input (the parent is gone), writes checkpoints and ends the process.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from typing import Any

from training import interrupt
from training.config import schema
from training.config.plan import RunPlan
from training.pack.run import train_runs


def main() -> None:
    """Read packs until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    schema.register()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints must not get between the events
    packs: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            packs.put(json.loads(line))
        packs.put(None)
        interrupt.ask()

    with interrupt.on_signals(signal.SIGTERM, signal.SIGUSR2):
        threading.Thread(target=read, daemon=True).start()
        while (pack := packs.get()) is not None:
            number = pack["pack"]

            def report(event: dict[str, Any], number: int = number) -> None:
                out.write(json.dumps(event | {"pack": number}) + "\n")

            try:
                train_runs(
                    [RunPlan(run["config"], tuple(run["overrides"]), run["until"]) for run in pack["runs"]], report
                )
            except (interrupt.Stopped, BrokenPipeError):
                return
            report({"event": "done"})


if __name__ == "__main__":
    main()
