"""Stopping: a signal asks, the loop finishes its step, writes a checkpoint and raises :class:`Stopped`.

What takes long within a step, such as the gradients of a basket, asks :func:`check` on its way.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_asked = threading.Event()


class Stopped(Exception):
    """Training stopped because it was asked to; checkpoints are written and the runs can go on later."""


def ask() -> None:
    """Ask for a stop after the current step."""
    _asked.set()


def asked() -> bool:
    """Whether a stop was asked for."""
    return _asked.is_set()


def check() -> None:
    """Raise :class:`Stopped` if a stop was asked for: what is under way is given up, and begins anew another time."""
    if asked():
        raise Stopped("stopped; start the same command again to go on")


@contextlib.contextmanager
def on_signals(*signals: signal.Signals, answer: str = "") -> Iterator[None]:
    """While inside, ``signals`` ask for a stop; the second one of a kind does what it did before (kills, mostly).

    Args:
        signals: which.
        answer: is said on stderr at once; empty: nothing.
    """
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers in the main thread only
        yield
        return
    previous = {number: signal.getsignal(number) for number in signals}

    def handle(number: int, frame: FrameType | None) -> None:
        ask()
        if answer:
            with contextlib.suppress(OSError):
                os.write(2, f"\n{answer}\n".encode())  # print() may be what the signal interrupted
        signal.signal(number, previous[signal.Signals(number)])

    for number in signals:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _asked.clear()
