"""SLURM: each pack is a job that submitit hands to it, on machines that share this one's disk.

A job goes on by itself, whether or not the command that submitted it still waits: it is requeued on time-out and
preemption, and its runs' records say what became of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import stat
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.records import write_atomically
from analysis.records.claims import HEARTBEAT_SECONDS
from training.config.plan import PackPlan
from training.errors import UserError
from training.pack.build import load_once
from training.processes import environment, python
from training.progress import Event
from training.sweep.executor import Died, Ended, Failed, JobEvent, Note, Progress, Started

try:
    import submitit
except ModuleNotFoundError:
    raise UserError("cluster=slurm needs submitit; install it with: pip install submitit") from None

from training.sweep.slurm_job import ENDED, TrainPack, events_of

Options = dict[str, Any]
FOLDER = ".jobs"
"""In the sweep's folder: submitit's files. Those of a job that went well are removed.

A job executes the pickle that it finds there, so the folder is closed to others. This command reads no pickle: a job
leaves its runs' names and what became of it as JSON.
"""
LARGEST_ARRAY = 1000
"""SLURM's default limit is 1001."""
QUEUE_SECONDS = 10.0
"""Between two calls of ``squeue``."""
GRACE_SECONDS = 15.0
"""That the result of a job may take to arrive after the job has left the queue."""


@dataclass
class Submitted:
    """A job that was submitted: its number and pack, submitit's handle, and what was seen of it so far.

    ``read``: bytes of its file of events; ``outcome``: the last of them; ``gone``: since when it is not in the queue.
    """

    number: int
    pack: PackPlan
    handle: Any
    begun: bool = False
    read: int = 0
    outcome: Event | None = None
    gone: float | None = None

    @property
    def name(self) -> str:
        """As SLURM knows it, such as ``12_3``."""
        return str(self.handle.job_id)

    def died(self, how: str, counts: bool = True) -> Died:
        """The event."""
        log = str(self.handle.paths.stderr)
        return Died(self.number, f"job {self.name} (log: {log})", "job", how, log, counts)


def prepare(packs: Sequence[PackPlan]) -> tuple[list[PackPlan], Slurm]:
    """The executor, and of ``packs`` those runs that no living job of an earlier command has.

    Raises:
        UserError: without SLURM's commands, and for options that it cannot have.
    """
    options = packs[0][0].config
    slurm = Slurm(options, Path(options["runs_dir"]).absolute() / options["sweep"] / FOLDER)
    packs = slurm.without_living_jobs(packs)
    for data in {json.dumps(run.config["data"]): run.config["data"] for pack in packs for run in pack}.values():
        load_once(**data)  # downloads what is missing: where jobs run, there may be no network
    return packs, slurm


