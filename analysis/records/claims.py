"""Who trains a run: a claim in the run's directory with a heartbeat, so that no two processes train the same run.

A claim is the file ``claim``; its text identifies a process (machine since boot, process, start of the process) and its
modification time is the heartbeat. On its own machine a claim is as alive as its process, whatever the clock says;
elsewhere it is alive while its heartbeat is recent. A process that lost its claim (it was suspended, say, and another
machine took over) notices at its next heartbeat and must write no more.

Dead claims are replaced without a lock, since network file systems may have none. Whoever wants a run

1. creates a file of its own, ``.claim.*.asks``, whose name is used once;
2. lists the other files of this kind; it gives up if one of an earlier name is alive, waits for living later ones to
   go, and removes dead ones;
3. reads ``claim``, and gives up if it is alive;
4. renames its own file to ``claim``.

Of two that ask, A lists (2) before B has created its file, or after B's has gone: else it sees B. If both went on to
(4), then either one has seen the other's ``claim`` in (3), or A listed before B created and B before A, which cannot
be, since each creates before it lists. What must be true of the file system: ``rename`` is atomic, and a listing shows
what was created or renamed before it began. A process that is taken for dead while it asks finds its file gone in (4).
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import socket
import stat
import time
import uuid
from pathlib import Path

CLAIM = "claim"
HEARTBEAT_SECONDS = 120.0
"""A claim of another machine whose heartbeat differs by more from the time now belongs to a dead process."""
PATIENCE = 500
"""How often a process looks whether those that ask after it are gone, before it gives up."""
PAUSE_SECONDS = 0.01
LONGEST_TEXT = 1000


_beaten: dict[str, float] = {}
"""When this process has last said that it is alive, by the claim's file (:func:`_now`)."""


class Claim:
    """The claim on the run in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.file = directory, directory / CLAIM
        self._place = os.path.abspath(self.file)

    def take(self) -> bool:
        """Take the run for this process; ``False`` if a living process has it. Creates the directory.

        Raises:
            OSError: if the directory cannot be written.
        """
        began = _now()
        own = self.directory / f".{CLAIM}.{uuid.uuid4().hex}.asks"
        self._ask(own)
        try:
            if not self._is_first(own) or self.is_held():
                _unlink(own)
                return False
            _rename(own, self.file)
        except FileNotFoundError:  # another machine took this process for dead
            return False
        except BaseException:
            _unlink(own)
            raise
        _beaten[self._place] = _now()
        # Slower than that, and another machine may have replaced the claim already.
        return _beaten[self._place] - began < HEARTBEAT_SECONDS / 2

    def _ask(self, own: Path) -> None:
        for attempt in range(10):
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                return _create(own, _identity())
            except FileNotFoundError:  # another process that asked has removed the empty directory
                if attempt == 9:
                    raise

    def _is_first(self, own: Path) -> bool:
        """Whether no other living process asks; waits for those that come after this one."""
        for _ in range(PATIENCE):
            others = [name for name in _names(self.directory) if _asks(name) and name != own.name]
            living = [name for name in others if _lives(self.directory / name)]
            for name in set(others) - set(living):
                _unlink(self.directory / name)
            if not living:
                return True
            if min(living) < own.name:
                return False
            _pause()
        return False

    def is_held(self) -> bool:
        """Whether a living process has the run (this one included)."""
        return _lives(self.file)

    def beat(self) -> bool:
        """Say that this process is alive; ``False`` if the claim is no longer its own."""
        try:
            if _read(self.file)[0] != _identity():
                return False
            os.utime(self.file)
        except OSError:
            return False
        _beaten[self._place] = _now()
        return True

    def release(self) -> None:
        """Give the run back, if it is this process's.

        A process that was suspended may have lost it between two looks; then the claim is left to grow old.
        """
        with contextlib.suppress(OSError):
            age = _now() - _beaten.pop(self._place, -math.inf)
            if _read(self.file)[0] == _identity() and age < HEARTBEAT_SECONDS / 2:
                _unlink(self.file)


def _asks(name: str) -> bool:
    return name.startswith(f".{CLAIM}.") and name.endswith((".asks", ".tmp"))  # .tmp: of earlier versions


def _lives(file: Path) -> bool:
    """Whether the process whose claim this is lives; a file that cannot be read is as alive as its heartbeat."""
    try:
        text, beaten = _read(file)
    except OSError:  # there is none, or no folder for one
        return False
    owner = text.split()
    if len(owner) == 3 and owner[0] == _machine():
        return owner[1].isdigit() and _started(int(owner[1])) == owner[2]
    return abs(time.time() - beaten) <= HEARTBEAT_SECONDS


# What the protocol does to the file system, one call each: a test goes through all orders of them.


def _create(file: Path, text: str) -> None:
    with open(file, "x") as new:
        new.write(text)


def _read(file: Path) -> tuple[str, float]:
    """The text of a claim and when it was last touched. Raises ``OSError`` if there is none.

    One that cannot be read has no text.
    """
    found = os.stat(file, follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode):
        return "", found.st_mtime
    try:
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise
    except OSError:
        return "", found.st_mtime
    try:
        return os.read(handle, LONGEST_TEXT).decode(errors="replace"), os.fstat(handle).st_mtime
    except OSError:  # on a network file system it may have been replaced just now
        return "", time.time()
    finally:
        os.close(handle)


def _names(directory: Path) -> list[str]:
    return os.listdir(directory)


def _rename(file: Path, new: Path) -> None:
    os.rename(file, new)


def _unlink(file: Path) -> None:
    with contextlib.suppress(OSError):
        os.unlink(file)


def _pause() -> None:
    time.sleep(PAUSE_SECONDS)


def _now() -> float:
    """Seconds that go on while the machine sleeps, in the kernel's own count where it has one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _identity() -> str:
    return f"{_machine()} {os.getpid()} {_started(os.getpid())}\n"


@functools.cache
def _machine() -> str:
    """Where process numbers mean what they mean here: the machine since its boot, and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(process: int) -> str:
    """When a process started, in the kernel's ticks: numbers are used again. Empty if there is none."""
    try:
        # The second field, the name, may hold spaces; the start is the twentieth after it.
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
    except (OSError, IndexError):
        return ""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"
