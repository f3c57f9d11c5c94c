"""Where jobs run: :class:`Slurm`, and :class:`Local` (processes on this machine), both through submitit.

An executor knows how many more jobs it takes now (``room``), submits them, says which are alive (``states``), why one
is not (``verdict``), and what becomes of them when the command that waits for them is stopped (``leave``).
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from training.devices import worker_count
from training.errors import UserError
from training.interrupt import Stopped
from training.sweep.workers import environment, own_gpu

try:
    import submitit
except ModuleNotFoundError:
    raise UserError("cluster=slurm and cluster=local need submitit; install it with: pip install submitit") from None

from training.sweep.job import TrainPack

Options = dict[str, Any]
Job = Any
"""submitit's ``Job``."""
LARGEST_ARRAY = 1000
"""SLURM's default limit is 1001."""


class Executor(Protocol):
    """Where jobs run."""

    grace: float
    """Seconds that the result of a job may take to arrive after the job is gone."""

    def room(self, alive: int) -> int:
        """How many more jobs may be submitted when ``alive`` are."""

    def submit(self, tasks: Sequence[TrainPack]) -> list[Job]:
        """Submit. Raises ``UserError`` if the jobs are refused."""

    def states(self) -> dict[str, str] | None:
        """The user's living jobs and their states in words; ``None`` if that is not known now."""

    def verdict(self, job: Job) -> str:
        """How a job ended that has left no result."""

    def leave(self, jobs: Sequence[Job]) -> Stopped:
        """Leave the jobs behind, or end them; what to tell the user."""


def make_executor(options: Options, folder: Path) -> Executor:
    """The executor that ``options["cluster"]`` asks for, with its files in ``folder``."""
    cluster = options["cluster"]
    least = {"parallelism": 0, "timeout_min": 1, "max_timeouts": 0, "mem_gb": 0, "cpus": 1, "gpus": 0}
    for key, value in least.items():
        if key in cluster and cluster[key] < value:
            raise UserError(f"cluster.{key} must be at least {value}, not {cluster[key]}")
    return Slurm(options, folder) if cluster["name"] == "slurm" else Local(options, folder)


def _python(variables: dict[str, str], unset: Sequence[str] = ()) -> str:
    """The command that starts Python with a changed environment."""
    words = ["env", *(f"--unset={name}" for name in unset), *(f"{key}={value}" for key, value in variables.items())]
    return shlex.join([*words, sys.executable])