class Slurm:
    """Jobs of SLURM, up to 1000 in an array, requeued on time-out and preemption; an :class:`Executor`."""

    def __init__(self, options: Options, folder: Path) -> None:
        """``folder``: for submitit's files. Raises ``UserError`` without SLURM's commands, or if it is not closed."""
        if missing := [name for name in ("sbatch", "srun", "squeue", "scancel") if shutil.which(name) is None]:
            raise UserError(
                f"cluster=slurm needs SLURM's commands, but {', '.join(missing)} cannot be found on this machine; "
                "start it where jobs are submitted, or leave cluster out to train on this machine"
            )
        self.cluster, self.folder = options["cluster"], closed(folder)
        self.executor = _submitter(options, folder)
        self.jobs: list[Submitted] = []
        self._known: dict[str, str] | None = None
        self._asked: float | None = None

    def without_living_jobs(self, packs: Sequence[PackPlan]) -> list[PackPlan]:
        """The packs without runs that are in a living job of an earlier command."""
        theirs: dict[str, str] = {}
        for name in self._states() or {}:
            with contextlib.suppress(OSError, ValueError, TypeError):
                theirs |= dict.fromkeys(json.loads(self._names(name).read_bytes()), name)
        found = [run.name for pack in packs for run in pack if run.name in theirs]
        if found:
            jobs = ", ".join(dict.fromkeys(theirs[name] for name in found))
            print(f"{len(found)} runs are in jobs of an earlier command and not submitted again: {jobs}", flush=True)
        left = (tuple(run for run in pack if run.name not in theirs) for pack in packs)
        return [pack for pack in left if pack]

    def room(self) -> int:
        return LARGEST_ARRAY

    def submit(self, packs: Mapping[int, PackPlan]) -> None:
        self._asked = None
        self.executor.update_parameters(array_parallelism=self.cluster["parallelism"] or len(packs))
        try:
            handles = self.executor.submit_array([TrainPack(pack) for pack in packs.values()])
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise UserError(f"SLURM refused the jobs: {' '.join(str(error).split())}; see cluster.*") from None
        for (number, pack), handle in zip(packs.items(), handles, strict=True):
            self.jobs.append(Submitted(number, pack, handle))
            write_atomically(self._names(handle.job_id), json.dumps([run.name for run in pack]).encode())

    def poll(self, seconds: float) -> Iterator[JobEvent]:
        time.sleep(seconds)
        states = self._states()
        for job in list(self.jobs):
            over = job.handle.paths.result_pickle.exists()
            yield from self._progress(job)
            if over:
                end = self._outcome(job)
            elif self._is_gone(job, states):
                end = _verdict(job)
            else:
                continue
            self.jobs.remove(job)
            yield end
        counts = Counter((states or {}).get(job.name, "ending").lower() for job in self.jobs)
        yield Note(", ".join(f"{count} jobs {state}" for state, count in sorted(counts.items())))

    def leave(self) -> str:
        arrays = " ".join(dict.fromkeys(job.name.partition("_")[0] for job in self.jobs))
        return (
            f"stopped waiting; {len(self.jobs)} jobs go on. To cancel: scancel {arrays}. Start the same command again "
            "to train what they leave"
        )

    def _names(self, job: str) -> Path:
        """The file with the names of a job's runs."""
        return self.folder / f"{job}_runs.json"

    def _states(self) -> dict[str, str] | None:
        """The user's living jobs and their states in words; ``None`` if that is not known now."""
        now = time.monotonic()
        if self._asked is None or now - self._asked >= QUEUE_SECONDS:
            lines = _output("squeue", "--me", "--noheader", "--array", "--format=%i %T")
            self._known = None if lines is None else dict(line.split(maxsplit=1) for line in lines)
            self._asked = now
        return self._known

    def _progress(self, job: Submitted) -> Iterator[JobEvent]:
        try:
            with open(events_of(job.handle), "rb") as file:
                file.seek(job.read)
                *lines, torn = file.read().split(b"\n")
        except OSError:
            return
        job.read += sum(len(line) + 1 for line in lines)
        if lines and not job.begun:
            job.begun = True
            yield Started(job.number)
        for event in map(json.loads, lines):
            if event["event"] == ENDED:
                job.outcome = event
            else:
                yield Progress(job.number, event)

    def _outcome(self, job: Submitted) -> JobEvent:
        """Of a job that has left a result: it went well, or an exception ended it."""
        outcome = job.outcome or {"error": "an exception before it began", "mistake": None}
        if outcome["mistake"]:
            return Failed(job.number, outcome["mistake"])
        if not outcome["error"]:
            for file in self.folder.glob(f"{job.name}_*"):
                file.unlink(missing_ok=True)
            return Ended(job.number)
        if "timed-out too many times" in outcome["error"]:
            times = self.cluster["max_timeouts"] + 1
            return Failed(job.number, f"its job {job.name} timed out {times} times; see cluster.*")
        return job.died(f"by {outcome['error']}")

    def _is_gone(self, job: Submitted, states: dict[str, str] | None) -> bool:
        """Whether a job without a result is out of the queue for so long that none will come."""
        if states is None or job.name in states:
            job.gone = None
            return False
        now = time.monotonic()
        job.gone = now if job.gone is None else job.gone
        # A claim from another machine looks alive for a while; it may also be a job that lives on unseen.
        claimed = any(run.record.claim.is_held() for run in job.pack)
        return now - job.gone >= max(GRACE_SECONDS, 1.1 * HEARTBEAT_SECONDS if claimed else 0.0)


def closed(folder: Path) -> Path:
    """``folder``, made if it is missing, for its owner alone: jobs execute what they find there.

    Raises:
        UserError: if it is somebody else's, or somebody else could write there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(
            f"{folder}: jobs execute what lies there, and others than you can write to it; remove it, or choose "
            "another sweep=NAME"
        )
    os.chmod(folder, 0o700)
    return folder


def _submitter(options: Options, folder: Path) -> Any:
    """submitit's executor with what ``cluster`` asks for."""
    cluster = options["cluster"]
    variables = {"PYTHONUNBUFFERED": "1"} | environment(options)  # unbuffered, for the logs
    command = shlex.join(["env", *(f"{key}={value}" for key, value in variables.items()), *python()])
    executor = submitit.SlurmExecutor(folder, max_num_timeout=cluster["max_timeouts"], python=command)
    chosen = {key: cluster[key] for key in ("partition", "account", "qos", "constraint", "setup") if cluster[key]}
    if cluster["mem_gb"]:
        chosen["mem"] = f"{round(cluster['mem_gb'] * 1024)}MB"
    if cluster["gpus"]:
        chosen["gpus_per_node"] = cluster["gpus"]
    executor.update_parameters(
        **chosen,
        job_name=options["sweep"],
        time=cluster["timeout_min"],
        cpus_per_task=cluster["cpus"],
        srun_args=[f"--cpus-per-task={cluster['cpus']}"],  # since 22.05 srun does not take it from sbatch
        # SLURM may send the signal up to a minute early; a short job is stopped for the last quarter only.
        signal_delay_s=min(120, 15 * cluster["timeout_min"]),
        additional_parameters={"requeue": True},
    )
    return executor


def _verdict(job: Submitted) -> JobEvent:
    """How a job ended that has left no result, by the accounting, where there is one."""
    lines = _output("sacct", "-n", "-X", "-P", "-j", job.name, "-o", "State,ExitCode") or []
    state, _, code = lines[-1].partition("|") if lines else ("", "", "")
    if not state or state in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"):
        return job.died("without a result")
    if state.startswith("CANCELLED"):
        return Failed(job.number, f"its job {job.name} was cancelled")
    status, _, number = code.partition(":")
    how = f", signal {number}" if number not in ("", "0") else f", exit code {status}" if status != "0" else ""
    # Where SLURM cancels instead of requeueing, a preemption is not the pack's fault.
    return job.died(f"with state {state}{how}", counts=not state.startswith("PREEMPTED"))


def _output(*command: str) -> list[str] | None:
    """The lines that a command prints, ``None`` if it cannot be run or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
