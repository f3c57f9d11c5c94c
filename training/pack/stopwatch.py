"""Where the time of a pack goes: training, evaluation, and all else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch


class Stopwatch:
    """Seconds of each activity, one at a time, from the moment it is made.

    A GPU lags behind the host. So where one activity ends the host waits for it, and its time counts where it belongs.

    Args:
        device: what works.
        wait: waits until the device has done all that it was given.
        clock: in seconds.
    """

    def __init__(
        self,
        device: torch.device,
        wait: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        lags = device.type == "cuda"
        self._wait = wait or ((lambda: torch.cuda.synchronize(device)) if lags else (lambda: None))
        self._clock = clock
        self._activity = "training"
        self._since = clock()
        self._seconds: dict[str, float] = {}

    def seconds(self, activity: str) -> float:
        """So far, of the times that have ended."""
        return self._seconds.get(activity, 0.0)

    @contextlib.contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Within the block time counts for ``activity``, afterwards for what was done before."""
        before = self._activity
        self._turn_to(activity)
        try:
            yield
        finally:
            self._turn_to(before)

    def _turn_to(self, activity: str) -> None:
        self._wait()
        now = self._clock()
        self._seconds[self._activity] = self.seconds(self._activity) + now - self._since
        self._activity, self._since = activity, now
