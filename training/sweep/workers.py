"""Worker processes on this machine: one warm process for each GPU, or on a CPU for each core with one thread."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from training import interrupt
from training.config.plan import PackPlan, RunPlan
from training.devices import pick_device, worker_count
from training.interrupt import Stopped
from training.pack.run import leaving_nothing_empty, record_failure
from training.processes import python
from training.sweep.screen import Screen

GRACE_SECONDS = 60.0
LOG = "workers.log"
"""In the sweep's folder: what workers print besides events, warnings mostly."""


@dataclass
class Job:
    """A pack to be trained, and how often a worker has died of it."""

    pack: PackPlan
    deaths: int = 0

    def rest(self) -> list[Job]:
        """What is left after a death: the unfinished runs in one pack, from the second death on in two.

        Memory may have been the reason, which a killed process cannot say.
        """
        left = tuple(run for run in self.pack if not run.is_over())
        size = -(-len(left) // (2 if self.deaths > 1 else 1)) or 1
        return [Job(left[start : start + size], self.deaths) for start in range(0, len(left), size)]


@dataclass
class Worker:
    """A worker process and the job that it has."""

    process: subprocess.Popen[bytes]
    number: int
    job: Job | None = None
    pack: int = 0
    buffer: bytes = field(default=b"")

    def give(self, number: int, job: Job) -> None:
        """Send a job."""
        self.job, self.pack = job, number
        runs = [{"config": run.config, "overrides": run.overrides} for run in job.pack]
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: the end of its output says so
            self.process.stdin.write(json.dumps({"pack": number, "runs": runs}).encode() + b"\n")
            self.process.stdin.flush()


def run_packs(packs: Sequence[PackPlan]) -> dict[str, str]:
    """Train packs on worker processes. A worker that dies is replaced, and its pack tried again ``retries`` times.

    Returns the names of the runs that failed, with the reasons.

    Raises:
        Stopped: if a signal asked for it; the workers have written checkpoints.
    """
    pool = _Pool(packs)
    with leaving_nothing_empty(pool.folder), interrupt.on_signals(signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        pool.run()
    return pool.screen.failures


def environment(options: dict[str, Any]) -> dict[str, str]:
    """What a process that trains needs in its environment."""
    return {"OMP_NUM_THREADS": str(options["threads"])}


def own_gpu(options: dict[str, Any], number: int) -> dict[str, str]:
    """The environment in which process ``number`` sees one GPU of this machine; empty where it picks its own device."""
    device = pick_device(options["device"])
    if device.type != "cuda" or device.index is not None:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return {"CUDA_VISIBLE_DEVICES": devices[number % len(devices)]}


def give_up(run: RunPlan, error: str, screen: Screen) -> None:
    """Record a run as ``failed`` whose process died too often."""
    claim = run.record.claim
    try:
        if not claim.take():  # somebody else has it
            return
        try:
            record_failure(run, error, f"failed: {error}")
        finally:
            claim.release()
    except OSError as trouble:
        error += f"; its record cannot be written: {trouble}"
    screen.show({"event": "run", "run": run.name, "status": "failed", "error": error, "pack": None})


class _Pool:
    def __init__(self, packs: Sequence[PackPlan]) -> None:
        self.options = packs[0][0].config
        self.waiting = deque(Job(pack) for pack in packs)
        self.workers: list[Worker] = []
        self.selector = selectors.DefaultSelector()
        self.screen = Screen(packs, self.options["progress"])
        self.folder = Path(self.options["runs_dir"]).absolute() / self.options["sweep"]
        self.given = 0

    def run(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOG, "ab") as log:
            try:
                for number in range(min(worker_count(self.options), len(self.waiting))):
                    self._start(number, log)
                while any(worker.job for worker in self.workers) or self.waiting:
                    self._listen(log)
                    if interrupt.asked():
                        raise Stopped("stopped; checkpoints are written; start the same command again to go on")
            finally:
                self._end()
                self.screen.close()
                if os.listdir(self.folder) == [LOG] and log.tell() == 0:  # no worker could be started
                    (self.folder / LOG).unlink()

    def _start(self, number: int, log: IO[bytes]) -> None:
        command = [*python(), "-m", "training.sweep.worker"]
        own = os.environ | environment(self.options) | own_gpu(self.options, number)
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=own)
        worker = Worker(process, number)
        self.workers.append(worker)
        assert process.stdout is not None
        self.selector.register(process.stdout, selectors.EVENT_READ, worker)
        self._next(worker)

    def _next(self, worker: Worker) -> None:
        worker.job = None
        if self.waiting:
            self.given += 1
            job = self.waiting.popleft()
            self.screen.begin(self.given, job.pack)
            worker.give(self.given, job)

    def _listen(self, log: IO[bytes]) -> None:
        for key, _ in self.selector.select(timeout=0.5):
            worker = key.data
            data = os.read(key.fd, 1 << 16)
            if not data:
                self._died(worker, log)
                continue
            *lines, worker.buffer = (worker.buffer + data).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if event["event"] == "done":
                    self.screen.end(event["pack"])
                    self._next(worker)
                else:
                    self.screen.show(event)
        self.screen.draw()

    def _died(self, worker: Worker, log: IO[bytes]) -> None:
        assert worker.process.stdout is not None
        self.selector.unregister(worker.process.stdout)
        self.workers.remove(worker)
        code, job = worker.process.wait(), worker.job
        if job is None or interrupt.asked():
            return
        self.screen.lose(worker.pack)
        job.deaths += 1
        rest = job.rest()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if job.deaths > self.options["retries"]:
            for run in (run for part in rest for run in part.pack):
                give_up(
                    run, f"its worker process died {job.deaths} times (the last time by {how}); see {LOG}", self.screen
                )
        else:
            left = sum(len(part.pack) for part in rest)
            self.screen.say(f"a worker died by {how}; its {left} unfinished runs go on from their checkpoints")
            self.waiting.extendleft(rest)
        if self.waiting:
            self._start(worker.number, log)

    def _end(self) -> None:
        """Let the workers write checkpoints and go; those that do not are killed."""
        for worker in self.workers:
            if worker.job is not None:
                worker.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(BrokenPipeError):
                if worker.process.stdin is not None:
                    worker.process.stdin.close()
        deadline = time.monotonic() + GRACE_SECONDS
        for worker in self.workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
