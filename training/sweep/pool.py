"""The pool: worker processes of this machine, one warm process for each GPU, or on a CPU for each core."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from training.config.plan import PackPlan
from training.devices import pick_device, worker_count
from training.pack.run import leaving_nothing_empty
from training.processes import environment, python
from training.sweep.executor import Died, Ended, JobEvent, Progress, Started

GRACE_SECONDS = 60.0
LOG = "workers.log"
"""In the sweep's folder: what workers print besides events, warnings mostly."""


@dataclass
class Worker:
    """A worker process, and the number of the job that it has; ``place`` tells it from those beside it."""

    process: subprocess.Popen[bytes]
    place: int
    job: int | None = None
    buffer: bytes = field(default=b"")

    def give(self, job: int, pack: PackPlan) -> None:
        """Send a job."""
        self.job = job
        runs = [dataclasses.asdict(run) for run in pack]
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: the end of its output says so
            self.process.stdin.write(json.dumps({"pack": job, "runs": runs}).encode() + b"\n")
            self.process.stdin.flush()


def own_gpu(options: dict[str, Any], place: int) -> dict[str, str]:
    """The environment in which a process sees one GPU of this machine; empty where it picks its own device."""
    device = pick_device(options["device"])
    if device.type != "cuda" or device.index is not None:
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    return {"CUDA_VISIBLE_DEVICES": devices[place % len(devices)]}


@contextlib.contextmanager
def worker_pool(options: dict[str, Any]) -> Iterator[Pool]:
    """The pool for a sweep with these ``options``. At the end the workers write checkpoints and go."""
    folder = Path(options["runs_dir"]).absolute() / options["sweep"]
    with leaving_nothing_empty(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / LOG, "ab") as log:
            try:
                with contextlib.closing(Pool(options, log)) as pool:
                    yield pool
            finally:
                if os.listdir(folder) == [LOG] and log.tell() == 0:  # no worker could be started
                    (folder / LOG).unlink()


class Pool:
    """Worker processes that are started when there is a job for them, and stay; an :class:`Executor`."""

    def __init__(self, options: dict[str, Any], log: IO[bytes]) -> None:
        self.options, self.log = options, log
        self.size = worker_count(options)
        self.workers: list[Worker] = []
        self.selector = selectors.DefaultSelector()
        self.given: list[int] = []

    def room(self) -> int:
        return self.size - sum(worker.job is not None for worker in self.workers)

    def submit(self, packs: Mapping[int, PackPlan]) -> None:
        idle = [worker for worker in self.workers if worker.job is None]
        for number, pack in packs.items():
            worker = idle.pop() if idle else self._start()
            worker.give(number, pack)
            self.given.append(number)

    def poll(self, seconds: float) -> Iterator[JobEvent]:
        yield from map(Started, self.given)
        self.given.clear()
        for key, _ in self.selector.select(seconds):
            worker = key.data
            data = os.read(key.fd, 1 << 16)
            if not data:
                yield from self._died(worker)
                continue
            *lines, worker.buffer = (worker.buffer + data).split(b"\n")
            for event in map(json.loads, lines):
                if event["event"] == "done":
                    worker.job = None
                    yield Ended(event["pack"])
                else:
                    yield Progress(event["pack"], event)

    def leave(self) -> str:
        self.close()
        return "stopped; checkpoints are written; start the same command again to go on"

    def close(self) -> None:
        """Let the workers write checkpoints and go; those that do not are killed."""
        workers, self.workers = self.workers, []
        for worker in workers:
            if worker.job is not None:
                worker.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(BrokenPipeError):
                if worker.process.stdin is not None:
                    worker.process.stdin.close()
        deadline = time.monotonic() + GRACE_SECONDS
        for worker in workers:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self.selector.close()

    def _start(self) -> Worker:
        place = next(n for n in range(self.size) if n not in [worker.place for worker in self.workers])
        own = os.environ | environment(self.options) | own_gpu(self.options, place)
        command = [*python(), "-m", "training.sweep.worker"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=own)
        worker = Worker(process, place)
        self.workers.append(worker)
        assert process.stdout is not None
        self.selector.register(process.stdout, selectors.EVENT_READ, worker)
        return worker

    def _died(self, worker: Worker) -> Iterator[JobEvent]:
        assert worker.process.stdout is not None
        self.selector.unregister(worker.process.stdout)
        self.workers.remove(worker)
        code = worker.process.wait()
        if worker.job is not None:
            how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"by exit code {code}"
            yield Died(worker.job, "a worker", "worker process", how, LOG)
