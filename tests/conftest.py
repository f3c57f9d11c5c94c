"""One thread per test process: two are slower on the small problems here. And no test file leaves a process behind."""

import contextlib
import gc
import os
import signal
import time
from collections import Counter

import pytest
import torch
from processes import Processes

gc.disable()  # until all is imported
torch.set_num_threads(1)
os.fsync = lambda file: None  # what tests write need not survive a power cut; ten files of a run take a disk 0.1 s

OF_THE_SESSION = Processes("STARTED_BY_THE_TEST_SESSION")
os.environ[OF_THE_SESSION.variable] = OF_THE_SESSION.mark
END_WITH_US = ("torch/_inductor/compile_worker", "wandb-core", "multiprocessing.resource_tracker")
"""Helpers that their libraries start once, and end when the process that uses them ends."""


def pytest_collection_modifyitems(config, items):
    """Several processes get files with few tests first, which are the long ones: at the end none waits for another."""
    if hasattr(config, "workerinput"):
        tests = Counter(item.path for item in items)
        items.sort(key=lambda item: (tests[item.path], item.path))


def pytest_collection_finish():
    """What was imported stays: a twentieth of the time went into looking for garbage in it."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """After the last test of a file, when its fixtures are closed, none of the processes that it started is left.

    One that is just ending may take a minute.
    """
    result = yield
    if nextitem is None or nextitem.path != item.path:
        end = time.monotonic() + 60
        while (left := _left()) and time.monotonic() < end:
            time.sleep(0.1)
        for number in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        if left:
            pytest.fail(f"{item.path.name} leaves processes behind: {'; '.join(left.values())}", pytrace=False)
    return result


def _left():
    """As :meth:`Processes.left`, but for libraries' helpers."""
    found = OF_THE_SESSION.left().items()
    return {number: line for number, line in found if not any(known in line for known in END_WITH_US)}
