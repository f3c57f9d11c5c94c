"""Who trains a run: a claim in the run's directory with a heartbeat, so that no two processes train the same run.

A claim is the file ``claim``; its text identifies a process (machine since boot, process, start of the process) and its
modification time is the heartbeat. On its own machine a claim is as alive as its process, whatever the clock says;
elsewhere it is alive while its heartbeat is recent. A process that lost its claim (it was suspended, say, and another
machine took over) notices at its next heartbeat and must write no more.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

CLAIM = "claim"
HEARTBEAT_SECONDS = 120.0
"""A claim of another machine whose heartbeat differs by more from the time now belongs to a dead process."""


class Claim:
    """The claim on the run in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.file = directory, directory / CLAIM

    def take(self) -> bool:
        """Take the run for this process; ``False`` if a living process has it. Creates the directory.

        Raises:
            OSError: if the directory cannot be written.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        own = self.file.with_name(f".{CLAIM}.{os.getpid()}.{time.monotonic_ns()}.tmp")
        try:
            own.write_text(_identity())
            with _locked(self.directory):
                if self.is_held():
                    return False
                self.file.unlink(missing_ok=True)
                os.link(own, self.file)  # with its text at once, and it fails if another machine was faster
                for left_behind in self.directory.glob(f".{CLAIM}.*.tmp"):  # by processes that were killed here
                    left_behind.unlink(missing_ok=True)
                return True
        except FileExistsError:
            return False
        finally:
            with contextlib.suppress(OSError):
                own.unlink(missing_ok=True)

    def is_held(self) -> bool:
        """Whether a living process has the run (this one included)."""
        try:
            age = time.time() - self.file.stat().st_mtime
            owner = self.file.read_text(errors="replace").split()
        except OSError:
            return False
        if len(owner) == 3 and owner[0] == _machine():
            return owner[1].isdigit() and _started(int(owner[1])) == owner[2]
        return abs(age) <= HEARTBEAT_SECONDS

    def beat(self) -> bool:
        """Say that this process is alive; ``False`` if the claim is no longer its own."""
        try:
            if self.file.read_text(errors="replace") != _identity():
                return False
            os.utime(self.file)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Give the run back, if it is this process's."""
        with contextlib.suppress(OSError):
            if self.file.read_text(errors="replace") == _identity():
                self.file.unlink()


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other processes from judging and replacing a claim at the same time; the kernel frees it with its owner."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: the exclusive link has to do
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


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
