"""Sweeps through submitit's local executor: real processes, one of them killed, and what the user reads.

SLURM itself is tried by ``tests/slurm/run.sh``.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from processes import LAST_RESORT, Processes
from test_cli import call

import training.sweep
from analysis import records
from training.config.plan import RunPlan
from training.errors import UserError
from training.pack.run import train_runs

pytest.importorskip("submitit")
executors = importlib.import_module("training.sweep.executors")

ROOT = Path(__file__).parents[1]
SMALL = ["evaluate_every=50", "test_samples=1", "valid_samples=1", "task.latents=4", "pack_size=1", "workers=2"]


PROCESSES = Processes()


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    PROCESSES.close()


def start(folder, *arguments, **options):
    command = [sys.executable, "train.py", "-m", *SMALL, *arguments, f"runs_dir={folder}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return PROCESSES.start(command, cwd=ROOT, **pipes, **options)


def runs(folder):
    return records.find_runs(folder / "main")


def log(run):
    return (run / records.LOG).read_text()


def numbers(run):
    rows = records.read_metrics(run / records.METRICS)
    return json.dumps([{key: value for key, value in row.items() if key != "seconds"} for row in rows])


def await_checkpoint(folder, process):
    """The first run that is being trained and has a checkpoint, and the process that trains it."""
    while True:
        for run in runs(folder):
            if (run / records.CHECKPOINT).exists() and not (run / records.RESULT).exists():
                try:
                    return run, int((run / "claim").read_text().split()[1])
                except (OSError, IndexError):
                    continue
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two packs as jobs, one of which is killed, and the same runs in this process: (killed run, folder, output)."""
    folder = tmp_path_factory.mktemp("runs")
    process = start(folder / "jobs", "seed=0,1", "steps=600", "checkpoint_seconds=0.05", "cluster=local", umask=0o002)
    killed, number = await_checkpoint(folder / "jobs", process)
    os.kill(number, signal.SIGKILL)
    text, _ = process.communicate(timeout=LAST_RESORT)
    assert process.returncode == 0, text
    for run in runs(folder / "jobs"):
        config = yaml.safe_load((run / records.CONFIG).read_text())
        train_runs([RunPlan(config | {"runs_dir": str(folder / "here")})], report=lambda event: None)
    return killed, folder, text


def test_a_killed_job_is_submitted_again_and_goes_on(swept):
    killed, folder, text = swept
    assert "2 finished" in text and "its 1 unfinished runs go on in a new job" in text
    assert "2 finished, 0 failed" in text.splitlines()[-2]  # the screen, which the jobs' events feed
    assert " goes on at step" in log(killed)
    for run in runs(folder / "jobs"):
        assert log(run).count(" starts at step 0") == 1 and log(run).count(" finished at step 600") == 1
        assert (run != killed) == (" goes on at " not in log(run))
        assert not (run / "claim").exists()


def test_jobs_give_the_numbers_of_this_process(swept):
    _, folder, _ = swept
    pairs = list(zip(runs(folder / "jobs"), runs(folder / "here"), strict=True))
    assert len(pairs) == 2
    for job, here in pairs:
        assert job.name == here.name and numbers(job) == numbers(here)


def test_files_of_jobs_that_went_well_are_removed(swept):
    _, folder, _ = swept
    left = {file.name.partition("_")[0] for file in (folder / "jobs" / "main" / ".jobs").iterdir()}
    assert len(left) == 1, left  # the killed job's log


def test_nobody_else_can_put_a_job_into_the_folder(swept, tmp_path):
    """A job executes the pickle that it finds there."""
    _, folder, _ = swept
    assert (folder / "jobs" / "main").stat().st_mode & 0o777 == 0o775
    assert (folder / "jobs" / "main" / ".jobs").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    assert executors._closed(tmp_path / "open").stat().st_mode & 0o777 == 0o700
    for mode in (0o775, 0o757):
        (tmp_path / "open").chmod(mode)
        with pytest.raises(UserError, match="others than you can write"):
            executors._closed(tmp_path / "open")
    (tmp_path / "link").symlink_to(folder / "jobs" / "main" / ".jobs")
    with pytest.raises(UserError, match="others than you can write"):
        executors._closed(tmp_path / "link")


