"""The sweep of ``run.sh``: trained on SLURM with a kill, a preemption and a time-out, then here, and compared."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from analysis import records  # noqa: E402

SWEEP = ["estimator=gumbel_softmax,nvil,rebar", "seed=range(0,4)", "steps=4000", "evaluate_every=500"]
ENDLESS = ["sweep=long", "seed=7", "steps=10000000", "evaluate_every=500"]
COMMON = ["task.latents=20", "pack_size=1", "test_samples=20", "valid_samples=20", "checkpoint_seconds=1"]
ON_SLURM = ["cluster=slurm", "cluster.partition=normal", "cluster.mem_gb=0"]
BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGAN:5.0f} s  {text}", flush=True)


def train(runs_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "train.py", "-m", *COMMON, *arguments, f"runs_dir={runs_dir}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    atexit.register(process.kill)  # leaves nothing behind when a check fails
    return process


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def await_(what: str, condition: Callable[[], Any], seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise SystemExit(f"no {what} within {seconds:.0f} s\n{output('squeue')}")


def runs(sweep: Path) -> dict[str, Path]:
    return {path.name: path for path in records.find_runs(sweep)}


def log(run: Path) -> list[str]:
    file = run / records.LOG
    return file.read_text().splitlines() if file.exists() else []


def stops(run: Path) -> int:
    """How often the run was stopped by a signal, with a checkpoint."""
    return sum("by a signal; its checkpoint is written" in line for line in log(run))


def in_training(sweep: Path, but: set[str]) -> tuple[str, int] | None:
    """A run that has written a checkpoint and is not over, with the process that trains it."""
    for name, run in runs(sweep).items():
        if name not in but and (run / records.CHECKPOINT).exists() and not (run / records.RESULT).exists():
            try:
                return name, int((run / "claim").read_text().split()[1])
            except OSError:
                continue
    return None


def numbers(run: Path) -> list[dict[str, Any]]:
    rows = records.read_metrics(run / records.METRICS)
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def check(condition: object, what: str) -> None:
    if not condition:
        raise SystemExit(f"FAILED: {what}")
    say(f"ok: {what}")


def main(folder: Path) -> None:
    sweep, long = folder / "slurm" / "main", folder / "slurm" / "long"
    waiting = train(folder / "slurm", *SWEEP, *ON_SLURM)
    killed, process = await_("run in training", lambda: in_training(sweep, set()))

    again = train(folder / "slurm", *SWEEP, *ON_SLURM)
    text, _ = again.communicate(timeout=120)
    check(
        "in jobs of an earlier command and not submitted again" in text, "the same command again submits nothing twice"
    )
    jobs = {line.split("_")[0] for line in output("squeue", "--me", "-h", "-r", "-o", "%i").split()}
    check(len(jobs) == 1, f"one job array: {jobs}")

    killed, process = await_("run in training", lambda: in_training(sweep, set()))
    os.kill(process, signal.SIGKILL)
    say(f"killed process {process} of {killed}")
    for _ in range(10):  # where a job has just ended, the urgent one takes its place and preempts nothing
        await_("run in training", lambda: in_training(sweep, {killed}))
        output("sbatch", "--wait", "-p", "urgent", "-n", "1", "-o", "/dev/null", "--wrap", "sleep 5")
        if preempted := [name for name, run in runs(sweep).items() if stops(run)]:
            break
    check(preempted, f"an urgent job preempts {preempted}")

    stopped = train(folder / "slurm", *ENDLESS, *ON_SLURM, "cluster.timeout_min=1")
    await_("long run in training", lambda: in_training(long, set()), 600)
    stopped.send_signal(signal.SIGINT)
    text, _ = stopped.communicate(timeout=60)
    check(stopped.returncode == 1 and "To cancel: scancel" in text, "Ctrl-C leaves the jobs: " + text.splitlines()[-1])

    text, _ = waiting.communicate(timeout=900)
    say("the sweep's command ended:")
    print(text, flush=True)
    check(waiting.returncode == 0 and "12 finished" in text, "12 runs finished")
    check(len(runs(sweep)) == 12, "12 records")
    for name, run in runs(sweep).items():
        lines = log(run)
        begun = [line for line in lines if " starts at " in line or " goes on at " in line]
        expected = 1 + (name == killed) + stops(run)
        good = len(begun) == expected and " starts at step 0 " in begun[0] and all(" goes on " in x for x in begun[1:])
        ended = [line for line in lines if " finished at " in line]
        if not (good and len(ended) == 1 and not (run / "claim").exists()):
            raise SystemExit(f"FAILED: {name} was not trained once:\n" + "\n".join(lines))
    check(True, "each run was trained once; the killed and the preempted one went on from their checkpoints")
    history = output("sacct", "-D", "-X", "-n", "-P", "-o", "JobID,State,ExitCode")
    check("PREEMPTED" in history, "sacct: preempted")
    check("FAILED" in history, "sacct: killed")

    doomed = folder / "slurm" / "doomed"
    options = ["steps=10000000", "sweep=doomed", "cluster.max_timeouts=0", "cluster.timeout_min=5"]
    waiting = train(folder / "slurm", *options, "seed=0,1", *ON_SLURM)
    await_("two runs in training", lambda: len(list(doomed.glob("*/checkpoint.pt"))) == 2, 600)
    ids = sorted(output("squeue", "--me", "-h", "-r", "-n", "doomed", "-o", "%i").split())
    output("scancel", ids[0])
    output("scancel", "--signal=USR2", ids[1])  # submitit takes it for a time-out, as the limit is below 10 minutes
    text, _ = waiting.communicate(timeout=300)
    print(text, flush=True)
    check("was cancelled" in text and waiting.returncode == 1, "a cancelled job is not submitted again")
    check("timed out 1 times" in text, "a job stops after max_timeouts")
    for run in runs(doomed).values():
        check(stops(run) == 1, "with a checkpoint")

    (there,) = runs(long).values()
    resumed = await_("time-out", lambda: next((line for line in log(there) if " goes on at " in line), None), 900)
    step = int(resumed.split(" goes on at step ")[1].split()[0])
    check(stops(there) == 1 and step > 0, f"a run longer than its time limit comes back: {resumed}")
    last = await_("progress", lambda: next((row["step"] for row in numbers(there) if row["step"] > step + 1000), None))
    output("scancel", "--name=long", "--me")

    here = train(folder / "here", *SWEEP)
    text, _ = here.communicate(timeout=1800)
    check(here.returncode == 0, "the sweep trained here")
    for run, path in runs(sweep).items():
        compare(path, folder / "here" / "main" / run)
    check(True, "its numbers are bit-identical to SLURM's")
    here = train(folder / "here", *ENDLESS)
    (path,) = await_("run", lambda: list(runs(folder / "here" / "long").values()), 120)
    await_("progress", lambda: (rows := numbers(path)) and rows[-1]["step"] >= last, 900)
    here.send_signal(signal.SIGTERM)
    here.communicate(timeout=120)
    compare(there, path, until=last)
    check(True, f"and so are those of the run that timed out, up to step {last}")


def compare(one: Path, other: Path, until: int = 10**9) -> None:
    rows = [[row for row in numbers(run) if row["step"] <= until] for run in (one, other)]
    if not rows[0] or json.dumps(rows[0]) != json.dumps(rows[1]):
        raise SystemExit(f"FAILED: {one} has other numbers than {other}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