class Slurm:
    """Jobs of SLURM, up to 1000 in an array, requeued on time-out and preemption. They outlive this command."""

    grace = 15.0
    poll_seconds = 10.0

    def __init__(self, options: Options, folder: Path) -> None:
        cluster = options["cluster"]
        if cluster["gpus"] > 1:
            raise UserError(f"cluster.gpus must be 0 or 1 (a pack is trained on one device), not {cluster['gpus']}")
        if missing := [name for name in ("sbatch", "srun", "squeue", "scancel") if shutil.which(name) is None]:
            raise UserError(
                f"cluster=slurm needs SLURM's commands, but {', '.join(missing)} cannot be found on this machine; "
                "start it where jobs are submitted, or use cluster=local"
            )
        self.parallelism = cluster["parallelism"]
        self.executor = submitit.SlurmExecutor(
            folder, max_num_timeout=cluster["max_timeouts"], python=_python(environment(options))
        )
        chosen = {key: cluster[key] for key in ("partition", "account", "qos", "constraint", "setup") if cluster[key]}
        if cluster["mem_gb"]:
            chosen["mem"] = f"{round(cluster['mem_gb'] * 1024)}MB"
        if cluster["gpus"]:
            chosen["gpus_per_node"] = cluster["gpus"]
        self.executor.update_parameters(
            **chosen,
            job_name=options["sweep"],
            time=cluster["timeout_min"],
            cpus_per_task=cluster["cpus"],
            srun_args=[f"--cpus-per-task={cluster['cpus']}"],  # since 22.05 srun does not take it from sbatch
            # SLURM may send the signal up to a minute early; a short job is stopped for the last quarter only.
            signal_delay_s=min(120, 15 * cluster["timeout_min"]),
            additional_parameters={"requeue": True},
        )
        self._known: dict[str, str] | None = None
        self._asked = 0.0

    def room(self, alive: int) -> int:
        return LARGEST_ARRAY

    def submit(self, tasks: Sequence[TrainPack]) -> list[Job]:
        self._asked = 0.0
        self.executor.update_parameters(array_parallelism=self.parallelism or len(tasks))
        try:
            return self.executor.submit_array(tasks)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise UserError(f"SLURM refused the jobs: {' '.join(str(error).split())}; see cluster.*") from None

    def states(self) -> dict[str, str] | None:
        if time.monotonic() - self._asked >= self.poll_seconds:
            lines = _output("squeue", "--me", "--noheader", "--array", "--format=%i %T")
            self._known = None if lines is None else dict(line.split(maxsplit=1) for line in lines)
            self._asked = time.monotonic()
        return self._known

    def verdict(self, job: Job) -> str:
        lines = _output("sacct", "-n", "-X", "-P", "-j", job.job_id, "-o", "State,ExitCode") or []
        state, _, code = lines[-1].partition("|") if lines else ("", "", "")
        if not state or state in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"):
            return "it left the queue without a result"
        status, _, number = code.partition(":")
        how = f", signal {number}" if number not in ("", "0") else f", exit code {status}" if status != "0" else ""
        return state + how

    def leave(self, jobs: Sequence[Job]) -> Stopped:
        arrays = " ".join(dict.fromkeys(str(job.job_id).partition("_")[0] for job in jobs))
        return Stopped(
            f"stopped waiting; {len(jobs)} jobs go on. To cancel: scancel {arrays}. Start the same command again to "
            "train what they leave"
        )


def _output(*command: str) -> list[str] | None:
    """The lines that a command prints, ``None`` if it cannot be run or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None


class Local:
    """Jobs as processes on this machine, a few at once. They end with this command."""

    grace = 0.0
    stop_seconds = 60.0

    def __init__(self, options: Options, folder: Path) -> None:
        self.options = options
        self.parallelism = options["cluster"]["parallelism"] or worker_count(options)
        self.executor = submitit.LocalExecutor(folder)
        self.executor.update_parameters(timeout_min=60 * 24 * 365)
        self.slots: dict[int, Job] = {}

    def room(self, alive: int) -> int:
        return self.parallelism - alive

    def submit(self, tasks: Sequence[TrainPack]) -> list[Job]:
        return [self._start(task) for task in tasks]

    def _start(self, task: TrainPack) -> Job:
        slot = next(n for n in range(len(self.slots) + 1) if n not in self.slots or self.slots[n].done())
        # submitit hides the GPUs of a job that asks for none.
        own = own_gpu(self.options, slot)
        given = own or {key: os.environ[key] for key in ("CUDA_VISIBLE_DEVICES",) if key in os.environ}
        self.executor.python = _python(environment(self.options) | given, [] if given else ["CUDA_VISIBLE_DEVICES"])
        # Ctrl-C reaches the whole group; submitit's process would kill the job a second later.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.slots[slot] = self.executor.submit(task)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self.slots[slot]

    def states(self) -> dict[str, str]:
        return {job.job_id: "RUNNING" for job in self.slots.values() if not job.done()}

    def verdict(self, job: Job) -> str:
        return "its process ended without a result"

    def leave(self, jobs: Sequence[Job]) -> Stopped:
        for job in jobs:
            if not job.done():
                os.kill(int(job.job_id), signal.SIGTERM)
        deadline = time.monotonic() + self.stop_seconds
        while not all(job.done() for job in jobs) and time.monotonic() < deadline:
            time.sleep(0.1)
        return Stopped("stopped; checkpoints are written; start the same command again to go on")