def test_a_run_whose_jobs_always_die_is_failed_with_the_reason(tmp_path):
    process = start(tmp_path, "seed=0", "steps=1000000", "checkpoint_seconds=0.05", "cluster=local", "retries=0")
    run, number = await_checkpoint(tmp_path, process)
    os.kill(number, signal.SIGKILL)
    text, _ = process.communicate(timeout=LAST_RESORT)
    assert process.returncode == 1 and "its job died 1 times" in text
    assert records.RunRecord(run).status_word() == "failed" and "its job died 1 times" in records.RunRecord(run).error()


def test_signals_write_checkpoints(tmp_path):
    """The warning before a time-out (SIGUSR2) goes through submitit's own handler: the same job starts again and goes
    on where it stopped. Ctrl-C stops all jobs, with the steps since the last regular checkpoint."""
    process = start(tmp_path, "seed=0,1", "steps=1000000", "checkpoint_seconds=3", "cluster=local")
    warned, number = await_checkpoint(tmp_path, process)
    os.kill(number, signal.SIGUSR2)
    while " goes on at " not in log(warned):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    stopped = next(line for line in log(warned).splitlines() if "by a signal" in line)
    step = stopped.split("stopped at step ")[1].split()[0]
    assert f" goes on at step {step} " in log(warned)

    numbers_of_processes = [int((run / "claim").read_text().split()[1]) for run in runs(tmp_path)]
    assert len(numbers_of_processes) == 2 and number not in numbers_of_processes
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=LAST_RESORT)
    assert process.returncode == 1 and "stopped; checkpoints are written" in text and "died" not in text
    assert "by SIGUSR2" in text
    for run in runs(tmp_path):
        assert "by a signal; its checkpoint is written" in log(run).splitlines()[-1]
        assert not (run / "claim").exists() and records.RunRecord(run).status_word() == "queued"
    for each in numbers_of_processes:
        with pytest.raises(ProcessLookupError):
            os.kill(each, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cluster=pbs"], ["pbs", "local", "none", "slurm"]),
        (["cluster=local", "cluster.partition=x"], ["partition", "parallelism"]),
        (["cluster=local", "cluster.parallelism=-1"], ["cluster.parallelism must be at least 0, not -1"]),
        (["cluster=slurm", "cluster.timeout_min=0"], ["cluster.timeout_min must be at least 1, not 0"]),
        (["cluster=slurm", "cluster.gpus=2"], ["cluster.gpus must be 0 or 1"]),
        (["cluster=slurm", "cluster.timeout_min=long"], ["timeout_min", "long"]),
        (["cluster=slurm"], ["sbatch", "cluster=local"]),
    ],
)
def test_mistakes_are_one_sentence(monkeypatch, tmp_path, arguments, words):
    monkeypatch.setenv("PATH", "/nowhere")  # as on a machine without SLURM
    code = call(monkeypatch, "-m", *arguments, *SMALL, f"runs_dir={tmp_path}")
    assert isinstance(code, str) and code.startswith("error: ") and "Traceback" not in code and "\n" not in code
    assert all(word in code for word in words), code
    assert not records.find_runs(tmp_path)


def test_without_submitit_the_user_is_told_how_to_get_it(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.startswith("submitit")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("training.sweep.cluster", "training.sweep.executors", "training.sweep.job"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delattr(training.sweep, name.rpartition(".")[2], raising=False)
    monkeypatch.setitem(sys.modules, "submitit", None)
    code = call(monkeypatch, "-m", "cluster=local", *SMALL, f"runs_dir={tmp_path}")
    assert isinstance(code, str) and "pip install submitit" in code and "\n" not in code
